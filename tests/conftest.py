"""What every test may use. This folder is on the path, so `families` and `figures` can be imported from any test."""

import sys
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def small_tensors() -> Iterator[None]:
    """Seeded, without gradients, on one thread: waiting for a second takes longer than work this small."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `recipe` with arguments; gives status, standard output and standard error."""

    from coreai_recipes import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["recipe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return call
