"""The functions of a decoder: its front, its layers one after another, the pick of a token, its head."""

from collections.abc import Iterator

from coreai_recipes.decoder.front import CallShape
from coreai_recipes.decoder.model import PER_LAYER_ROWS, Decoder
from coreai_recipes.export.fragments import (
    INTEGER,
    Fragment,
    Port,
    front_fragment,
    head_fragment,
    layer_fragment,
    pick_fragment,
    state_names,
)
from coreai_recipes.export.linking import Linker, Models, Numbers
from coreai_recipes.export.reporting import Signature
from coreai_recipes.export.stack_program import StackProgram, give, link_head


class DecoderProgram(StackProgram):
    """`decode`, `prefill`, and `score` where the recipe has it."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.recipe = decoder, decoder.recipe

    @property
    def functions(self) -> Iterator[str]:
        return iter(self.recipe.export.functions.queries)

    def fragments(self) -> Iterator[Fragment]:
        decoder = self.decoder
        for call in map(decoder.call, self.functions):
            yield front_fragment(decoder, call)
            yield head_fragment(decoder, call)
            yield from (layer_fragment(decoder, kind, call) for kind in decoder.front.kinds)
            yield from self.choices(call.answered, self.recipe.model.vocab_size)
            yield from _picks(decoder, call).values()

    def link(self, function: str, models: Models, linker: Linker, numbers: Numbers) -> Signature:
        decoder = self.decoder
        front, model, call = decoder.front, self.recipe.model, decoder.call(function)
        inputs = {"input_ids": Port(INTEGER, (1, call.tokens)), "position": Port(INTEGER, (1,))}
        if call.has_count:
            inputs["count"] = Port(INTEGER, (1,))
        head, fragment = head_fragment(decoder, call), front_fragment(decoder, call)
        if PER_LAYER_ROWS in fragment.inputs:
            inputs[PER_LAYER_ROWS] = fragment.inputs[PER_LAYER_ROWS]
        states = self.declare(inputs, linker)

        shared = {port_name: port_name for port_name in (*inputs, *fragment.outputs)}
        linker.append(models[fragment.name], "front_", {**shared, "x": "hidden_0"}, fragment.parameters)
        layers = {kind: layer_fragment(decoder, kind, call) for kind in front.kinds}
        picks = _picks(decoder, call)
        per_layer, x = "per_layer_inputs", "hidden_0"

        def pick_last() -> tuple[str, str]:
            """From here on only the last real token is needed."""
            for value, pick in picks.items():
                source = x if value == "hidden" else per_layer
                names = {"x": source, "y": f"{value}_last", "count": "count"}
                linker.append(models[pick.name], f"pick_{value}_", names, {})
            picks.clear()
            return "hidden_last", "per_layer_inputs_last"

        for index, kind in enumerate(model.layer_kinds):
            if picks and call.tokens_of(kind) < call.tokens:
                x, per_layer = pick_last()
            names = {
                "x": x,
                "y": f"hidden_{index + 1}",
                "slot": linker.add_integer(f"slot_{index}", decoder.slots[index]),
                "index": linker.add_integer(f"index_{index}", index),
                **{port: call.source(kind, port) for port in call.ports(kind)},
                "per_layer_inputs": per_layer,
                **state_names(front.state(kind)),
            }
            parameters = {alias: f"layers.{index}.{p}" for alias, p in layers[kind].parameters.items()}
            linker.append(models[layers[kind].name], f"layer_{index}_", names, parameters)
            x = names["y"]
        if picks:
            x, _ = pick_last()
        choices = self.choices(call.answered, model.vocab_size)
        return Signature(inputs, give(link_head(head, {"x": x}, choices, models, linker), linker), states)


def _picks(decoder: Decoder, call: CallShape) -> dict[str, Fragment]:
    """What a call picks the last real token of: the hidden state, and what the layers behind it are given."""
    if not call.picks:
        return {}
    picks = {"hidden": pick_fragment("pick", (1, decoder.recipe.model.hidden_size, 1, call.tokens))}
    per_layer = decoder.front.per_layer
    if per_layer is not None and call.sharing == "last":
        picks["per_layer_inputs"] = pick_fragment("pick_per_layer", (per_layer.layers, per_layer.size, 1, call.tokens))
    return picks
