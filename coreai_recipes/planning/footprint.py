"""What a recipe's stacks take: the bytes of their weights by part, and of their states."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch
from itertools import groupby

from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.low_rank import low_rank_specs
from coreai_recipes.decoder.model import PER_LAYER_TABLE, Decoder
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.decoder.states import state_specs
from coreai_recipes.primitives.experts import Experts
from coreai_recipes.storage.chunks import Chunk
from coreai_recipes.storage.compression import Parameters
from coreai_recipes.storage.parameters import EMBEDDING, own_parameters

EXPERT_STACKS = ("gate_up", "up", "down")


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
        mixture = decoder.stack[of_kind[0]].experts
        if isinstance(mixture, Experts):
            yield Footprint(f"experts of `{name}`", experts.bytes, _describe_experts(mixture, len(of_kind), experts))
    table, raw, front = own.below(EMBEDDING), own.below(PER_LAYER_TABLE), own.below("per_layer.")
    head = own.below("head.weight")
    shape = f"{' x '.join(map(str, table.shapes[EMBEDDING]))}, {_forms(table)}"
    if recipe.model.head.tied and recipe.export.table == "package":
        yield Footprint("table, tied to the head", table.bytes, f"{shape}, stored once")
    elif recipe.export.table == "host":
        rows, width = table.shapes[EMBEDDING]
        rows_as = table.compression.row_storage(EMBEDDING, (rows, width))
        size = rows_as.bytes((rows, width))
        how = f"{rows} x {width}, {rows_as}, read by the host, {size // rows:,} bytes a token, never sent to the engine"
        yield Footprint("table", size, how)
        own_head = table if recipe.model.head.tied else head
        yield Footprint("head", own_head.bytes, f"of {rows} tokens, {_forms(own_head)}")
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
        kept = f"a ring of {spec.rows} rows" if spec.window else f"{spec.rows} rows"
        yield Footprint(f"states of `{name}`", spec.bytes, f"K and V, {spec.layers} layers, {kept}, a session's own")
    for name, carried in decoder.front.carried.items():
        shape = " x ".join(map(str, carried.shape))
        how = f"{carried.role} of {carried.layers} layers, {shape}, from call to call, a session's own"
        yield Footprint(f"`{name}`", carried.bytes, how)
    for name, specs in groupby(low_rank_specs(recipe), lambda spec: spec.kind):
        found = list(specs)
        matrices = ", ".join(spec.matrix for spec in found)
        how = f"A and B of {matrices}, {len(found[0].layers)} layers, rank {found[0].rank}, handed in with each call"
        yield Footprint(f"adapter of `{name}`", sum(spec.bytes for spec in found), how)
    for name, buffer in decoder.front.row_buffers.items():
        shape = " x ".join(map(str, buffer.shape))
        how = f"rows since the last commit of {buffer.layers} layers, {shape}, a session's own"
        yield Footprint(f"`{name}`", buffer.bytes, how)


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


def packages_footprint(chunks: Sequence[Chunk]) -> Iterator[Footprint]:
    """What each of several packages takes: their weights, with those that two of them hold."""
    if len(chunks) == 1:
        return
    held: set[str] = set()
    for chunk in chunks:
        parameters = chunk.parameters
        what = [f"layers {chunk.first} to {chunk.end - 1}"] if chunk.first < chunk.end else []
        what += ["the head"] if chunk.answers else []
        what += ["the draft"] if chunk.drafts else []
        again = parameters.below(*(held & parameters.shapes.keys())) if held & parameters.shapes.keys() else None
        more = f"; {again.bytes:,} bytes of them once more: `export.table: host` spares these" if again else ""
        held |= parameters.shapes.keys() & {EMBEDDING}
        if chunk.handed:
            owners = " and ".join(map(str, sorted({*chunk.handed.values()})))
            more += f"; the caches of layers {owners} come with each call, {_handed_bytes(chunk):,} bytes"
        yield Footprint(f"package {chunk.number} of {chunk.count}", parameters.bytes, f"{' and '.join(what)}{more}")


def _handed_bytes(chunk: Chunk) -> int:
    """Of the keys and values of other packages' layers that a package is given with each call."""
    specs, kinds = state_specs(chunk.recipe), chunk.recipe.model.layer_kinds
    return sum(specs[kinds[owner]].bytes // specs[kinds[owner]].layers for owner in {*chunk.handed.values()})


@footprint_of.register
def _(draft: Draft) -> Iterator[Footprint]:
    own = own_parameters([draft])
    head = own.below(f"{draft.of.prefix}head.weight")
    size = f"{draft.spec.vocab_size} x {draft.spec.hidden_size}, {_forms(head)}"
    how = f"{len(draft.stack)} layers, which read the target's states; {_forms(own.without(head))}"
    yield Footprint("weights of the draft", own.without(head).bytes, how)
    yield Footprint("head of the draft", head.bytes, size)
