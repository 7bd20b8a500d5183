"""A package as coremltools alone would make it: each function traced and converted whole, then save_multifunction."""

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from programs import zeros_behind
from torch import Tensor, nn

from coreai_recipes.decoder.model import Decoder
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.primitives.cache import Cache, SharedCache, last_of
from coreai_recipes.primitives.per_layer import slice_of
from coreai_recipes.storage.parameters import stored_shape
from coreai_recipes.targets.coreml.convert import REMOVED_PASSES
from coreai_recipes.targets.coreml.indices import narrow_indices


class WholeFunction(nn.Module):
    """One function of the package over a filled decoder, its states as buffers."""

    def __init__(self, decoder: Decoder, function: str) -> None:
        super().__init__()
        self.decoder, self.function = decoder, function
        for name, state in decoder.make_states().items():
            self.register_buffer(name, state)

    def forward(self, input_ids: Tensor, position: Tensor, *given: Tensor) -> Tensor:
        """`given` are the count, except for decode, and the rows of the per-layer table where there is one."""
        decoder, call, rest = self.decoder, self.decoder.call(self.function), list(given)
        count = torch.ones(1, dtype=torch.int32) if self.function == "decode" else rest.pop(0)
        x, inputs, per_layer = decoder.front(call, input_ids, position, count, rest[0] if rest else None)
        alone = False  # whether only the last real token is left
        for index, layer in enumerate(decoder.stack):
            shares, spec = decoder.front.shares(layer.kind), decoder.front.state(layer.kind)
            if shares and call.sharing == "last" and not alone:
                x, alone = last_of(x, count), True
                per_layer = None if per_layer is None else last_of(per_layer, count)
            of_kind, slot = inputs[layer.kind], torch.tensor([decoder.slots[index]], dtype=torch.int32)
            keys, values = getattr(self, spec.keys), getattr(self, spec.values) if spec.values else None
            cache: Cache = SharedCache(keys, values, slot)
            if not shares:
                cache = of_kind.cache(keys, values, slot)
            of_layer = None if per_layer is None else slice_of(per_layer, torch.tensor([index]))
            x = layer(x, of_kind, cache, of_layer)
        if self.function == "prefill" and not alone:
            x = last_of(x, count)
        tied, pieces = decoder.recipe.model.head.tied, Pieces(decoder.recipe.model.vocab_size)
        table = decoder.embedding.weight[..., None, None] if tied else decoder.head.weight
        biases = () if decoder.head.bias is None else (decoder.head.bias,)
        return decoder.head.in_pieces(decoder.norm(x), (pieces.count,), (table,), biases)


def convert_whole(decoder: Decoder, folder: Path) -> Path:
    """The package of a filled decoder, converted whole by coremltools and combined by its save_multifunction.

    Of its checks after each pass, half of the time, those that are strict are kept.
    """
    from coremltools.converters.mil.mil import Program

    validate = Program.validate

    def validate_when_strict(program: Any, check_essential_scope: bool = False) -> None:
        if check_essential_scope:
            validate(program, check_essential_scope=True)

    with patch.object(Program, "validate", validate_when_strict):
        return _convert_whole(decoder, folder)


def _convert_whole(decoder: Decoder, folder: Path) -> Path:
    import coremltools as ct
    from coremltools.models.utils import MultiFunctionDescriptor, save_multifunction

    logging.getLogger("coremltools").setLevel(logging.ERROR)
    for name, parameter in decoder.named_parameters():  # what the head reads has rows of zeros at its end
        parameter.data = zeros_behind(parameter, stored_shape(decoder, name))
    descriptor = MultiFunctionDescriptor()
    for function, queries in decoder.recipe.export.functions.queries.items():
        ones = torch.ones(1, dtype=torch.int32)
        example = [torch.ones(1, queries, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)]
        names = ["input_ids", "position"]
        if function != "decode":
            example.append(ones)
            names.append("count")
        if decoder.front.per_layer is not None:
            width = decoder.front.per_layer.layers * decoder.front.per_layer.size
            example.append(torch.zeros(1, queries, width))
            names.append("per_layer")
        module = WholeFunction(decoder, function).eval()
        passes = ct.PassPipeline.DEFAULT
        passes.remove_passes(REMOVED_PASSES)
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(module, tuple(example), check_trace=False)
            model = ct.convert(
                traced,
                inputs=[
                    ct.TensorType(
                        name=name, shape=tuple(value.shape), dtype=np.float16 if value.is_floating_point() else np.int32
                    )
                    for name, value in zip(names, example, strict=True)
                ],
                outputs=[ct.TensorType(name="logits", dtype=np.float16)],
                states=[
                    ct.StateType(wrapped_type=ct.TensorType(shape=tuple(state.shape), dtype=np.float16), name=name)
                    for name, state in module.named_buffers()
                ],
                minimum_deployment_target=ct.target.iOS18,
                compute_precision=ct.transform.FP16ComputePrecision(op_selector=_Selector()),
                pass_pipeline=passes,
                skip_model_load=True,
            )
            path = folder / f"{function}.mlpackage"
            # in 16 bits, which coremltools leaves to tables of at most 32,767 rows (test_indices.py)
            spec = model.get_spec()
            narrow_indices(spec.mlProgram.functions["main"], {})
            ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True).save(str(path))
        descriptor.add_function(str(path), "main", function)
    descriptor.default_function_name = "decode"
    combined = folder / "whole.mlpackage"
    save_multifunction(descriptor, str(combined))
    return combined


class _Selector:
    """float16 for all but cosines, sines, the axes that they are then given, and what they are computed from."""

    def __init__(self) -> None:
        self.float32: set[Any] = set()
        self.seen: set[int] = set()

    def __call__(self, operation: Any) -> bool:
        block = operation.enclosing_block
        if id(block) not in self.seen:
            self.seen.add(id(block))
            waiting: list[Any] = []
            for found in block.operations:
                is_laid_out = found.op_type in ("transpose", "expand_dims") and found.x.op in waiting
                if found.op_type in ("cos", "sin") or is_laid_out:
                    waiting.append(found)
            while waiting:
                found = waiting.pop()
                if found is not None and found not in self.float32:
                    self.float32.add(found)
                    waiting += [v.op for v in found.inputs.values() if not isinstance(v, list | tuple)]
        return operation not in self.float32
