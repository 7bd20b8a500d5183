"""An asset's program written anew from its text, over the same weights: the text has stand-ins in their place."""

import mmap
import re
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256, sha512
from pathlib import Path
from typing import Any

from coreai_recipes.aimodel.bytecode import Bytes, Replacement, splice
from coreai_recipes.aimodel.folder import HASH, METADATA, PROGRAM

STAND_IN = 64  # bytes
# as MLIR writes a blob: its alignment, then its bytes
WRITTEN = '      {}: "0x10000000{}",'
SECTION = re.compile(r"^ *builtin: \{$", re.MULTILINE)

# What comes in place of a weight of that name and content; None for one that stays as it is.
Choose = Callable[[str, memoryview], Replacement | None]


def rewrite(
    asset: Path,
    written: Path,
    change: Callable[[str], str],
    choose: Choose = lambda name, content: None,
    added: Mapping[str, Replacement] | None = None,
) -> None:
    """Write the folder `written`, which must not exist, of what `change` makes of the asset's text.

    `added` are weights that the asset has not; it is looked at when `change` has run, which may fill it.
    """
    written.mkdir()
    kept = dict[bytes, tuple[str, memoryview]]()
    text = change(_printed(_shortened(_mapped(asset / PROGRAM), kept)))
    new = {_stand_in(f"added {name}"): (name, weight) for name, weight in (added or {}).items()}
    lines = "\n".join(WRITTEN.format(name, key.hex()) for key, (name, _) in new.items())
    text = SECTION.sub(lambda found: f"{found[0]}\n{lines}", text, count=1)

    def real(_: str, content: memoryview) -> Replacement | None:
        key = bytes(content) if len(content) == STAND_IN else b""
        if key in new:
            return new[key][1]
        if key not in kept:
            return None
        name, of_asset = kept[key]
        return choose(name, of_asset) or Replacement(len(of_asset), lambda: [of_asset])

    digest = sha256()
    with (written / PROGRAM).open("wb") as out:
        for block in splice(_parsed(text), real):
            digest.update(block)
            out.write(block)
    (written / HASH).write_bytes(digest.digest())
    (written / METADATA).write_bytes((asset / METADATA).read_bytes())


def text_of(asset: Path) -> str:
    """The program of an asset as text, with stand-ins for its weights."""
    return _printed(_shortened(_mapped(asset / PROGRAM), {}))


def _mapped(path: Path) -> memoryview:
    """The file's bytes, mapped as long as there are views of them: closing them where something fails before would fail
    as well, and hide it."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _stand_in(name: str) -> bytes:
    return sha512(name.encode()).digest()


def _shortened(program: Bytes, kept: dict[bytes, tuple[str, memoryview]]) -> bytes:
    """The program with stand-ins; `kept` gets name and content of what each stands for."""

    def keep(name: str, content: memoryview) -> Replacement:
        kept[_stand_in(name)] = name, content
        return shorten(name, content)

    return b"".join(splice(program, keep))


def shorten(name: str, _: memoryview) -> Replacement:
    """The stand-in of a weight, by its name."""
    key = _stand_in(name)
    return Replacement(len(key), lambda: [key])


def _printed(program: bytes) -> str:
    """The program as text, its resources whole: they are stand-ins."""
    return str(load(program))


def _parsed(text: str) -> bytes:
    from coreai._compiler.ir import Location, Module
    from coreai.authoring import Context
    from coreai.authoring.asset import AIProgram

    with Context()._mlir_context, Location.unknown():
        module = Module.parse(text)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, PROGRAM)
            AIProgram._from_mlir_module(module)._save_bytecode(path)
            return path.read_bytes()


def load(program: bytes) -> Any:
    """The module that a program's bytes are, as coreai-core parses it."""
    from coreai.authoring.asset import AIProgram

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, PROGRAM)
        path.write_bytes(program)
        return AIProgram._load_bytecode(path)._module._mlir_module
