"""Small recipes with random weights, their packages, and words for reading what was written."""

import fcntl
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from coremltools.proto import MIL_pb2, Model_pb2
from torch import Tensor

from coreai_recipes.checkpoint.base import Checkpoint, TensorInfo
from coreai_recipes.decoder.model import Decoder, build_decoder, fill
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.export.reporting import Exported
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.parameters import stored_shape
from coreai_recipes.targets.coreml.exporter import export_package
from coreai_recipes.weights.binding import Binding

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")

# ---------------------------------------------------------------------------------------------------------- recipes


def layer_kind(
    attention: str = "full",
    rotary: Mapping[str, Any] | str = "full",
    *,
    mlp: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A kind of 4 heads over 2 KV heads; `attention_...` keywords go into the attention, others beside it."""
    sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 24}
    own = {key.removeprefix("attention_"): more.pop(key) for key in list(more) if key.startswith("attention_")}
    turn = {"kind": rotary} if isinstance(rotary, str) else dict(rotary)
    if turn["kind"] != "none":
        turn = {"theta": 10000.0, **turn}
    if turn["kind"] in ("partial", "proportional"):
        turn = {"factor": 0.5, **turn}
    seen = {"sliding": {"window": 8}, "chunked": {"chunk": 8}}.get(attention, {})
    return {
        "attention": {"kind": attention, **seen, **sizes, **own},
        "rotary": turn,
        "mlp": {"kind": "gated", "activation": "silu", "intermediate_size": 88, **(mlp or {})},
        **more,
    }


def gemma4_kinds() -> dict[str, Any]:
    """Sliding layers with experts and full ones with K = V, and layers that share the caches of both."""
    normed = {"attention_qk_norm": {"over": "head"}, "attention_v_norm": True, "attention_scale": 1.0}
    mixture = {
        "num_experts": 5,
        "intermediate_size": 28,
        "activation": "gelu_tanh",
        "router": {"kind": "softmax", "top": 2},
    }
    wide = {"attention_head_dim": 32, "attention_k_eq_v": True, **normed}
    return {
        "sliding": layer_kind("sliding", experts=mixture, **normed),
        "full": layer_kind("full", "proportional", **wide),
        "sliding_shared": layer_kind(
            "sliding", attention_shares_kv_with="sliding", mlp={"intermediate_size": 104}, **normed
        ),
        "full_shared": layer_kind("full", "proportional", attention_shares_kv_with="full", **wide),
    }


def small_recipe(
    kinds: Mapping[str, Any] | None = None,
    layers: list[Any] | None = None,
    *,
    context: int = 64,
    prefill: int = 12,
    score: int | None = None,
    **model: Any,
) -> Recipe:
    """A recipe of `kinds` (one full one by default), each used twice unless `layers` says otherwise."""
    kinds = kinds or {"full": layer_kind()}
    return Recipe.model_validate(
        {
            "recipe": 1,
            "name": "small",
            "reference": None,
            "model": {
                "vocab_size": 131,
                "hidden_size": 48,
                "norm": {"kind": "rms", "eps": 1e-5},
                "head": {"tied": True},
                **model,
                "kinds": kinds,
                "layers": layers or [{"repeat": 2, "of": list(kinds)}],
            },
            "weights": {"names": "llama"},
            "export": {"context": context, "functions": {"prefill": prefill, "score": score}},
        }
    )


# Between them: every registered attention with every registered rotary, both pairings where there are two, and every
# mechanism of a kind, of the embedding and of the head. Whole conversions are slow, so they are few.
RECIPES: dict[str, Callable[[], Recipe]] = {
    "full": lambda: small_recipe(
        {
            "plain": layer_kind(),
            "partial": layer_kind(
                rotary={"kind": "partial", "pairing": "interleaved"}, attention_bias="qkv", attention_scale=1.0
            ),
            "proportional": layer_kind(
                rotary="proportional",
                attention_qk_norm={"over": "head"},
                attention_v_norm=True,
                placement="sandwich",
                norm={"kind": "rms", "eps": 1e-6, "weight": "1+w"},
            ),
            "none": layer_kind(
                rotary="none",
                attention_bias="qkvo",
                mlp={"bias": True, "activation": "gelu_tanh"},
                norm={"kind": "layer", "eps": 1e-5},
            ),
        },
        ["plain", "partial", "plain", "proportional", "none"],
        embedding={"scale": "sqrt_hidden_size"},
        head={"tied": True, "softcap": 7.0},
    ),
    "sliding": lambda: small_recipe(
        {
            "plain": layer_kind("sliding", {"kind": "full", "pairing": "interleaved"}),
            "partial": layer_kind(
                "sliding", "partial", attention_window=5, norm={"kind": "layer", "eps": 1e-5, "bias": False}
            ),
            "proportional": layer_kind("sliding", "proportional", attention_softcap=5.0),
            "none": layer_kind("sliding", "none", norm={"kind": "rms", "eps": 1e-6, "weight": "none"}),
        },
        ["plain", "partial", "proportional", "none"],
        head={"tied": False},
    ),
    "chunked": lambda: small_recipe(
        {
            "plain": layer_kind("chunked"),
            "partial": layer_kind("chunked", "partial", attention_chunk=5),
            "proportional": layer_kind("chunked", "proportional"),
            "none": layer_kind("chunked", "none"),
        },
        ["plain", "partial", "proportional", "none"],
    ),
    "mixture": lambda: small_recipe(
        {
            "sliding": layer_kind("sliding", attention_softcap=5.0, attention_qk_norm={"over": "head"}),
            "full": layer_kind("full", {"kind": "full", "theta": 1e6, "scaling": {"kind": "linear", "factor": 8.0}}),
        },
        ["sliding", "full", "sliding"],
        score=4,
        placement="sandwich",
    ),
    "gemma4": lambda: small_recipe(
        gemma4_kinds(),
        ["sliding", "full", "sliding_shared", "full_shared"],
        score=4,
        placement="sandwich",
        layer_scalar=True,
        embedding={"scale": "sqrt_hidden_size", "per_layer": {"size": 10, "vocab_size": 131}},
    ),
}  # fmt: skip


# The dense families' mechanisms, one kind for each way in which norms and blocks are put together. Its package is held
# against torch: a whole conversion folds what it sees the values of, xielu's scalars and the norms of each head.
def dense_recipe(**more: Any) -> Recipe:
    return small_recipe(
        {
            "alibi": layer_kind(
                rotary="none",
                attention_alibi={},
                attention_bias="qkvo",
                mlp={"kind": "plain", "activation": "relu2", "bias": True},
                placement="parallel",
            ),
            "post": layer_kind(
                "sliding",
                attention_qk_norm={"over": "width"},
                attention_clip=0.7,
                mlp={"kind": "plain", "activation": "gelu"},
                placement="post",
            ),
            "two_norms": layer_kind(
                attention_qk_norm={"over": "each_head", "after_rotary": True},
                attention_temperature={"beta": 0.3, "original_context": 5},
                mlp={"activation": "relu"},
                placement="parallel_two_norms",
                norm={"kind": "layer", "eps": 1e-5, "bias": False},
            ),
            "add": layer_kind("sliding", mlp={"kind": "plain", "activation": "xielu"}, placement="add"),
            "falcon": layer_kind(
                "sliding", "none", attention_alibi={"scaled": True, "rounding": "bfloat16"}, mlp={"activation": "gelu"}
            ),
        },
        ["alibi", "post", "two_norms", "add", "falcon"],
        embedding={"width": 40, "norm": {"kind": "layer", "eps": 1e-5}, "positions": {"count": 64, "offset": 2}},
        head={"tied": False, "bias": True, "scale": 0.3},
        residual_multiplier=0.7,
        **more,
    )


# ---------------------------------------------------------------------------------------------------------- weights


class MemoryCheckpoint(Checkpoint):
    """Tensors by name; blocks of `rows_in_a_block` rows."""

    def __init__(self, tensors: Mapping[str, Tensor], rows_in_a_block: int = 7) -> None:
        self.source, self.path, self.config = "memory", Path("memory"), {}
        self.data, self.rows_in_a_block = dict(tensors), rows_in_a_block
        self.tensors = {name: TensorInfo(name, tuple(t.shape), "F32", "memory") for name, t in tensors.items()}

    def blocks(self, name: str, rows: range | None = None) -> Iterator[Tensor]:
        yield from self.data[name].split(self.rows_in_a_block)

    def digests(self) -> dict[str, str]:
        return {}

    def start_digests(self) -> Future[dict[str, str]]:
        raise NotImplementedError

    def eos_token_ids(self) -> list[int]:
        return []

    def write_tokenizer(self, folder: Path) -> None:
        raise NotImplementedError


def random_weights(recipe: Recipe, seed: int = 0) -> dict[str, Tensor]:
    """Weights that float16 holds exactly, norms around one."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in build_decoder(recipe).named_parameters():
        random = torch.randn(parameter.shape, generator=generator)
        is_norm = name.rpartition(".")[0].endswith("norm") and name.endswith("weight")
        spread = parameter.shape[1] ** -0.5 if parameter.dim() > 1 else 1.0
        weights[name] = ((1 + 0.2 * random) if is_norm else random * spread).half().float()
    return weights


def zeros_behind(weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The weight with rows of zeros behind its own, up to `shape`."""
    stored = torch.zeros(shape)
    stored[: len(weight)] = weight
    return stored


def stored_weights(recipe: Recipe) -> dict[str, Tensor]:
    """The random weights as a package stores them: what the head reads has rows of zeros behind the last token's."""
    decoder = build_decoder(recipe)
    return {name: zeros_behind(w, stored_shape(decoder, name)) for name, w in random_weights(recipe).items()}


def filled(recipe: Recipe, weights: Mapping[str, Tensor] | None = None) -> Decoder:
    """The recipe's decoder with `weights`, random ones by default."""
    weights = random_weights(recipe) if weights is None else weights
    decoder = build_decoder(recipe)
    fill(decoder, lambda name: weights[name])
    return decoder


def export(
    recipe: Recipe,
    package: Path,
    cache: FragmentCache | None = None,
    weights: Mapping[str, Tensor] | None = None,
    **more: Any,
) -> Exported:
    """The package of `recipe` as a build writes it, with random weights by default."""
    source = MemoryCheckpoint(random_weights(recipe) if weights is None else weights)
    bindings = {name: Binding(source, name, info.shape) for name, info in source.tensors.items()}
    return export_package(build_stacks(recipe), bindings, package, cache, **more)


# ---------------------------------------------------------------------------------------------------------- reading


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """`folder`, which `make(folder)` fills the first time that any worker asks for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder.with_suffix(".done")
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder


def read_model(package: Path) -> Any:
    return Model_pb2.Model.FromString((package / MODEL).read_bytes())


def block_of(model: Any, function: str) -> Any:
    found = model.mlProgram.functions[function]
    return found.block_specializations[found.opset]


def operation_types(model: Any, function: str) -> Counter[str]:
    """How many operations of each type a function has, constants aside."""
    return Counter(op.type for op in block_of(model, function).operations if op.type != "const")


def operations_with_types(model: Any, function: str) -> Counter[str]:
    """The same, with the type and shape of what each operation gives."""
    return Counter(
        f"{op.type} -> {', '.join(map(type_words, op.outputs))}"
        for op in block_of(model, function).operations
        if op.type != "const"
    )


def type_words(named: Any) -> str:
    """An output's or input's type in words, ? for an unknown dimension."""
    kind = named.type
    if kind.WhichOneof("type") == "stateType":
        return "state " + tensor_words(kind.stateType.wrappedType.tensorType)
    return tensor_words(kind.tensorType)


def tensor_words(tensor: Any) -> str:
    sizes = [str(d.constant.size) if d.WhichOneof("dimension") == "constant" else "?" for d in tensor.dimensions]
    return f"{MIL_pb2.DataType.Name(tensor.dataType).lower()}({', '.join(sizes)})"


def stored_constants(model: Any, function: str) -> Iterator[tuple[str, Any, int]]:
    """(name, type, offset) of each constant of a function that lies in weight.bin."""
    for operation in block_of(model, function).operations:
        value = operation.attributes["val"] if operation.type == "const" else None
        if value is not None and value.WhichOneof("value") == "blobFileValue":
            assert value.blobFileValue.fileName == "@model_path/weights/weight.bin"
            yield operation.outputs[0].name, operation.outputs[0].type.tensorType, value.blobFileValue.offset


def blob_digest(package: Path, offset: int) -> str:
    """sha256 of a float16 blob's values."""
    from coremltools.libmilstoragepython import _BlobStorageReader

    return hashlib.sha256(_BlobStorageReader(str(package / WEIGHTS)).read_fp16_data(offset).tobytes()).hexdigest()


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of every file under `folder`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def starts_and_counts(lengths: list[int]) -> list[tuple[int, int]]:
    """(position, count) of calls that follow each other."""
    ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    return [(start, end - start) for start, end in pairwise(ends)]
