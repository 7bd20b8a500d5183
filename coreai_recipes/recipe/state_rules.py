"""What relates the states that layers carry to how a package is written, and to a draft."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from coreai_recipes.recipe.layer_order import layer_order
from coreai_recipes.recipe.plain import Location, Problem, integer_at, mapping_at, value_at
from coreai_recipes.recipe.sizes import MAX_KINDS

HALVED = ("gated_delta", "lightning", "mamba2")  # attentions whose state may be two float16
BUFFERED = ("short_conv", *HALVED)  # those that may keep rows since a commit, and go back in them
RECURRENT = (*HALVED, "mamba1", "rg_lru")
CARRYING = ("short_conv", *RECURRENT)  # those whose state belongs to one position
AT = ("export", "buffer")


def mixers_of(kind: Any) -> list[Any]:
    """What a kind's layers mix positions by: attention, or what stands in its place, and what stands beside it."""
    found = [value_at(kind, block, "kind") for block in ("attention", "state_space")]
    return [mixer for mixer in found if mixer is not None]


def state_space_problems(at: Location, kind: Mapping[str, Any]) -> Iterator[Problem]:
    """What stands beside an attention of kind `kind`, at `at` in a recipe: an attention that keeps rows of its own."""
    if not mapping_at(kind, "state_space"):
        return
    place, code = (*at, "state_space"), "state-space-beside"
    attention = value_at(kind, "attention", "kind")
    if attention in (*CARRYING, "none"):
        yield Problem(place, code, f"a state space beside {attention}: it stands beside an attention")
    if value_at(kind, "attention", "shares_kv_with") is not None:
        yield Problem(place, code, "a state space beside an attention that reads the cache of other layers")
    if at[0] == "draft":
        yield Problem(place, code, "a draft's layers carry no state")


def state_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    rows, kinds = integer_at(recipe, "export", "buffer"), mapping_at(recipe, "model", "kinds")
    used = dict.fromkeys(layer_order(recipe, "model"))
    carrying = {name: mixer for name in used for mixer in mixers_of(kinds.get(name)) if mixer in CARRYING}
    if value_at(recipe, "export", "recurrent_state") == "two_float16":
        yield from _halves_problems({name: kind for name, kind in carrying.items() if kind in RECURRENT})
    if not rows:
        return
    if not carrying:
        yield Problem(AT, "buffer-empty", "no layer carries a state, of which a buffer keeps rows", "remove it")
    for name, kind in carrying.items():
        if kind not in BUFFERED:
            words = f"the state of `{name}`, {kind}, cannot be kept as rows since a commit"
            yield Problem(AT, "buffer-kind", words, "remove it")
    for function in ("prefill", "score"):
        query = integer_at(recipe, "export", "functions", function)
        if query and query > rows:
            yield Problem(
                AT,
                "buffer-rows",
                f"{function} takes {query} tokens per call, which do not go into {rows} rows",
                f"at least {query}",
            )


def _halves_problems(recurrent: Mapping[str, Any]) -> Iterator[Problem]:
    at = ("export", "recurrent_state")
    if not recurrent:
        yield Problem(at, "halves-empty", "no layer carries the state of a recurrence", "set it to float16")
    for name, kind in recurrent.items():
        if kind not in HALVED:
            words = f"the state of `{name}`, {kind}, cannot be two float16 yet"
            yield Problem(at, "halves-kind", words, "set it to float16")


def draft_state_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """A rejected guess must be taken out of every state again."""
    if integer_at(recipe, "export", "buffer"):
        return
    for name, kind in islice(mapping_at(recipe, "model", "kinds").items(), MAX_KINDS):
        if any(mixer in CARRYING for mixer in mixers_of(kind)):
            yield Problem(
                ("draft",),
                "draft-carries",
                f"the target's `{name}` carries a state that no guess can be taken out of",
                "set export.buffer to 64, or build it without a draft",
            )
