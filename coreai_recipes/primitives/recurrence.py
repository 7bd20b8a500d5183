"""What primitives with a recurrence have in common: heads with a matrix each, in groups that share keys."""

from coreai_recipes.primitives.buffer import HeldState, held_in
from coreai_recipes.primitives.carried import Carried, CarriedTensor
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.recipe.schema import Recurrence


def matrix_of(spec: Recurrence) -> CarriedTensor:
    """What a layer carries: the matrices of its heads, (heads, V, K)."""
    return CarriedTensor("recurrent", (spec.num_value_heads, spec.value_dim, spec.key_dim))


def held_of(spec: Recurrence, carried: Carried, given: LayerInputs) -> HeldState:
    """These matrices, as the rows that are held leave them."""
    heads = spec.num_key_heads, spec.num_value_heads // spec.num_key_heads
    sizes = (*heads, spec.value_dim, spec.key_dim)
    return held_in(carried.rows, carried.earlier_state(matrix_of(spec)), sizes, given, spec.fades_by_column)
