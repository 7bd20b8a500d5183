"""A place to build into, by either way of putting a bundle there."""

from pathlib import Path

import pytest
from staged_places import refuse_exchange


@pytest.fixture(params=["exchange", "two_renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two_renames":
        refuse_exchange(monkeypatch)
    return str(request.param)


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    return tmp_path / "dist"
