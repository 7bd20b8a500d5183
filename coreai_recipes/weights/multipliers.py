"""What a model multiplies by numbers of its config, as factors of its weights (Falcon-H1).

A number before a projection is a factor of its weight, one behind it of its bias too. What a state space's convolution
reads is multiplied by the taps, whose channels are values, keys and queries in this order.
"""

from coreai_recipes.recipe.schema import Attention, GatedMLP, LayerKind, Mamba2

Multiplier = float | tuple[tuple[int, float], ...]


def multiplier_of(kind: LayerKind, parts: list[str]) -> Multiplier:
    """By what the parameter `parts` of a layer of this kind is multiplied: a number, or one for each run of rows."""
    block, owner, leaf = parts[0], ".".join(parts[1:-1]), parts[-1]
    if block == "mlp" and isinstance(kind.mlp, GatedMLP):
        return {"gate": kind.mlp.multipliers.gate, "down": kind.mlp.multipliers.output}.get(owner, 1.0)
    mixer = kind.state_space if block == "state_space" else kind.attention
    if isinstance(mixer, Mamba2):
        return _of_state_space(mixer, owner, leaf)
    if block == "attention" and isinstance(mixer, Attention):
        return _of_attention(mixer, owner, leaf)
    return 1.0


def _of_attention(spec: Attention, owner: str, leaf: str) -> float:
    said = spec.multipliers
    read = said.input if leaf == "weight" else 1.0
    return {"q": read, "k": read * said.key, "v": read, "o": said.output}.get(owner, 1.0)


def _of_state_space(spec: Mamba2, owner: str, leaf: str) -> Multiplier:
    said = spec.multipliers
    if owner == "conv":
        values, keys = spec.num_value_heads * spec.value_dim, spec.num_key_heads * spec.key_dim
        runs = (values, said.values), (keys, said.keys), (keys, said.queries)
        return runs if leaf == "weight" and any(number != 1.0 for _, number in runs) else 1.0
    read = said.input if leaf == "weight" else 1.0
    of_rest = {"gate": read * said.gate, "mixed": read, "step": read * said.step, "last": said.output}
    return of_rest.get(owner, 1.0)
