"""What every test may use. This folder is on the path, so `families` and `figures` can be imported from any test."""

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from coreai_recipes.export.cache import FragmentCache

# A job in the background and nohup have these ignored, and every process below inherits that: the commands under test
# would rightly ignore them too.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.fixture(scope="session", autouse=True)
def fragments(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Path]:
    """Where the fragments of this session lie: each is converted once for all its tests and workers, and none comes
    from what the user has built. A test of the cache itself takes a folder of its own."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECIPE_CACHE", str(folder))
        yield folder / "fragments"


@pytest.fixture(scope="session")
def cache(fragments: Path) -> "FragmentCache":
    """The fragments of this session: a test that converts anew takes a cache of its own."""
    from coreai_recipes.export.cache import FragmentCache

    return FragmentCache(fragments)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str, Callable[[Path], object]], Path]:
    """`made(name, make)`: the folder that `make(folder)` filled, once a session, for all its workers."""
    from programs import once

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "export"
    folder.mkdir(exist_ok=True)
    return lambda name, make: once(folder / name, make)


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

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["recipe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        for number, answer in before.items():
            signal.signal(number, answer)
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return call


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of tiny-llama, not verified."""
    from coreai_recipes import build

    out = tmp_path_factory.mktemp("bundles")
    checkpoint = Path(__file__).parent / "checkpoints/tiny-llama"
    return build("tiny-llama", checkpoint, out, verified=False).path


@pytest.fixture(scope="session")
def gemma4_tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of gemma4-tiny, with its draft, a raw table and rings; not verified."""
    from coreai_recipes import build

    return build("gemma4-tiny", out=tmp_path_factory.mktemp("bundles"), verified=False).path
