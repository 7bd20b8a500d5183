"""How large the sizes of a recipe may be, each and multiplied with others: checked before anything is allocated.

Every bound is several times what a released model has, which stands beside it; a number beyond it is a mistake, and
would take all memory before it is seen to be one.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from math import prod
from typing import Any

from coreai_recipes.recipe.plain import Location, Problem, integer_at, mapping_at, value_at

MAX_KINDS = 64
MAX_LAYERS = 1024  # Llama 3.1 405B: 126
MAX_VOCABULARY = 1 << 20  # Gemma: 262,144
MAX_HIDDEN_SIZE = 1 << 16  # Nemotron 4 340B: 18,432
MAX_INTERMEDIATE_SIZE = 1 << 18  # Nemotron 4 340B: 73,728
MAX_HEADS = 1024  # DeepSeek V3: 128
MAX_HEAD_DIM = 2048  # Gemma 4: 512
MAX_EXPERTS = 4096  # Qwen3-Next: 512
MAX_PER_LAYER = 4096  # Gemma 4: 256
MAX_STREAMS = 64  # Gemma 3n: 4
MAX_CONTEXT = 1 << 20
MAX_BLOCK = 1 << 16  # weights of a channel with one scale
MAX_GROUP = 256  # channels with one palette, which are held at once; coremltools takes 16 to 32
FEWEST_TOKENS, MOST_TOKENS = 512, 1 << 20  # of a text that weights are fitted to
MOST_STEPS = 10_000  # of tuning
MAX_ISLANDS = 16  # of float32
MAX_RULES = 4096  # of `compress`: each is tried for every parameter
MAX_ADAPTERS = 64
MAX_RANK = 1024  # of an adapter that is not merged
MAX_LOW_RANK = 64  # matrices of a layer that it changes
MAX_TOKENS = 4096  # of a call
MAX_BUFFER = 1024  # rows since the last commit
MAX_CHUNKS = 64  # packages of a model; a process loads about 128 programs
MAX_CHUNK_BYTES = 1 << 40

MAX_LAST_AXIS = 1 << 14  # of what a program computes: the engine of M1 to M3 takes no more
MAX_WIDTH = 1 << 18  # of all heads together; DeepSeek V3: 24,576
MAX_LAYER = 1 << 38  # weights of a layer's experts; Kimi K2: 1.7e10
MAX_TABLE = 1 << 34  # numbers of a table; Gemma 4 31B: 1.4e9, E4B's second one: 2.8e9
MAX_MASK = 1 << 26  # entries: every position of the context beside every token of a call, and for each head under alibi


def find_size_problems(recipe: Mapping[str, Any], layers: Mapping[str, int]) -> Iterator[Problem]:
    """Products of sizes that are too large; `layers` says how many there are in the model and in the draft."""
    for stack in ("model", "draft"):
        hidden_size = integer_at(recipe, stack, "hidden_size")
        for name, kind in islice(mapping_at(recipe, stack, "kinds").items(), MAX_KINDS):
            at: Location = (stack, "kinds", name)
            yield from _width_problems(at, kind)
            yield from _expert_problems(at, kind, hidden_size)
    yield from _table_problems(recipe, layers["model"])
    yield from _mask_problems(recipe)


def _width_problems(at: Location, kind: Any) -> Iterator[Problem]:
    attention = mapping_at(kind, "attention")
    heads, head_dim, value_dim = (integer_at(attention, name) for name in ("num_heads", "head_dim", "value_dim"))
    nope_dim, rope_dim = integer_at(attention, "nope_dim"), integer_at(attention, "rope_dim")
    each = head_dim or max((nope_dim or 0) + (rope_dim or 0), value_dim or 0)
    top = integer_at(kind, "attention", "router", "top")
    if top is not None:  # of a mixture's query heads each KV head has one for each expert
        heads = _product(integer_at(attention, "num_kv_heads"), top)
    found = _product(heads, each)
    if found > MAX_WIDTH:
        name = "num_heads" if top is None else "num_kv_heads"
        yield _too_large((*at, "attention", name), f"{heads} heads of {each}", found, MAX_WIDTH)


def _expert_problems(at: Location, kind: Any, hidden_size: int | None) -> Iterator[Problem]:
    for block in ("mlp", "experts"):
        count, width = integer_at(kind, block, "num_experts"), integer_at(kind, block, "intermediate_size")
        found = 3 * _product(count, width, hidden_size)
        if found > MAX_LAYER:
            words = f"{count} experts of 3 x {width} x {hidden_size} weights"
            yield _too_large((*at, block, "num_experts"), words, found, MAX_LAYER)
    count, heads, head_dim = (
        integer_at(kind, "attention", name) for name in ("num_experts", "num_kv_heads", "head_dim")
    )
    found = 2 * _product(count, heads, head_dim, hidden_size)
    if found > MAX_LAYER:
        words = f"{count} experts of 2 x {heads} heads of {head_dim} x {hidden_size} weights"
        yield _too_large((*at, "attention", "num_experts"), words, found, MAX_LAYER)
    shared = mapping_at(kind, "mlp", "shared")
    count, width = integer_at(shared, "count"), integer_at(shared, "intermediate_size")
    if _product(count, width) > MAX_INTERMEDIATE_SIZE:
        words = f"{count} shared experts of {width}"
        yield _too_large((*at, "mlp", "shared", "count"), words, _product(count, width), MAX_INTERMEDIATE_SIZE)


def _table_problems(recipe: Mapping[str, Any], layers: int) -> Iterator[Problem]:
    for stack in ("model", "draft"):
        tokens, hidden_size = integer_at(recipe, stack, "vocab_size"), integer_at(recipe, stack, "hidden_size")
        found = _product(tokens, hidden_size)
        if found > MAX_TABLE:
            yield _too_large((stack, "vocab_size"), f"{tokens} rows of {hidden_size}", found, MAX_TABLE)
    table = mapping_at(recipe, "model", "embedding", "per_layer")
    rows, size = integer_at(table, "vocab_size"), integer_at(table, "size")
    found = _product(rows, size, layers)
    if found > MAX_TABLE:
        words = f"{rows} rows of {size} for each of {layers} layers"
        yield _too_large(("model", "embedding", "per_layer", "size"), words, found, MAX_TABLE)


def _mask_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    context = integer_at(recipe, "export", "context")
    if context is None or context < 1:
        return
    longest, function = max(
        (integer_at(recipe, "export", "functions", name) or default, name)
        for name, default in (("prefill", 64), ("score", 0))
    )
    said = integer_at(recipe, "export", "functions", function) is not None
    at: Location = ("export", "functions", function) if said else ("export", "context")
    if context * longest > MAX_MASK:
        words = f"a mask of {context} positions for each of {longest} tokens of a call"
        yield _too_large(at, words, context * longest, MAX_MASK)
        return
    for name, kind in islice(mapping_at(recipe, "model", "kinds").items(), MAX_KINDS):
        heads = integer_at(kind, "attention", "num_heads") or 0
        if value_at(kind, "attention", "alibi") is not None and heads * context * longest > MAX_MASK:
            words = f"with alibi a mask of {context} positions for each of {longest} tokens and {heads} heads"
            yield _too_large(("model", "kinds", name, "attention", "alibi"), words, heads * context * longest, MAX_MASK)


def _product(*sizes: int | None) -> int:
    """0 where one is not said, or is no size that could stand by itself."""
    return prod(size if size is not None and 0 < size <= MAX_VOCABULARY else 0 for size in sizes)


def _too_large(at: Location, words: str, found: int, most: int) -> Problem:
    return Problem(at, "too-large", f"{words}: {found:,} in all, more than {most:,}")
