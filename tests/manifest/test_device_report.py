"""Device reports: taken in with all that tells whose they are, kept in the bundle, and refused by a sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coreai_recipes.bundle import Bundle
from coreai_recipes.bundle.device_reports import reports_of
from coreai_recipes.bundle.opened import identity_of

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "tiny-llama"))


def report_of(bundle: Path, **changed: Any) -> dict[str, Any]:
    said = {
        "manifest_sha256": identity_of(bundle),
        "device": "example",
        "chip": "example",
        "os_build": "24A435",
        "date": "2026-11-28",
        "functions": {
            "decode": {"load_seconds": 1.5, "calls": 20, "median_ms": 20.0, "placed": {"engine": 90, "cpu": 2}}
        },
        "footprint_bytes": 12_000_000,
    }
    return {key: value for key, value in {**said, **changed}.items() if value is not None}


def written(folder: Path, content: Any) -> Path:
    path = folder / "report.json"
    path.write_text(json.dumps(content))
    return path


def test_a_report_is_kept_in_the_bundle_which_stays_a_bundle(bundle: Path, tmp_path: Path, run: Run) -> None:
    status, out, error = run("device-report", bundle, "--from", written(tmp_path, report_of(bundle)))
    assert (status, error) == (0, "")
    assert "50.0 tokens/s (no bound: its rate of weights was not measured)" in out
    assert "12.0 MB held at most" in out
    (kept,) = reports_of(Bundle.open(bundle))
    assert (bundle / "device" / kept.file_name).is_file()
    assert kept.functions["decode"].median_ms == 20.0
    assert run("lint", bundle)[0] == 0


def test_a_device_that_is_known_is_held_against_its_bounds(bundle: Path, tmp_path: Path, run: Run) -> None:
    said = report_of(bundle, device="M1", chip="M1", source="a test")
    document = json.loads(run("device-report", bundle, "--from", written(tmp_path, said), "--json")[1])
    assert document["tokens_per_second"] == 50.0
    assert document["bounds"]["most_tokens_per_second"] > 50
    assert document["source"] == "a test"


def test_a_page_holds_a_report_against_the_same_bounds(bundle: Path, tmp_path: Path, run: Run) -> None:
    said = written(tmp_path, report_of(bundle, device="M1", chip="M1"))
    document = json.loads(run("device-report", bundle, "--from", said, "--json")[1])
    (facts,) = json.loads(run("report", bundle, "--json")[1])["bundles"]
    assert facts["device_reports"] == [document]


def test_a_report_is_not_written_through_a_link(bundle: Path, tmp_path: Path, run: Run) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (bundle / "device").symlink_to(outside)
    status, _, error = run("device-report", bundle, "--from", written(tmp_path, report_of(bundle)))
    assert status == 2
    assert "added since it was built: device" in error
    assert not any(outside.iterdir())


def test_a_compute_plan_is_counted_by_unit(bundle: Path, tmp_path: Path, run: Run) -> None:
    operations = {
        "conv_0": {"dispatch": "ANE", "supported": ["ANE", "CPU"], "cost": 0.9},
        "gather_0": {"dispatch": "CPU"},
    }
    said = report_of(bundle, functions=None, compute_plan={"decode": operations})
    document = json.loads(run("device-report", bundle, "--from", written(tmp_path, said), "--json")[1])
    assert document["functions"]["decode"]["placed"] == {"engine": 1, "gpu": 0, "cpu": 1}
    assert document["tokens_per_second"] is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"chip": None, "date": None}, "says nothing of chip, date: a device report needs manifest_sha256, device, "),
        ({"manifest_sha256": "0" * 64}, "is of another bundle: its manifest is 000000000000..., "),
        (
            {"device": "iphone-17pro"},
            "device: 'iphone-17pro' is none that --device knows\n  did you mean `iphone-17-pro`?",
        ),
        ({"functions": {"sing": {}}}, "functions: the bundle has no sing; it has decode, prefill"),
        ({"functions": {}}, "functions: "),
        ({"os_build": "macOS 26"}, "os_build: "),
        (
            {"compute_plan": {"decode": {"conv_0": {"dispatch": "TPU"}}}},
            "compute_plan.decode: dispatch 'TPU' is not ANE, GPU, CPU",
        ),
        ({"compute_plan": []}, "compute_plan: must be a mapping of functions"),
        ({"compute_plan": {"decode": {}}, "functions": []}, "functions: must be a mapping"),
        (
            {"compute_plan": {"decode": {"conv_0": {"dispatch": "ANE"}}}, "functions": {"decode": [1]}},
            "functions.decode: must be a mapping",
        ),
        # its rate would be infinite, which no JSON document can say
        ({"functions": {"decode": {"median_ms": 1e-320}}}, "functions.decode.median_ms: "),
        ({"date": "2026-02-30"}, "date: input should be a day of the calendar, as in 2026-11-28"),
    ],
)
def test_what_is_no_report_of_this_bundle_is_a_sentence(
    bundle: Path, tmp_path: Path, run: Run, changed: dict[str, Any], said: str
) -> None:
    status, out, error = run("device-report", bundle, "--from", written(tmp_path, report_of(bundle, **changed)))
    assert (status, out) == (2, "")
    assert said in error
    assert not (bundle / "device").exists()


def test_a_dump_alone_says_where_it_belongs(bundle: Path, tmp_path: Path, run: Run) -> None:
    status, _, error = run("device-report", bundle, "--from", written(tmp_path, {"conv_0": {"dispatch": "ANE"}}))
    assert status == 2
    assert error.endswith("date, with MLComputePlan's dump under `compute_plan`, by function\n")


def test_what_is_not_json_is_named_by_its_own_path(bundle: Path, tmp_path: Path, run: Run) -> None:
    """It was said of the folder: `.: its device report is not JSON`."""
    file = tmp_path / "report.json"
    file.write_text('{"device": 3')
    status, _, error = run("device-report", bundle, "--from", file)
    assert status == 2
    assert error.startswith(f"{file}: is not JSON: ")


def test_without_a_mac_the_command_says_what_to_give(bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreai_recipes.running.coreml.platform.system", lambda: "Linux")
    status, _, error = run("device-report", bundle)
    assert status == 2
    assert error == (
        f"{bundle}: cannot be measured here: Core ML needs macOS, and this is Linux: "
        "give a device's report by --from FILE\n"
    )
