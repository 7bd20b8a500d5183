"""What another project's host cannot load, by plain data alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from coreai_recipes.hosts.coreai_models import MOST_POSITIONS
from coreai_recipes.recipe.layer_order import layer_order
from coreai_recipes.recipe.plain import Location, Problem, integer_at, mapping_at, value_at

AT: Location = ("export", "host")
LANES = 32  # a state's rows come in as many, and the host's mask has a column for each row
PREFILL = 64  # where a recipe says none
CALLS = {"anemll": "infer and prefill", "coreai-models": "extend and prompt_opt", "coreai-models-dynamic": "main"}
# of a window, a mask can hide the rest of a full cache
HELD = {
    "anemll": ("full",),
    "coreai-models": ("full", "sliding"),
    "coreai-models-dynamic": ("full", "sliding", "chunked", "latent", "differential", "mixture"),
}
MASKING = ("anemll", "coreai-models")  # hosts that make the mask


def host_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Why a recipe cannot be written for the host that it names; nothing where it can."""
    host = value_at(recipe, "export", "host")
    if not isinstance(host, str) or host not in CALLS:
        return
    mend = "leave out export.host"
    kinds, order = mapping_at(recipe, "model", "kinds"), dict.fromkeys(layer_order(recipe, "model"))
    shapes: dict[tuple[Any, ...], str] = {}
    for name in (name for name in order if name in kinds):
        attention = mapping_at(kinds, name, "attention")
        kind = attention.get("kind", "full")
        for wrong, what in (
            (kind not in HELD[host], f"is {kind}"),
            (attention.get("shares_kv_with") is not None, "reads the cache of another kind"),
            (attention.get("alibi") is not None and host in MASKING, "has ALiBi, which its mask does not hold"),
            (value_at(kinds, name, "state_space") is not None, "carries a state beside it"),
        ):
            if wrong:
                yield Problem(AT, "host-layers", f"{host} has a full cache for each layer, and `{name}` {what}", mend)
                break
        else:
            shapes.setdefault(tuple(attention.get(key) for key in ("num_kv_heads", "head_dim")), name)
    if len(shapes) > 1:
        said = ", ".join(f"{heads} KV heads of {size} in `{name}`" for (heads, size), name in shapes.items())
        yield Problem(AT, "host-geometry", f"{host} has one state, for caches of one shape: {said}", mend)
    if value_at(recipe, "model", "altup") is not None:
        yield Problem(AT, "host-streams", f"{host} hands one stream from part to part, and AltUp has several", mend)
    if value_at(recipe, "model", "embedding", "per_layer") is not None:
        yield Problem(AT, "host-per-layer", f"{host} hands in no rows of a per-layer table", mend)
    if recipe.get("draft") is not None:
        yield Problem(AT, "host-draft", f"{host} has no drafts", "leave out export.host, or build without a draft")
    if integer_at(recipe, "export", "functions", "score"):
        yield Problem(
            AT, "host-score", f"{host} calls {CALLS[host]} alone", "leave out export.functions.score or export.host"
        )
    chunks = value_at(recipe, "export", "chunks")
    count = chunks.get("count") if isinstance(chunks, Mapping) else chunks
    if chunks is not None and count != 1:
        yield Problem(("export", "chunks"), "host-chunks", f"{host} loads one package", "set it to 1, or " + mend)
    if value_at(recipe, "export", "cache") == "functional":
        yield Problem(("export", "cache"), "host-cache", f"{host} keeps no caches outside a state", mend)
    if value_at(recipe, "export", "table") == "host":
        yield Problem(("export", "table"), "host-table", f"{host} hands in no rows of a table", mend)
    context = integer_at(recipe, "export", "context")
    if context and context % LANES and host in MASKING:
        near = -(-context // LANES) * LANES
        yield Problem(
            ("export", "context"),
            "host-context",
            f"{context} is no multiple of {LANES}: {host} has as many columns in its mask as rows in its state",
            f"the next is {near}",
        )
    if host != "anemll" and value_at(recipe, "export", "outputs") == "ids":
        words = f"{host} chooses a token itself, of logits"
        yield Problem(("export", "outputs"), "host-outputs", words, "leave out export.outputs or export.host")
    if host == "coreai-models":
        yield from _static_problems(recipe, shapes)
    prefill = integer_at(recipe, "export", "functions", "prefill")
    if prefill == 1 and host in MASKING:
        yield Problem(("export", "functions", "prefill"), "host-prefill", f"{host} needs a prefill of 2 or more")


def _static_problems(recipe: Mapping[str, Any], shapes: Mapping[tuple[Any, ...], str]) -> Iterator[Problem]:
    """What the runner of coreai-models cannot call besides in its static form, whose caches have these `shapes`, KV
    heads and head_dim."""
    at: Location = ("export", "context")
    context = integer_at(recipe, "export", "context") or 0
    prefill = integer_at(recipe, "export", "functions", "prefill") or PREFILL
    if context % prefill:
        words = f"{context} is no multiple of {prefill}: coreai-models begins a prefill of {prefill} at its multiples"
        yield Problem(at, "host-batches", words, "change it or export.functions.prefill")
    if context > MOST_POSITIONS:
        words = f"coreai-models has positions of 16 bits, which hold {MOST_POSITIONS:,}, and not {context:,}"
        yield Problem(at, "host-positions", words, f"{MOST_POSITIONS} or less")
    sizes = [len(layer_order(recipe, "model")), *(size for shape in shapes for size in shape if isinstance(size, int))]
    if context < (largest := max(sizes)):
        words = f"coreai-models takes the largest size of a cache for its context, and {largest} is more than {context}"
        yield Problem(at, "host-largest", words, f"{largest} or more")
