"""A decoder's parameters and the checkpoint's tensors that fill them: where a model meets its weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.checkpoint.binding import Binding, ParameterInfo, bind
from coreai_recipes.checkpoint.range_check import to_float16
from coreai_recipes.model import Decoder, fill, parameter_offset


def bind_decoder(decoder: Decoder, checkpoint: Checkpoint) -> dict[str, Binding]:
    """Where each parameter of `decoder` is read from. Raises CheckpointError with every tensor that does not fit."""
    model = decoder.recipe.model
    wanted = {}
    for name, parameter in decoder.named_parameters():
        # a convolution's weight is (out, in, 1, 1) here, a norm's (1, C, 1, 1)
        shape = tuple(parameter.shape[:2]) if parameter.dim() == 4 else tuple(parameter.shape)
        if name.rpartition(".")[0].endswith("norm"):
            shape = shape[-1:]
        kind = model.layer_kinds[int(name.split(".")[1])] if name.startswith("layers.") else None
        wanted[name] = ParameterInfo(shape, kind, parameter_offset(decoder.recipe, name))
    return bind(wanted, decoder.recipe.weights.names, checkpoint)


def fill_from(module: nn.Module, bindings: Mapping[str, Binding], prefix: str = "", stored: bool = False) -> None:
    """Fill `module`, whose parameters are `prefix` + their name in `bindings`, in float32.

    With `stored` each weight is what the package stores: rounded to float16 first.
    """

    def read(name: str) -> Tensor:
        weight = bindings[name].read()
        return to_float16(weight, bindings[name].tensor).to(torch.float32) if stored else weight

    fill(module, read, prefix)
