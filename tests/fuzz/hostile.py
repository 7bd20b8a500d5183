"""Inputs that nobody means: good documents with something extreme in them, and noise."""

import copy
import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from family_configs import all_configs
from hypothesis import strategies as st

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "tests/checkpoints/tiny-llama"

NUMBERS = [
    *(0, -1, 1, 2, 3, 5, 7, 64, 127, 128, 4095, 65536, 2**31 - 1, 2**31, 2**32 + 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64),
    *(10**30, -(10**30), 10**400, 0.0, -0.0, 0.5, 1.5, 1e-320, 1e-45, 1e38, 1e39, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf")),
]
WORDS = [
    *(
        "",
        " ",
        "x",
        "full",
        "sliding",
        "null",
        "true",
        "1e3",
        "0x10",
        "a" * 5000,
        "../../etc",
        "/dev/zero",
        "~nosuchuser",
    ),
    *("\x1b[2J", "\u202e", "\ud800", "\0", "a\nb", "é" * 300, "{}", "[", "llama", "gemma4", "sqrt_hidden_size", "none"),
]
NESTED: list[Any] = [
    *([], {}, [[]], [{}], [None], {"kind": "full"}, {"kind": "nosuch"}, {"": None}, {"a": {"b": {"c": []}}}),
    *(
        [0] * 3,
        ["full"] * 300,
        [1] * 5000,
        list(range(100)),
        {"kind": None, "factor": 0.25},
        {str(i): i for i in range(50)},
    ),
]
EXTREMES = st.sampled_from([*NUMBERS, *NUMBERS, *WORDS, *NESTED, None, True, False])
RENAMED = st.sampled_from(
    ["", "x", "kind", "extends", "like", "a" * 3000, "\x1b", "é", "0", "<<", "a.b", "rope_parameters"]
)


def paths(tree: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document, its top left out."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, value in items for path in ((*here, key), *paths(value, (*here, key)))]


PLAUSIBLE = st.sampled_from([*range(1, 9), *(2**power for power in range(4, 21)), 100, 1000, 10**5, 0.25, 1e-6, 1e6])


@st.composite
def resized(draw: st.DrawFn, bases: st.SearchStrategy[Any]) -> Any:
    """A good document with a few other numbers that could be meant: it is often taken, and what it costs is tried."""
    tree = copy.deepcopy(draw(bases))
    for path in draw(st.lists(st.sampled_from(paths(tree)), min_size=1, max_size=8)):
        *above, key = path
        holder = tree
        for step in above:
            holder = holder[step]
        if type(holder[key]) in (int, float):
            number = draw(st.one_of(PLAUSIBLE, PLAUSIBLE.map(lambda factor: holder[key] * factor)))  # noqa: B023
            holder[key] = type(holder[key])(number)
    return tree


@st.composite
def mutated(draw: st.DrawFn, bases: st.SearchStrategy[Any], most: int = 2) -> Any:
    """A good document in which some places are extreme, gone, renamed, doubled, or what another place holds."""
    tree = copy.deepcopy(draw(bases))
    for _ in range(draw(st.integers(1, most))):
        places = paths(tree)
        if not places:
            break
        *above, key = draw(st.sampled_from(places))
        holder = tree
        for step in above:
            holder = holder[step]
        way = draw(st.sampled_from(["extreme"] * 4 + ["scaled"] * 4 + ["gone", "renamed", "moved", "added"]))
        if way == "extreme":
            holder[key] = copy.deepcopy(draw(EXTREMES))
        elif way == "scaled" and isinstance(holder[key], int | float):
            holder[key] = holder[key] * draw(st.sampled_from([2, 3, 4, 10, 1000, 10**6, 10**9, -1, 0, 0.5]))
        elif way == "gone":
            del holder[key]
        elif way == "renamed" and isinstance(holder, dict):
            holder[draw(RENAMED)] = holder.pop(key)
        elif way == "moved":
            *_, other = draw(st.sampled_from(places))
            holder[key] = copy.deepcopy(holder.get(other) if isinstance(holder, dict) else draw(EXTREMES))
        elif isinstance(holder, dict):
            holder[draw(RENAMED)] = copy.deepcopy(draw(EXTREMES))
        else:
            holder.extend([holder[key]] * draw(st.sampled_from([1, 10, 1000])))
    return tree


@st.composite
def torn(draw: st.DrawFn, content: st.SearchStrategy[bytes]) -> bytes:
    """Bytes of which some are others, missing, doubled or cut off; most often none."""
    data = bytearray(draw(content))
    for _ in range(draw(st.sampled_from([0] * 7 + [1, 2, 5]))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        way = draw(st.sampled_from(["byte", "cut", "gone", "doubled", "noise"]))
        if way == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif way == "cut":
            del data[at:]
        elif way == "gone":
            del data[at : at + draw(st.integers(1, 40))]
        elif way == "doubled":
            data[at:at] = data[at : at + 200]
        else:
            data[at:at] = draw(st.binary(max_size=12))
    return bytes(data)


@cache
def built_in() -> list[Any]:
    """The built-in recipes as plain data."""
    from coreai_recipes.recipe import load_resolved

    names = sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.yaml"))
    return [load_resolved(name).data for name in names] + [{"extends": "tiny-llama", "name": "mine", "model": {}}]


def as_yaml(tree: Any) -> bytes:
    """Plain YAML, whatever is in it."""
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, default_flow_style=None)
    return text.encode("utf-8", "surrogatepass")


YAML_TRICKS = [
    b"a: &a [1]\n" + b"".join(b"%c: &%c [*%c, *%c, *%c, *%c]\n" % (c + 1, c + 1, c, c, c, c) for c in range(97, 118)),
    b"name: x\nname: y\n",
    b"model: &m {kinds: *m}\n",
    b"<<: {recipe: 1}\n",
    b"recipe: !!python/object/apply:os.system ['true']\n",
    b"\txx: 1\n",
    b"? [a]\n: 1\n",
    b"---\nrecipe: 1\n---\nrecipe: 1\n",
    b"%YAML 9.9\n---\n",
    b"x: " + b"[" * 3000 + b"\n",
    b"x: " + b"{a: " * 900 + b"\n",
    b"x: |\n" + b"  a\n" * 30000,
    b"x: 'a\n",
    b"x: 2026-01-01\ny: 0o7\nz: 1_000\nw: 190:20:30\n",
    b"\xef\xbb\xbfrecipe: 1\n",
    "recipe: 1".encode("utf-16"),
]


@st.composite
def recipes(draw: st.DrawFn) -> bytes:
    """The text of a recipe."""
    if draw(st.integers(0, 9)) == 0:
        trick = draw(st.sampled_from(YAML_TRICKS))
        whole = as_yaml(draw(st.sampled_from(built_in())))
        return draw(st.sampled_from([trick, trick + whole, whole + trick]))
    bases = st.sampled_from(built_in())
    whole = st.one_of(resized(bases), mutated(bases)).map(as_yaml)
    return draw(st.one_of(whole, whole, torn(whole)))


@st.composite
def overrides(draw: st.DrawFn) -> str:
    """KEY=VALUE of --set."""
    tree = draw(st.sampled_from(built_in()))
    path = draw(st.sampled_from(paths(tree)))
    key = ".".join(map(str, path))
    value = draw(EXTREMES)
    shown = yaml.safe_dump(value, default_flow_style=True, width=10**9).strip().removesuffix("...").strip()
    return draw(
        st.sampled_from([f"{key}={shown}", f"{key}.x={shown}", f"{key}", f"={shown}", f"{key}={value}", f"{key}=["])
    )


@cache
def configs() -> list[dict[str, Any]]:
    """A config of every family, and the parts of larger models."""
    found = [config for config in all_configs().values() if isinstance(config, dict)]
    parts = [{"model_type": "gemma3", "text_config": found[0], "vision_config": {"hidden_size": 8}}]
    return [*found, *parts, json.loads((TINY / "config.json").read_text())]


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def config_files() -> st.SearchStrategy[bytes]:
    """The bytes of a config.json."""
    tricks = [
        b"[" * 100_000,
        b'{"a":' * 3000,
        b'{"model_type": "llama", "hidden_size": ' + b"9" * 5000 + b"}",
        b"null",
        b"{}",
    ]
    bases = st.sampled_from(configs())
    documents = st.one_of(resized(bases), mutated(bases)).map(as_json)
    return st.one_of(documents, documents, torn(documents), st.sampled_from(tricks))


def safetensors_files() -> st.SearchStrategy[bytes]:
    """The bytes of a safetensors file: a header with something extreme in it, its length as it should be or not."""
    whole = (TINY / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def assemble(tree: Any, claimed: int | None, kept: int) -> bytes:
        text = as_json(tree)
        return struct.pack("<Q", (len(text) if claimed is None else claimed) % 2**64) + text + data[:kept]

    lengths = st.one_of(
        st.none(), st.none(), st.none(), st.sampled_from([0, 1, 7, 10**6, 10**8, 2**40, 2**63, 2**64 - 1])
    )
    kept = st.sampled_from([len(data), len(data), len(data), 0, 1, len(data) - 1])
    files = st.builds(assemble, mutated(st.just(header)), lengths, kept)
    return st.one_of(files, files, torn(files))


def index_files() -> st.SearchStrategy[bytes]:
    """The bytes of an index of shards."""
    whole = (TINY / "model.safetensors").read_bytes()
    names = json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])
    names.pop("__metadata__", None)
    tree = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    return torn(mutated(st.just(tree)).map(as_json))


GGUF_TYPES: dict[int, Callable[[Any], bytes]] = {
    4: lambda value: struct.pack("<I", int(value) % 2**32),
    5: lambda value: struct.pack("<i", (int(value) + 2**31) % 2**32 - 2**31),
    6: lambda value: struct.pack("<f", value if abs(value) < 1e38 else float("inf")),
    7: lambda value: bytes([int(bool(value)) % 256]),
    8: lambda value: gguf_string(value),
    10: lambda value: struct.pack("<Q", int(value) % 2**64),
}


def gguf_string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def gguf_value(value: Any) -> bytes:
    """A value with the number of its type before it."""
    if isinstance(value, bool):
        return struct.pack("<I", 7) + GGUF_TYPES[7](value)
    if isinstance(value, int):
        return struct.pack("<I", 4 if 0 <= value < 2**32 else 10) + GGUF_TYPES[4 if 0 <= value < 2**32 else 10](value)
    if isinstance(value, float):
        return struct.pack("<I", 6) + GGUF_TYPES[6](value)
    if isinstance(value, list):
        kinds = {str: 8, bool: 7, int: 5, float: 6}
        kind = kinds.get(type(value[0]), 4) if value else 4
        same = [each for each in value if kinds.get(type(each), 4) == kind and each is not None]
        if kind == 4:
            return struct.pack("<IIQ", 9, 4, 0)
        return struct.pack("<IIQ", 9, kind, len(same)) + b"".join(map(GGUF_TYPES[kind], same))
    return struct.pack("<I", 8) + gguf_string(value if isinstance(value, str) else json.dumps(value))


def gguf_bytes(tree: dict[str, Any], version: int = 3) -> bytes:
    """A GGUF file: `pairs` of metadata, and `tensors` as [name, shape, type, offset]."""
    pairs, tensors = tree.get("pairs"), tree.get("tensors")
    pairs = pairs if isinstance(pairs, dict) else {}
    tensors = (
        [each for each in tensors if isinstance(each, list) and len(each) == 4] if isinstance(tensors, list) else []
    )
    content = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    for key, value in pairs.items():
        content += gguf_string(str(key)) + gguf_value(value)
    for name, shape, kind, offset in tensors:
        sizes = [size if isinstance(size, int) else 3 for size in (shape if isinstance(shape, list) else [shape])][:9]
        numbers = [number if isinstance(number, int) else 1 for number in (kind, offset)]
        content += gguf_string(str(name)) + struct.pack("<I", len(sizes))
        content += b"".join(struct.pack("<Q", size % 2**64) for size in sizes)
        content += struct.pack("<IQ", numbers[0] % 2**32, numbers[1] % 2**64)
    return content + bytes(-len(content) % 32) + bytes(40_000)


@cache
def gguf_trees() -> list[dict[str, Any]]:
    """Small models of some architectures, whole but for what their weights are."""
    found = []
    for architecture in ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gemma4", "qwen3moe", "gpt-oss"):
        sizes = {"block_count": 1, "context_length": 64, "embedding_length": 32, "feed_forward_length": 32}
        heads = {"attention.head_count": 2, "attention.head_count_kv": 1, "attention.layer_norm_rms_epsilon": 1e-5}
        more = {"rope.freq_base": 1e4, "attention.key_length": 16, "attention.value_length": 16, "vocab_size": 48}
        tokens = [f"t{number}" for number in range(48)]
        pairs: dict[str, Any] = {"general.architecture": architecture, "general.alignment": 32}
        pairs |= {f"{architecture}.{key}": value for key, value in (sizes | heads | more).items()}
        pairs |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": ["t 1", "t 2"],
        }
        pairs |= {
            "tokenizer.ggml.token_type": [1] * 48,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.pre": "llama-bpe",
        }
        shapes = {"token_embd": [32, 48], "output_norm": [32], "blk.0.attn_norm": [32], "blk.0.ffn_norm": [32]}
        shapes |= {
            "blk.0.attn_q": [32, 32],
            "blk.0.attn_k": [32, 16],
            "blk.0.attn_v": [32, 16],
            "blk.0.ffn_up": [32, 32],
        }
        shapes |= {"blk.0.attn_output": [32, 32], "blk.0.ffn_gate": [32, 32], "blk.0.ffn_down": [32, 32]}
        tensors, offset = [], 0
        for name, shape in shapes.items():
            tensors.append([f"{name}.weight", shape, 0, offset])
            offset += 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        found.append({"pairs": pairs, "tensors": tensors})
    return found


def gguf_files() -> st.SearchStrategy[bytes]:
    """The bytes of a GGUF file."""
    versions = st.sampled_from([3, 3, 3, 3, 2, 1, 0, 4, 2**24 * 3])
    bases = st.sampled_from(gguf_trees())
    files = st.builds(gguf_bytes, st.one_of(resized(bases), mutated(bases)), versions)
    return st.one_of(files, files, torn(files))
