"""What relates the states that layers carry to how a package is written, and to a draft."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from coreai_recipes.recipe.layer_order import layer_order
from coreai_recipes.recipe.plain import Problem, integer_at, mapping_at, value_at
from coreai_recipes.recipe.sizes import MAX_KINDS

CARRYING = ("short_conv", "gated_delta", "mamba1", "mamba2")  # attentions whose state belongs to one position
BUFFERED = ("short_conv", "gated_delta", "mamba2")  # those that may keep rows since a commit, and go back in them
HALVED = ("gated_delta", "mamba2")  # those whose state may be two float16
RECURRENT = ("gated_delta", "mamba1", "mamba2")
AT = ("export", "buffer")


def state_problems(recipe: Mapping[str, Any]) -> Iterator[Problem]:
    rows, kinds = integer_at(recipe, "export", "buffer"), mapping_at(recipe, "model", "kinds")
    used = dict.fromkeys(layer_order(recipe, "model"))
    carrying = {name: kind for name in used if (kind := value_at(kinds, name, "attention", "kind")) in CARRYING}
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
    if value_at(recipe, "export", "format") == "coreai":
        yield Problem(AT, "buffer-format", "an .aimodel cannot be written with a buffer yet", "remove it")


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
        if isinstance(kind, Mapping) and value_at(kind, "attention", "kind") in CARRYING:
            yield Problem(
                ("draft",),
                "draft-carries",
                f"the target's `{name}` carries a state that no guess can be taken out of",
                "set export.buffer to 64, or build it without a draft",
            )
