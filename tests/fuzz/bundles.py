"""Bundles that somebody damaged or wrote to do harm: a built one, with one to three things changed, from a seed.

    described = mutate(bundle, target, seed)

Half of them are sealed again, so that what is wrong is not merely a digest. `attempt` asks one a question, talks with
it and proves it.
"""

import atexit
import json
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from messages import WORDS, change_message

from coreai_recipes.errors import UserError
from coreai_recipes.protobuf import Model_pb2

TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"
EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 31, 100_000, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, -(2**63)),
    *(0.0, -0.0, 0.5, 1e-300, 1e300, float("inf"), float("nan")),
    *(
        "",
        "x",
        "/etc/passwd",
        "../../outside",
        "..",
        ".",
        "model.mlpackage",
        "a/../b",
        "\x1b[2J",
        "\0",
        "\ud800",
        "é" * 300,
    ),
    *([], {}, [[]], [0] * 1000, {"x": {}}, ["x"], [None], {"": 0}),
)
DEEP = "[" * 100_000
MOST_BYTES = 64 << 20
# what an earlier change may have left in the way of the next
SPOILT = (AttributeError, DecodeError, LookupError, MemoryError, OSError, RecursionError, TypeError, ValueError)


@cache
def whole_bundle() -> Path:
    """The bundle that is damaged, built once a process."""
    from coreai_recipes.bundle import build

    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return build(TINY.name, TINY, folder, verified=False).path


def warm_up() -> None:
    """Build the bundle, and do once what is asked of it."""
    for ask in (_run, _chat, _verify, _lint):
        ask(whole_bundle())


def attempt(folder: Path, seed: int) -> None:
    """What `recipe run`, `chat`, `verify` and `lint` do with a damaged bundle; raises the last UserError of theirs."""
    target = folder / TINY.name
    mutate(whole_bundle(), target, seed)
    told: UserError | None = None
    for ask in (_run, _chat, _verify, _lint):
        try:
            ask(target)
        except UserError as error:
            told = error
    if told is not None:
        raise told


def _run(bundle: Path) -> None:
    from coreai_recipes.bundle import Bundle
    from coreai_recipes.generate import answer, open_model

    opened = Bundle.open(bundle)
    for _ in answer(open_model(bundle, opened.manifest, "evaluator"), "In the beginning", max_tokens=1):
        pass


def _chat(bundle: Path) -> None:
    from coreai_recipes.bundle import Bundle
    from coreai_recipes.generate import Chat, open_model

    opened = Bundle.open(bundle)
    talk = Chat(open_model(bundle, opened.manifest, "evaluator"), max_tokens=1)
    for _ in range(2):
        for _ in talk.reply("Hello"):
            pass


def _verify(bundle: Path) -> None:
    from coreai_recipes.bundle import verify

    verify(bundle, TINY, stages=["rotary", "package", "tokenizer"]).to_json()


def _lint(bundle: Path) -> None:
    from coreai_recipes.lint.findings import lint
    from coreai_recipes.lint.reading import open_subject

    lint(open_subject(bundle)).to_json()


def mutate(bundle: Path, target: Path, seed: int) -> str:
    """Write a damaged copy of `bundle` to `target`, which must not exist; gives what was done, in words.

    What is not changed is a hard link: both must lie in one file system, and nothing may write to them.
    """
    chance = random.Random(seed)
    shutil.copytree(bundle, target, copy_function=os.link)
    done = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        kind = chance.choice(KINDS)
        try:
            done.append(f"{kind.__name__} {kind(target, chance)}")
        except SPOILT as error:
            done.append(f"{kind.__name__}: {type(error).__name__}")
    if chance.random() < 0.5:
        done.append(_seal_again(target))
    return "; ".join(done)


def _files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path for path in found if path.stat().st_size < MOST_BYTES)


def _pick(folder: Path, chance: random.Random, ending: str = "") -> Path:
    return chance.choice([path for path in _files(folder) if path.name.endswith(ending)])


def _read(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise OSError(f"{path} is no file any more")
    return path.read_bytes()


def _write(path: Path, content: bytes) -> None:
    path.unlink()  # never through a hard link
    path.write_bytes(content)


def flip_bytes(folder: Path, chance: random.Random) -> str:
    path = _pick(folder, chance)
    content = bytearray(_read(path))
    # most of the time where headers and structure are
    reach = len(content) if chance.random() < 0.3 else min(len(content), 4096)
    for _ in range(chance.choice((1, 2, 8, 64))):
        content[chance.randrange(reach)] ^= 1 << chance.randrange(8)
    _write(path, bytes(content))
    return path.name


def cut(folder: Path, chance: random.Random) -> str:
    path = _pick(folder, chance)
    content = _read(path)
    _write(path, content[: chance.choice((0, 1, len(content) // 2, len(content) - 1))])
    return path.name


def lengthen(folder: Path, chance: random.Random) -> str:
    path = _pick(folder, chance)
    _write(path, _read(path) + chance.randbytes(chance.choice((1, 64, 5000))))
    return path.name


def remove(folder: Path, chance: random.Random) -> str:
    path = _pick(folder, chance)
    path.unlink()
    return path.name


def make_sparse(folder: Path, chance: random.Random) -> str:
    """A file of many gigabytes that takes no room on the disk."""
    path = _pick(folder, chance)
    _write(path, _read(path))
    os.truncate(path, 1 << 36)
    return path.name


def replace_by_other(folder: Path, chance: random.Random) -> str:
    """Something that is no file, where a file was."""
    path = _pick(folder, chance)
    path.unlink()
    kind = chance.choice(
        ("pipe", "folder", "zero", "random", "tty", "outside", "circle", "nowhere", "inside", "socket")
    )
    links = {
        "zero": "/dev/zero",
        "random": "/dev/urandom",
        "tty": "/dev/tty",
        "outside": "/etc/passwd",
        "circle": path.name,
        "nowhere": "nowhere",
        "inside": "manifest.json",
    }
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))
    else:
        path.symlink_to(links[kind])
    return f"{path.name} by {kind}"


def change_json(folder: Path, chance: random.Random) -> str:
    """A value replaced, removed or added somewhere in a JSON document."""
    path = folder / "manifest.json" if chance.random() < 0.5 else _pick(folder, chance, ".json")
    document = json.loads(_read(path))
    place = _change(document, chance)
    _write(path, json.dumps(document).encode())
    return f"{path.name} {place}"


def _change(value: Any, chance: random.Random, place: str = "") -> str:
    if isinstance(value, dict) and value:
        key: Any = chance.choice(sorted(value))
    elif isinstance(value, list) and value:
        key = chance.randrange(len(value))
    else:
        return f"{place}: nothing"
    below = f"{place}.{key}"
    if isinstance(value[key], dict | list) and value[key] and chance.random() < 0.8:
        return _change(value[key], chance, below)
    act = chance.choice(("replace", "replace", "replace", "remove", "add", "double"))
    if act == "remove":
        del value[key]
    elif act == "add" and isinstance(value, dict):
        value[chance.choice(WORDS)] = chance.choice(EXTREMES)
    elif act == "double" and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = chance.choice(EXTREMES)
    return f"{below[:80]} {act}"


def nest_deeply(folder: Path, chance: random.Random) -> str:
    path = _pick(folder, chance, chance.choice((".json", ".yaml")))
    _write(path, DEEP.encode() if chance.random() < 0.5 else b'{"x":' * 50_000)
    return path.name


def change_recipe(folder: Path, chance: random.Random) -> str:
    """A line of recipe.yaml removed, doubled, or its value replaced; `extends` that leads elsewhere."""
    path = folder / "recipe.yaml"
    lines = _read(path).decode().splitlines()
    index = chance.randrange(len(lines))
    act = chance.choice(("remove", "double", "value", "value", "value", "extends"))
    if act == "remove":
        del lines[index]
    elif act == "double":
        lines.insert(index, lines[index])
    elif act == "extends":
        lines.insert(0, f"extends: {chance.choice(('/etc/passwd', '../x.yaml', 'gemma4', '/dev/zero', 'recipe.yaml'))}")
    else:
        head, colon, _ = lines[index].partition(":")
        lines[index] = f"{head}{colon} {json.dumps(chance.choice(EXTREMES[:22]))}"
    _write(path, "\n".join(lines).encode(errors="replace"))
    return f"{act} {lines[min(index, len(lines) - 1)].strip()[:60]}"


def change_context(folder: Path, chance: random.Random) -> str:
    """The context in the manifest, in the recipe, or in both."""
    context = chance.choice((1, 2, 100_000, 1 << 20, 1 << 31))
    said = chance.choice((("manifest",), ("recipe",), ("manifest", "recipe")))
    if "manifest" in said:
        document = json.loads(_read(folder / "manifest.json"))
        _write(folder / "manifest.json", json.dumps({**document, "context": context}).encode())
    if "recipe" in said:
        lines = _read(folder / "recipe.yaml").decode().splitlines()
        changed = [f"  context: {context}" if line.strip().startswith("context:") else line for line in lines]
        _write(folder / "recipe.yaml", "\n".join(changed).encode())
    return f"{context} in {' and '.join(said)}"


def change_program(folder: Path, chance: random.Random) -> str:
    """Fields of the protobuf, anywhere in it: numbers, names, messages removed or repeated."""
    path = _pick(folder, chance, ".mlmodel")
    model = Model_pb2.Model.FromString(_read(path))
    done = [change_message(model, chance) for _ in range(chance.choice((1, 1, 2, 5)))]
    _write(path, model.SerializeToString(deterministic=True))
    return ", ".join(done)


def point_elsewhere(folder: Path, chance: random.Random) -> str:
    """A path that leads out of the bundle, wherever one is read."""
    way = chance.choice(("/etc/passwd", "../outside", "../../../../etc", "a/../../..", "/dev/zero", ".", ""))
    path = chance.choice([folder / "manifest.json", next(folder.glob("*.mlpackage")) / "Manifest.json"])
    document = json.loads(_read(path))
    if "packages" in document:
        chance.choice(document["packages"])["file"] = way
    else:
        chance.choice(list(document["itemInfoEntries"].values()))["path"] = way
    _write(path, json.dumps(document).encode())
    return f"{path.name} {way!r}"


def _seal_again(folder: Path) -> str:
    """The manifest's sizes and digests made to fit what lies there now."""
    try:
        manifest = json.loads(_read(folder / "manifest.json"))
        for name, sealed in manifest["files"].items():
            path = folder / name
            if path.is_file() and not path.is_symlink() and path.stat().st_size < MOST_BYTES:
                content = _read(path)
                sealed.update(bytes=len(content), sha256=sha256(content).hexdigest())
        manifest["recipe_sha256"] = manifest["files"]["recipe.yaml"]["sha256"]
        _write(folder / "manifest.json", json.dumps(manifest).encode())
    except SPOILT:
        return "not sealed again"
    return "sealed again"


Kind = Callable[[Path, random.Random], str]
KINDS: tuple[Kind, ...] = (
    *(flip_bytes, cut, lengthen, remove, make_sparse, replace_by_other, nest_deeply),
    *(change_json, change_json, change_json, change_recipe, change_recipe, change_context, point_elsewhere),
    *(change_program, change_program, change_program, change_program),
)
