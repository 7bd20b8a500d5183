"""A whole model through coreai-torch, as its documentation has it: torch.export of each function, one conversion.

It is the same Decoder that a build takes apart, with the inputs, outputs and states of the package: what it gives is
to equal a linked asset's to the bit, and what it costs is what linking saves.

    python -m bench.children.naive_coreai RECIPE CHECKPOINT ASSET KEY=VALUE...
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.torch_export import exported
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.checkpoint.open import open_checkpoint
from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.model import PER_LAYER_ROWS, Decoder, build_decoder, exported_form
from coreai_recipes.decoder.states import states_of
from coreai_recipes.primitives.cache import SharedCache, last_of
from coreai_recipes.primitives.layer_inputs import WHOLE_NUMBERS, LayerInputs
from coreai_recipes.primitives.per_layer import slice_of
from coreai_recipes.recipe import load_resolved
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.targets.coreai.convert import new_converter, quietly
from coreai_recipes.targets.coreai.rows import RowsOf

INT32, HALF = torch.int32, torch.float16


class WholeFunction(nn.Module):
    """A function of a package: all of the Decoder in float16, its states tensors that are written in place."""

    def __init__(self, decoder: Decoder, name: str) -> None:
        super().__init__()
        self.decoder, self.call = decoder, decoder.call(name)
        tokens, per_layer = self.call.tokens, decoder.recipe.model.embedding.per_layer
        self.inputs = {"input_ids": torch.ones(1, tokens, dtype=INT32), "position": torch.zeros(1, dtype=INT32)}
        if tokens > 1:
            self.inputs["count"] = torch.ones(1, dtype=INT32)
        if per_layer is not None:
            width = per_layer.size * len(decoder.recipe.model.layer_kinds)
            self.inputs[PER_LAYER_ROWS] = torch.zeros(1, tokens, width, dtype=HALF)
        self.states = {
            state: torch.zeros(spec.shape, dtype=HALF) for state, spec in states_of(decoder.front.states).items()
        }
        self.outputs = ["logits"] if decoder.recipe.draft is None else ["logits", "hidden"]

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip((*self.inputs, *self.states), given, strict=True))
        decoder, call, front = self.decoder, self.call, self.decoder.front
        count = named.get("count", torch.ones(1, dtype=INT32))
        x, seen, per_layer = front(call, named["input_ids"], named["position"], count, named.get(PER_LAYER_ROWS))
        states: dict[str, Any] = {state: RowsOf(named[state]) for state in self.states}
        rows: Any = None if per_layer is None else RowsOf(per_layer)
        picks = call.picks
        for index, layer in enumerate(decoder.stack):
            if picks and call.tokens_of(layer.kind) < call.tokens:
                x, picks = last_of(x, count), False
                rows = None if per_layer is None else RowsOf(last_of(per_layer, count))
            inputs = _in_half(seen[layer.kind])
            of_layer = None if rows is None else slice_of(rows, torch.tensor([index], dtype=INT32))
            if front.shares(layer.kind):
                spec, slot = front.state(layer.kind), torch.tensor([decoder.slots[index]], dtype=INT32)
                values = None if spec.values is None else states[spec.values]
                x = layer(x, inputs, SharedCache(states[spec.keys], values, slot), of_layer)
            else:
                x = layer(x, inputs, decoder.cache(index, states, inputs), of_layer)
        if picks:
            x = last_of(x, count)
        for state in self.states:
            named[state].copy_(states[state].value)
        if len(self.outputs) == 1:
            return (decoder.logits(x),)
        return decoder.logits(x), decoder.norm(x).squeeze(2).transpose(1, 2)


def _in_half(inputs: LayerInputs) -> LayerInputs:
    """As a layer is given them: the front computes angles and masks in float32."""
    return LayerInputs(**{n: t if n in WHOLE_NUMBERS else t.half() for n, t in inputs.ports().items()})


def filled(recipe: Recipe, checkpoint: Checkpoint) -> Decoder:
    """The recipe's Decoder as it is exported, its weights in float16 from the start."""
    decoder = build_decoder(recipe, exported_form(recipe))
    for name, binding in bind_weights(decoder, checkpoint).items():
        owner, _, leaf = name.rpartition(".")
        weight = binding.read().half().reshape(decoder.get_parameter(name).shape)
        setattr(decoder.get_submodule(owner), leaf, nn.Parameter(weight, requires_grad=False))
    return decoder


def convert_whole(decoder: Decoder, asset: Path) -> None:
    """Convert every function of the decoder's recipe at once, and save them as one asset."""
    functions = {name: WholeFunction(decoder, name) for name in decoder.recipe.export.functions.queries}
    with quietly(), torch.no_grad():
        converter = new_converter()
        for name, function in functions.items():
            converter.add_exported_program(
                exported(function, (*function.inputs.values(), *function.states.values())),
                input_names=list(function.inputs),
                state_names=list(function.states),
                output_names=function.outputs,
                entrypoint_name=name,
            )
        converter.to_coreai().save_asset(asset)


def main(name: str, checkpoint: str, asset: Path, overrides: list[str]) -> None:
    recipe = load_resolved(name, ["export.format=coreai", *overrides]).recipe
    convert_whole(filled(recipe, open_checkpoint(checkpoint)), asset)
    print(json.dumps({"bytes": sum(file.stat().st_size for file in asset.rglob("*") if file.is_file())}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
