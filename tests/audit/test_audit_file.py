"""audit.json: what is written is what is read, and what is none is refused by its place."""

from pathlib import Path

import pytest

from coreai_recipes.errors import BundleError
from coreai_recipes.manifest.audit import Audit, Value, audit_text, read_audit

FOUND = Audit(
    format=1,
    prompts=2,
    positions=40,
    functions={
        "decode": {"scores": Value(operation="matmul", largest=812.5, least=1e-7, subnormal=0.25)},
        "prefill": {},
    },
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text(audit_text(FOUND))
    found = read_audit(tmp_path)
    assert found == FOUND
    assert found is not None
    assert found.value("decode", "scores") == FOUND.functions["decode"]["scores"]
    assert found.value("decode", "logits") is None
    assert found.value("draft", "scores") is None


def test_a_bundle_without_one_has_none(tmp_path: Path) -> None:
    assert read_audit(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "its audit.json is not JSON (audit.json: "),
        ('{"format": 2}', "audit.json: format: input should be 1 (2)"),
        (audit_text(FOUND).replace("812.5", "-1"), "audit.json: functions.decode.scores.largest: "),
        (
            audit_text(FOUND).replace("812.5", "NaN"),
            "its audit.json is not JSON (audit.json: NaN is",
        ),
    ],
)
def test_what_is_no_audit_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "audit.json").write_text(text)
    with pytest.raises(BundleError) as caught:
        read_audit(tmp_path)
    assert caught.value.problems[0].startswith(f"{tmp_path}: {problem}")
