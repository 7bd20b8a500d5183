"""What a call of each function costs by the sizes of the modules, where no evaluator counts it in the saved program.

`flops` are those of matrix products alone; `weight_bytes` are read, `state_bytes` read and written. A test holds all
three to what is counted in Core ML's package of the same recipe.
"""

from collections.abc import Iterator, Sequence

from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.decoder.states import StateSpec
from coreai_recipes.planning.bounds import weights_read
from coreai_recipes.planning.workload import count_workloads
from coreai_recipes.storage.parameters import EMBEDDING, stored_parameters


def call_costs(stacks: Sequence[StackModule]) -> dict[str, dict[str, int]]:
    """Figures by function, as a manifest's `cost` has them."""
    workloads = count_workloads(stacks)
    names = dict.fromkeys(name for part in workloads for name in part.flops)
    flops = {name: sum(part.flops.get(name, 0) for part in workloads) for name in names}
    found = {}
    for stack in stacks:
        match stack:
            case Decoder():
                for name, tokens in stack.recipe.export.functions.queries.items():
                    found[name] = weights_read(stack, tokens), sum(_of_layers(stack, name))
            case Draft():
                owners = {stack.owner(layer.kind) for layer in stack.stack}
                read = sum(_row_bytes(state) * state.rows for name in owners for state in (stack.owners[name],))
                found[stack.of.key] = _draft_weights(stacks, stack), read
    return {
        name: {"flops": flops[name], "weight_bytes": weights, "state_bytes": states}
        for name, (weights, states) in found.items()
    }


def _of_layers(decoder: Decoder, function: str) -> Iterator[int]:
    """Bytes of K and V that each layer with a cache of its own reads and writes. What is carried is no state."""
    front, call = decoder.front, decoder.call(function)
    for layer in decoder.stack:
        if not front.attends(layer.kind) or front.shares(layer.kind):
            continue
        state, tokens = front.state(layer.kind), call.tokens_of(layer.kind)
        # a ring is written whole by a call of several tokens
        written = state.rows if state.window and tokens > 1 else tokens
        yield _row_bytes(state) * (min(call.seen_rows(layer.kind), state.rows) + written)


def _row_bytes(state: StateSpec) -> int:
    """Of one row of a layer's K and V."""
    return state.bytes // (state.layers * state.rows)


def _draft_weights(stacks: Sequence[StackModule], draft: Draft) -> int:
    """A draft's own, and the rows of the table that it embeds its tokens by."""
    table = stored_parameters(stacks).below(EMBEDDING)
    rows = draft.spec.steps * table.bytes // draft.recipe.model.vocab_size
    return stored_parameters([draft]).bytes + rows
