"""What relates one field of a recipe to another, by plain data alone.

The rules read data that may be wrong elsewhere (a missing block, a word for a number), and stay silent about it: they
run beside the field checks, and so a user sees every problem at once.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from coreai_recipes.recipe.adapter_rules import adapter_problems
from coreai_recipes.recipe.compress_rules import compress_problems
from coreai_recipes.recipe.expert_rules import expert_problems, mixture_problems
from coreai_recipes.recipe.export_rules import export_problems, float32_problems, residual_problems
from coreai_recipes.recipe.format_rules import format_problems
from coreai_recipes.recipe.half_layer_rules import half_layer_problems
from coreai_recipes.recipe.host_rules import host_problems
from coreai_recipes.recipe.layer_order import layer_order
from coreai_recipes.recipe.mirroring import mirror_problems
from coreai_recipes.recipe.nearest import did_you_mean
from coreai_recipes.recipe.plain import Location, Problem, integer_at, mapping_at, value_at
from coreai_recipes.recipe.rotary_rules import rotary_problems, scaling_problems
from coreai_recipes.recipe.sizes import MAX_KINDS, MAX_LAYERS, find_size_problems
from coreai_recipes.recipe.state_rules import draft_state_problems, state_problems, state_space_problems


def find_problems(recipe: Mapping[str, Any]) -> list[Problem]:
    """Every broken rule of a recipe given as plain data."""
    problems: list[Problem] = []
    for stack in ("model", "draft"):
        for name, kind in islice(mapping_at(recipe, stack, "kinds").items(), MAX_KINDS):
            if isinstance(kind, Mapping):
                at: Location = (stack, "kinds", name)
                problems += _attention_problems(recipe, at, kind)
                problems += rotary_problems(at, kind)
                problems += scaling_problems(recipe, at, kind)
                problems += expert_problems(at, kind)
                problems += half_layer_problems(recipe, at, kind)
                problems += _residual_problems(recipe, at, kind)
                problems += mixture_problems(recipe, at, kind)
        problems += _layer_problems(recipe, stack)
    problems += _position_problems(recipe)
    problems += _draft_problems(recipe)
    problems += export_problems(recipe)
    problems += state_problems(recipe)
    problems += float32_problems(recipe)
    problems += host_problems(recipe)
    problems += format_problems(recipe)
    problems += residual_problems(recipe)
    problems += mirror_problems(recipe)
    problems += compress_problems(recipe)
    problems += adapter_problems(recipe)
    problems += find_size_problems(recipe, {stack: len(layer_order(recipe, stack)) for stack in ("model", "draft")})
    return problems


def _attention_problems(recipe: Mapping[str, Any], kind_at: Location, kind: Mapping[str, Any]) -> Iterator[Problem]:
    at: Location = (*kind_at, "attention")
    heads, kv_heads = integer_at(kind, "attention", "num_heads"), integer_at(kind, "attention", "num_kv_heads")
    if heads and kv_heads and min(heads, kv_heads) > 0 and heads % kv_heads:
        yield Problem(
            (*at, "num_kv_heads"), "heads-groups", f"{heads} heads cannot be divided among {kv_heads} KV heads"
        )
    if (
        value_at(kind, "attention", "kind") == "latent"
        and heads
        and kv_heads
        and heads > kv_heads
        and not heads % kv_heads
    ):
        yield Problem(
            (*at, "num_kv_heads"), "latent-heads", f"in latent attention, keys are made for each of {heads} heads"
        )
    if value_at(kind, "attention", "kind") == "differential" and kv_heads and kv_heads % 2:
        words = f"{kv_heads} KV heads have no two halves, whose heads are paired"
        yield Problem((*at, "num_kv_heads"), "differential-heads", words)
    values = integer_at(kind, "attention", "value_dim")
    nope_dim, rope_dim = integer_at(kind, "attention", "nope_dim"), integer_at(kind, "attention", "rope_dim")
    if values and nope_dim and rope_dim and values > nope_dim + rope_dim:
        yield Problem(
            (*at, "value_dim"),
            "value-dim",
            f"{values} is more than a head's keys have, {nope_dim + rope_dim}: one cache holds both",
        )
    window, context = integer_at(kind, "attention", "window"), integer_at(recipe, "export", "context")
    if value_at(kind, "attention", "kind") == "sliding" and window and context and window > context:
        yield Problem(
            (*at, "window"),
            "window-context",
            f"context {context} is shorter than the window {window}: the window would never slide",
            f"raise export.context to {window} or more, or use `kind: full`, which is the same within {context}",
        )
    if value_at(kind, "attention", "kind") == "short_conv":
        yield from _convolution_problems(recipe, kind_at, kind)
    if value_at(kind, "attention", "kind") == "gated_delta":
        yield from _group_problems(kind_at, kind)
        yield from _turning_problems(kind_at, kind, "a gated delta rule")
    if value_at(kind, "attention", "kind") == "lightning":
        yield from _turning_problems(kind_at, kind, "lightning attention")
    if value_at(kind, "attention", "kind") == "none":
        yield from _turning_problems(kind_at, kind, "a layer without attention")
    if value_at(kind, "attention", "kind") == "mamba2":
        yield from _group_problems(kind_at, kind)
    if value_at(kind, "attention", "kind") in ("mamba1", "mamba2"):
        yield from _turning_problems(kind_at, kind, "a state space")
    if value_at(kind, "attention", "kind") == "rg_lru":
        yield from _block_problems(kind_at, kind)
    yield from _group_problems(kind_at, kind, "state_space")
    yield from state_space_problems(kind_at, kind)
    yield from _sharing_problems(recipe, kind_at, kind)


def _convolution_problems(recipe: Mapping[str, Any], kind_at: Location, kind: Mapping[str, Any]) -> Iterator[Problem]:
    """A convolution is as wide as the hidden state, and turns nothing."""
    channels, hidden_size = (
        integer_at(kind, "attention", "channels"),
        integer_at(recipe, str(kind_at[0]), "hidden_size"),
    )
    at: Location = (*kind_at, "attention", "channels")
    if channels and hidden_size and channels != hidden_size:
        yield Problem(at, "channels-differ", f"{channels}, and hidden_size is {hidden_size}", f"write {hidden_size}")
    yield from _turning_problems(kind_at, kind, "a convolution")
    taps, context = integer_at(kind, "attention", "taps"), integer_at(recipe, "export", "context")
    if taps and context and taps > context:
        at = (*kind_at, "attention", "taps")
        yield Problem(at, "taps-context", f"{taps} taps see more than the context {context}")


def _group_problems(kind_at: Location, kind: Mapping[str, Any], block: str = "attention") -> Iterator[Problem]:
    """Each key head serves as many value heads."""
    keys, values = (integer_at(kind, block, name) for name in ("num_key_heads", "num_value_heads"))
    if keys and values and min(keys, values) > 0 and values % keys:
        at = (*kind_at, block, "num_value_heads")
        yield Problem(at, "delta-groups", f"{values} value heads cannot be divided among {keys} key heads")
    elif keys and values and keys != values and value_at(kind, block, "decay") == "channel":
        at = (*kind_at, block, "num_value_heads")
        words = f"{values} value heads share {keys} key heads, whose dimensions fade by factors of their own"
        yield Problem(at, "delta-channels", words, f"write {keys}, or `decay: head`")


def _block_problems(kind_at: Location, kind: Mapping[str, Any]) -> Iterator[Problem]:
    """Blocks are as wide as each other, and nothing turns."""
    channels, blocks = integer_at(kind, "attention", "channels"), integer_at(kind, "attention", "blocks")
    if channels and blocks and min(channels, blocks) > 0 and channels % blocks:
        at = (*kind_at, "attention", "blocks")
        yield Problem(at, "blocks-differ", f"{channels} channels cannot be divided into {blocks} blocks")
    yield from _turning_problems(kind_at, kind, "an RG-LRU")


def _residual_problems(recipe: Mapping[str, Any], at: Location, kind: Mapping[str, Any]) -> Iterator[Problem]:
    """Blocks side by side are added to the stream at once."""
    placement = value_at(kind, "placement") or value_at(recipe, str(at[0]), "placement") or "pre"
    for block in ("attention_residual", "mlp_residual"):
        is_said = any(factor != 1 for factor in mapping_at(kind, block).values())
        if str(placement).startswith("parallel") and is_said:
            words = f"attention and MLP are added to the stream at once with the placement {placement}"
            yield Problem((*at, block), "residual-parallel", words, "remove it")


def _turning_problems(kind_at: Location, kind: Mapping[str, Any], what: str) -> Iterator[Problem]:
    rotary = value_at(kind, "rotary", "kind")
    if rotary is not None and rotary != "none":
        yield Problem((*kind_at, "rotary", "kind"), "turns", f"{rotary}: {what} turns nothing", "write `none`")


def _sharing_problems(recipe: Mapping[str, Any], kind_at: Location, kind: Mapping[str, Any]) -> Iterator[Problem]:
    """Sharing is with a kind of the model, also for a kind of the draft."""
    at: Location = (*kind_at, "attention", "shares_kv_with")
    stack, _, name = kind_at
    owner_name, kinds = value_at(kind, "attention", "shares_kv_with"), mapping_at(recipe, "model", "kinds")
    if not isinstance(owner_name, str):
        return
    owner = kinds.get(owner_name)
    if not isinstance(owner, Mapping):
        yield Problem(at, "share-unknown", f"there is no kind `{owner_name}`", did_you_mean(owner_name, kinds))
        return
    if value_at(owner, "attention", "shares_kv_with") is not None:
        yield Problem(at, "share-chain", f"`{owner_name}` has no cache of its own: it shares one too")
    for field in ("kind", "num_kv_heads", "head_dim", "window"):
        ours, theirs = value_at(kind, "attention", field), value_at(owner, "attention", field)
        if ours is not None and theirs is not None and ours != theirs:
            yield Problem(
                at,
                "share-differs",
                f"{field} is {ours} here and {theirs} in `{owner_name}`: one cache cannot serve both",
            )
            break
    ours, theirs = mapping_at(kind, "rotary"), mapping_at(owner, "rotary")
    different = [key for key in ours if key in theirs and ours[key] != theirs[key]]
    if different:
        yield Problem(
            (*kind_at, "rotary", different[0]),
            "share-rotary",
            f"`{name}` reads keys that `{owner_name}` rotates with {different[0]} {theirs[different[0]]}",
            f"make both rotaries equal, or leave out {'.'.join(map(str, at[-2:]))}",
        )
    order = layer_order(recipe, "model")
    if stack == "draft":
        if order and owner_name not in order:
            yield Problem(at, "share-not-in-model", f"no layer of the model is of kind `{owner_name}`")
        return
    if order and name in order and owner_name not in order[: order.index(name)]:
        yield Problem(at, "share-order", f"no layer of kind `{owner_name}` comes before the first of `{name}`")
        return
    after = order[order.index(name) :] if name in order else []
    owns = next((n for n in after if value_at(kinds, n, "attention", "shares_kv_with") is None and n in kinds), None)
    if owns is not None:
        # in `prefill` they run for the last token alone, which a later cache would need in full
        yield Problem(
            at,
            "share-not-last",
            f"a layer of kind `{owns}` comes after it: layers that share a cache are the last ones",
        )


def _position_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Learned positions end somewhere; a head that turns and falls off with distance is no known model's."""
    width = integer_at(recipe, "model", "embedding", "width")
    if width and width == integer_at(recipe, "model", "hidden_size"):
        at: Location = ("model", "embedding", "width")
        yield Problem(at, "width-needless", f"{width} is hidden_size: there is nothing to project", "leave it out")
    count, context = (
        integer_at(recipe, "model", "embedding", "positions", "count"),
        integer_at(recipe, "export", "context"),
    )
    if count and context and context > count:
        yield Problem(
            ("export", "context"),
            "positions-context",
            f"{context} positions, and {count} are learned: the others have no rows",
            f"lower it to {count} or less",
        )
    yield from _stream_problems(recipe)
    for name, kind in islice(mapping_at(recipe, "model", "kinds").items(), MAX_KINDS):
        head, value = (integer_at(kind, "attention", name) for name in ("head_dim", "value_dim"))
        if head and value and value > head:
            yield Problem(
                ("model", "kinds", name, "attention", "value_dim"),
                "value-dim",
                f"{value} dimensions of a value, and {head} of a key: the cache has rows of head_dim",
            )
        chosen = integer_at(kind, "attention", "index_topk")
        if chosen and context and context > chosen:
            yield Problem(
                ("export", "context"),
                "indexer-context",
                f"{context} positions, and from {chosen} on an indexer chooses which keys `{name}` sees: recipes do "
                "not have it",
                f"lower it to {chosen} or less",
            )
        if mapping_at(kind, "attention", "alibi") and value_at(kind, "rotary", "kind") not in (None, "none"):
            yield Problem(
                ("model", "kinds", name, "rotary", "kind"),
                "alibi-rotary",
                "alibi needs heads without a rotary",
                "write `kind: none`, or leave out attention.alibi",
            )


def _stream_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """One of AltUp's streams is active; a residual of low rank stands between attention and MLP."""
    count, active = (integer_at(recipe, "model", "altup", name) for name in ("num_inputs", "active_idx"))
    if count and active and active >= count:
        at: Location = ("model", "altup", "active_idx")
        yield Problem(at, "altup-active", f"{active}: the {count} streams are 0 to {count - 1}")
    if integer_at(recipe, "model", "laurel_rank") is None:
        return
    for name, kind in islice(mapping_at(recipe, "model", "kinds").items(), MAX_KINDS):
        placement = value_at(kind, "placement") or value_at(recipe, "model", "placement") or "pre"
        if placement not in ("pre", "sandwich"):
            yield Problem(
                ("model", "laurel_rank"),
                "laurel-placement",
                f"it reads a norm before attention and stands behind it, and `{name}` has `placement: {placement}`",
                "write `placement: pre` or `sandwich`, or leave it out",
            )


def _draft_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    draft = mapping_at(recipe, "draft")
    if not draft:
        return
    at: Location
    for name, kind in islice(mapping_at(draft, "kinds").items(), MAX_KINDS):
        if (
            isinstance(kind, Mapping)
            and mapping_at(kind, "attention")
            and not value_at(kind, "attention", "shares_kv_with")
        ):
            yield Problem(
                ("draft", "kinds", name, "attention"),
                "draft-owns-no-cache",
                "a draft has no cache of its own: name the kind that it reads",
                "add `shares_kv_with:` with a kind of the model",
            )
        for field in ("alibi", "temperature"):
            if isinstance(kind, Mapping) and value_at(kind, "attention", field) is not None:
                yield Problem(("draft", "kinds", name, "attention", field), "draft-foreign", "a draft cannot have this")
    yield from draft_state_problems(recipe)
    if value_at(recipe, "model", "altup") is not None:
        at = ("model", "altup")
        yield Problem(at, "draft-streams", "a draft reads one stream, and cannot be built with several")
    for field in ("width", "norm", "positions"):
        if value_at(recipe, "model", "embedding", field) is not None:
            at = ("model", "embedding", field)
            yield Problem(
                at, "draft-embedding", "a draft reads the target's plain embedding, and cannot be built with this"
            )
    ours, theirs = integer_at(draft, "vocab_size"), integer_at(recipe, "model", "vocab_size")
    if ours and theirs and ours != theirs:
        yield Problem(
            ("draft", "vocab_size"),
            "draft-vocabulary",
            f"{ours} tokens here and {theirs} in the model: they must be equal",
        )
    clusters, top = integer_at(draft, "centroids", "count"), integer_at(draft, "centroids", "top")
    if ours and clusters and ours % clusters:
        at = ("draft", "centroids", "count")
        yield Problem(at, "draft-clusters", f"{ours} tokens cannot be divided among {clusters} clusters")
    if clusters and top and top > clusters:
        yield Problem(
            ("draft", "centroids", "top"), "draft-clusters-top", f"{top} of {clusters} clusters cannot be searched"
        )
    if mapping_at(recipe, "export", "functions") and integer_at(recipe, "export", "functions", "score") is None:
        yield Problem(
            ("export", "functions"),
            "draft-score",
            "`score` is missing, which verifies the draft's tokens",
            "add `score: 5`: the last token and 4 drafted ones",
        )
    steps, score = integer_at(draft, "steps"), integer_at(recipe, "export", "functions", "score")
    if steps and score and steps >= score:
        yield Problem(
            ("draft", "steps"),
            "draft-steps",
            f"{steps} tokens per call are more than the {score - 1} that `score` verifies beside the last one",
            f"at most {score - 1}, or `export.functions.score` from {steps + 1} on",
        )


def _layer_problems(recipe: Mapping[str, Any], stack: str) -> Iterator[Problem]:
    kinds, layers = mapping_at(recipe, stack, "kinds"), value_at(recipe, stack, "layers")
    if not isinstance(layers, Sequence) or isinstance(layers, str) or not kinds or len(layers) > MAX_LAYERS:
        return
    for index, entry in enumerate(layers):
        named: list[tuple[Location, Any]] = [((stack, "layers", index), entry)] if isinstance(entry, str) else []
        if isinstance(entry, Mapping) and isinstance(entry.get("of"), Sequence) and not isinstance(entry["of"], str):
            named = [((stack, "layers", index, "of", i), name) for i, name in enumerate(entry["of"])]
        for location, name in named:
            if isinstance(name, str) and name not in kinds:
                yield Problem(location, "kind-unknown", f"there is no kind `{name}`", did_you_mean(name, kinds))
    order = layer_order(recipe, stack)
    if len(order) > MAX_LAYERS:
        yield Problem((stack, "layers"), "layers-many", f"more than {MAX_LAYERS} layers")
        return
    for name in islice(kinds, MAX_KINDS):
        if name not in order:
            hint = f"use it in {stack}.layers, or remove it"
            yield Problem((stack, "kinds", name), "kind-unused", f"no layer is of kind `{name}`", hint, at_key=True)
