"""What one call of each function multiplies, from the sizes of the modules: known before anything is converted.

Matrix products alone, a multiply-add counted as two: a projection's weights for each token, for each query the scores
over all rows of its cache, seen or not, and what they mix, and what puts tokens into a ring. A saved program has norms
and the like beside them, and a test holds the two to the same products.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import singledispatch

from torch import nn

from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.front import CallShape
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.decoder.states import StateSpec
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.primitives import delta_rule, state_space
from coreai_recipes.primitives.causal_conv import CausalConvolution
from coreai_recipes.primitives.experts import Mixture
from coreai_recipes.primitives.layer import Layer
from coreai_recipes.primitives.mixture_attention import MixtureAttention as MixtureOfHeads
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.recipe.schema import (
    Attention,
    AttentionKind,
    DifferentialAttention,
    GatedDelta,
    LatentAttention,
    Lightning,
    Mamba1,
    Mamba2,
    MixtureAttention,
)

MIXTURES = (Mixture, MixtureOfHeads)


@dataclass(frozen=True)
class Workload:
    """Floating point operations of one part of a call, by function; `how` says what it is made of."""

    what: str
    flops: dict[str, int]
    how: str


def count_workloads(stacks: Iterable[StackModule]) -> tuple[Workload, ...]:
    """The parts of each function's call: the layers of each kind and what is around them, or a draft."""
    return tuple(part for stack in stacks for part in parts_of(stack))


def saved_by_sharing(decoder: Decoder) -> int:
    """What `prefill` would multiply beside, if the layers that share a cache ran for every token."""
    call = decoder.call("prefill")
    return sum(
        layer_flops(decoder, layer, replace(call, sharing="after")) - layer_flops(decoder, layer, call)
        for layer in decoder.stack
        if decoder.front.shares(layer.kind)
    )


@singledispatch
def parts_of(stack: StackModule) -> Iterator[Workload]:
    """The parts of the calls of a stack's functions."""
    raise TypeError(f"nothing is known of what {type(stack).__name__} multiplies")


@parts_of.register
def _(decoder: Decoder) -> Iterator[Workload]:
    recipe, front = decoder.recipe, decoder.front
    queries, kinds = recipe.export.functions.queries, recipe.model.layer_kinds
    for kind in front.kinds:
        layers = [layer for layer in decoder.stack if layer.kind == kind]
        flops = {name: sum(layer_flops(decoder, layer, decoder.call(name)) for layer in layers) for name in queries}
        weights = sum(p.weight.numel() for p in layers[0].modules() if isinstance(p, Projection))
        how = f"{kinds.count(kind)} layers of {weights / 1e6:.1f} M weights"
        if front.attends(kind):
            how += f", {front.state(kind).rows} rows"
        for experts in (part for part in layers[0].modules() if isinstance(part, MIXTURES)):
            how += f", {experts.num_experts} experts of {expert_size(experts) / 1e6:.1f} M"
        if front.shares(kind):
            how += "; in prefill for the last token alone"
        yield Workload(f"`{kind}`", flops, how)
    if front.per_layer is not None:
        each = _projection_flops(front.per_layer)
        yield Workload("per-layer inputs", {name: each * size for name, size in queries.items()}, "of each token")
    if recipe.model.altup is not None:
        before, behind = _projection_flops(decoder.embedding), _projection_flops(decoder.norm)
        streams = {name: before * size + behind * (size if name == "score" else 1) for name, size in queries.items()}
        yield Workload("streams", streams, "made of the embedding, and one again before the head")
    table = 2 * Pieces(recipe.model.vocab_size).rows * recipe.model.hidden_size
    head = {name: table * (size if name == "score" else 1) for name, size in queries.items()}
    yield Workload("head", head, "of the last token; of each in score" if "score" in queries else "of the last token")


@parts_of.register
def _(draft: Draft) -> Iterator[Workload]:
    steps, name = draft.spec.steps, draft.of.key
    tokens = f"{steps} drafted tokens" if steps > 1 else "one drafted token"
    yield Workload(name, {name: steps * draft_flops(draft)}, f"{len(draft.stack)} layers, for {tokens}")


def layer_flops(decoder: Decoder, layer: Layer, call: CallShape) -> int:
    """Of one layer in a call."""
    front = decoder.front
    queries = call.tokens_of(layer.kind)
    spec = decoder.recipe.model.kinds[layer.kind].attention
    flops = _layer_flops(layer, spec, queries, call.seen_rows(layer.kind))
    beside = decoder.recipe.model.kinds[layer.kind].state_space
    flops += 0 if beside is None else _state_space_flops(beside, queries)
    flops += sum(_tail_flops(conv, queries) for conv in layer.modules() if isinstance(conv, CausalConvolution))
    flops += _low_rank_flops(decoder, layer, queries)
    writes = front.attends(layer.kind) and not front.shares(layer.kind)
    return flops + _placing_flops(front.state(layer.kind), queries) if writes else flops


def _low_rank_flops(decoder: Decoder, layer: Layer, queries: int) -> int:
    """Of an adapter that is handed in: two products beside each matrix that it may change."""
    said = decoder.recipe.export.low_rank
    if said is None:
        return 0
    shapes = {name: part.weight.shape for name, part in layer.named_modules() if type(part) is Projection}
    widths = (shapes[name][0] + shapes[name][1] for name in said.matrices if name in shapes)
    return 2 * said.rank * queries * sum(widths)


def _tail_flops(conv: CausalConvolution, queries: int) -> int:
    """Of a convolution of each channel, and of the product that picks its next tail where several tokens come."""
    _, channels, taps, _ = conv.weight.shape
    picking = 2 * (taps - 1) * (taps - 1 + queries) * channels if queries > 1 else 0
    return 2 * taps * channels * queries + picking


def _placing_flops(state: StateSpec, queries: int) -> int:
    """Of the product that puts several tokens' keys and values into the rows of a ring."""
    if state.window is None or queries == 1:
        return 0
    return 2 * state.rows * queries * 2 * state.num_kv_heads * state.head_dim


def draft_flops(draft: Draft) -> int:
    """Of one drafted token."""
    states = {layer.kind: draft.owners[draft.owner(layer.kind)] for layer in draft.stack}
    kinds = draft.spec.kinds
    layers = sum(_layer_flops(layer, kinds[layer.kind].attention, 1, states[layer.kind].rows) for layer in draft.stack)
    around = _projection_flops(draft.pre_projection) + _projection_flops(draft.post_projection)
    tokens = Pieces(draft.spec.vocab_size).rows  # those that get a logit of their own
    if draft.clusters is not None:
        tokens = draft.clusters.top * draft.clusters.ordering.shape[1]
        around += _projection_flops(draft.clusters)
    return layers + around + 2 * tokens * draft.spec.hidden_size


def _layer_flops(layer: Layer, attention: AttentionKind, queries: int, rows: int) -> int:
    attends = isinstance(attention, Attention | DifferentialAttention | LatentAttention | MixtureAttention)
    scores_and_mixing = 4 * attention.num_heads * attention.head_dim * rows if attends else 0
    experts = sum(_expert_flops(found, queries) for found in layer.modules() if isinstance(found, MIXTURES))
    rule = _delta_flops(attention, queries) if isinstance(attention, GatedDelta) else 0
    rule += _state_space_flops(attention, queries) if isinstance(attention, Lightning | Mamba2) else 0
    if isinstance(attention, Mamba1) and queries == 1:  # several tokens read their states without a product
        rule += 2 * attention.channels * attention.key_dim
    return int(queries * (_projection_flops(layer) + scores_and_mixing) + experts + rule)


def _delta_flops(spec: GatedDelta, queries: int) -> int:
    """Of the products of `delta_rule`, chunk by chunk."""
    G, H, K, V = spec.num_key_heads, spec.num_value_heads, spec.key_dim, spec.value_dim
    found = 0
    for start in range(0, queries, delta_rule.CHUNK):
        n = min(delta_rule.CHUNK, queries - start)
        found += H * 3 * 2 * V * K * n  # the state is read by keys and by queries, and corrected
        if n > 1:
            levels = (n - 1).bit_length()
            # scores, what they mix, sums of decays
            scores = (levels if spec.fades_by_column else 1) * G * 2 * 2 * n * n * K
            sums = G * (levels + 2) * 2 * n * n * K if spec.fades_by_column else H * 2 * (n**3 + 2 * n * n)
            found += scores + H * 2 * 2 * n * n * V + sums
            found += H * 2 * (levels - 1) * 2 * n**3  # the inverse
    return found


def _state_space_flops(spec: Lightning | Mamba2, queries: int) -> int:
    """Of the products of `state_space`, chunk by chunk."""
    G, H, K, V = spec.num_key_heads, spec.num_value_heads, spec.key_dim, spec.value_dim
    found = 0
    for start in range(0, queries, state_space.CHUNK):
        n = min(state_space.CHUNK, queries - start)
        found += H * 2 * 2 * V * K * n  # the state is read, and added to
        if n > 1:
            # scores, what they mix, sums of decays between tokens, since the start and to the end
            found += G * 2 * n * n * K + H * 2 * n * n * V + H * 2 * (n**3 + 2 * n * n)
    return found


def _projection_flops(module: nn.Module) -> int:
    """Of all projections of `module`, for one token."""
    return sum(
        2 * found.weight.numel() + (0 if found.bias is None else found.bias.numel())
        for found in module.modules()
        if isinstance(found, Projection)
    )


def _expert_flops(experts: Mixture | MixtureOfHeads, queries: int) -> int:
    computed = experts.top if experts.gathers(queries) else experts.num_experts
    return 2 * queries * computed * expert_size(experts)


def expert_size(experts: Mixture | MixtureOfHeads) -> int:
    """How many weights one expert has."""
    if isinstance(experts, MixtureOfHeads):
        return (experts.q.weight.numel() + experts.o.weight.numel()) // experts.num_experts
    return (experts.first.numel() + experts.down.numel()) // experts.num_experts
