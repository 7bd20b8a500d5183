"""One family as an .aimodel, another whenever CHANGELOG.md has changed; all of them by `make coreai-families`."""

import zlib
from pathlib import Path

from coreai_table import measure, measured

CHANGELOG = Path(__file__).parents[3] / "CHANGELOG.md"
RUN = sorted(measured())


def test_the_family_whose_turn_it_is_does_what_the_table_says() -> None:
    name = RUN[zlib.crc32(CHANGELOG.read_bytes()) % len(RUN)]
    found, expected = measure(name), measured()[name]
    assert found.keys() == expected.keys(), (name, found)
    for key in expected.keys() & {"reason", "no_main"}:
        assert found[key] == expected[key], name
