"""What a recipe's stacks take: the bytes of their weights by part, and of their states."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch

from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.model import PER_LAYER_TABLE, Decoder
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.primitives.experts import Experts
from coreai_recipes.storage.compression import Parameters
from coreai_recipes.storage.parameters import own_parameters

EXPERT_STACKS = ("gate_up", "down")


@dataclass(frozen=True)
class Footprint:
    """Bytes of one thing, and how they come about."""

    what: str
    bytes: int
    how: str


@singledispatch
def footprint_of(stack: StackModule) -> Iterator[Footprint]:
    """What a stack takes."""
    raise TypeError(f"nothing is known of what {type(stack).__name__} takes")


@footprint_of.register
def _(decoder: Decoder) -> Iterator[Footprint]:
    recipe, own = decoder.recipe, own_parameters([decoder])
    layers = own.below("layers.")
    for name in decoder.front.kinds:
        of_kind = [index for index, layer in enumerate(decoder.stack) if layer.kind == name]
        experts = own.below(*(f"layers.{i}.experts.{leaf}" for i in of_kind for leaf in EXPERT_STACKS))
        others = own.below(*(f"layers.{i}." for i in of_kind)).without(experts)
        yield Footprint(f"weights of `{name}`", others.bytes, f"{len(of_kind)} layers, {_forms(others)}")
        found = decoder.stack[of_kind[0]].experts
        if isinstance(found, Experts):
            yield Footprint(f"experts of `{name}`", experts.bytes, _describe_experts(found, len(of_kind), experts))
    table, raw, front = own.below("embedding.weight"), own.below(PER_LAYER_TABLE), own.below("per_layer.")
    head = own.below("head.weight")
    shape = f"{' x '.join(map(str, table.shapes['embedding.weight']))}, {_forms(table)}"
    if recipe.model.head.tied:
        yield Footprint("table, tied to the head", table.bytes, f"{shape}, stored once")
    else:
        yield Footprint("table and head", table.bytes + head.bytes, f"twice {shape}")
    around = own.without(layers, table, head, front, raw)
    yield Footprint("around the layers", around.bytes, "the last norm, and what else stands before and behind them")
    if front.shapes:
        yield Footprint("per-layer inputs", front.bytes, f"their projection and norm, {_forms(front)}")
    for rows, width in raw.shapes.values():
        read = f"read by the host, {raw.bytes // rows:,} bytes a token, never sent to the engine"
        yield Footprint("per-layer table", raw.bytes, f"{rows} x {width}, {raw.forms}, {read}")
    for name, spec in decoder.front.states.items():
        values = spec.layers * spec.num_kv_heads * spec.rows * spec.head_dim
        kept = f"a ring of {spec.rows} rows" if spec.window else f"{spec.rows} rows"
        yield Footprint(f"states of `{name}`", 4 * values, f"K and V, {spec.layers} layers, {kept}, a session's own")


def _forms(parameters: Parameters) -> str:
    """How they are stored, and how many bits that takes where it is not two bytes a weight throughout."""
    bits = parameters.bits_per_weight
    return parameters.forms if bits == 16 else f"{parameters.forms}, {bits:.2f} bits a weight"


def _describe_experts(one: Experts, layers: int, stacks: Parameters) -> str:
    each = stacks.bytes // (layers * one.num_experts)
    in_all = f"{layers} layers of {one.num_experts}, {_forms(stacks)}; a call of several tokens reads all"
    if one.gathers(1):
        return f"{in_all}, decode the {one.router.top} of its token: {layers * one.router.top * each:,} bytes"
    return f"{in_all}, and so does decode"


@footprint_of.register
def _(draft: Draft) -> Iterator[Footprint]:
    own = own_parameters([draft])
    head = own.below(f"{draft.of.prefix}head.weight")
    size = f"{draft.spec.vocab_size} x {draft.spec.hidden_size}, {_forms(head)}"
    how = f"{len(draft.stack)} layers, which read the target's states; {_forms(own.without(head))}"
    yield Footprint("weights of the draft", own.without(head).bytes, how)
    yield Footprint("head of the draft", head.bytes, size)
