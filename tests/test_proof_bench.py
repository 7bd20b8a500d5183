"""`python -m bench proof`: what it prints of the runs of its children."""

from bench.child import Finished
from bench.suite.proof import WHOLE, describe


def test_each_stage_has_its_seconds_and_the_build_has_its_peak() -> None:
    def stages(seconds: float) -> Finished:
        found = {"torch": {"seconds": seconds, "processor_seconds": 2 * seconds}}
        return Finished(3 * seconds, 4 * seconds, 10**9, found, "")

    builds = [Finished(seconds, 2.0, 2 * 10**9, {}, "") for seconds in (30.0, 20.0, 25.0)]
    result = describe(builds, [stages(9.0), stages(10.0), stages(20.0)])
    assert result.rows == [
        ("torch", "10.0", "20.0", ""),
        ("the stages' process, all of it", "30.0", "40.0", "1.00"),
        (WHOLE, "25.0", "2.0", "2.00"),
    ]
    assert result.figures["torch"] == {"seconds": 10.0, "processor_seconds": 20.0}
    assert result.notes[0] == "median of 3, in turn; the first build has an empty cache"
