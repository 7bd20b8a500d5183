"""Adapters merged by peft, into weights of transformers' model as its modules are filled."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from coreai_recipes.checkpoint.adapter import Adapter
from coreai_recipes.errors import UserError


class TheirMerge:
    """peft's own layers around the modules of `model`, which is on the meta device; each adapter has a factor.

    Raises UserError without peft, and ValueError where peft would take less of an adapter than is in it.
    """

    def __init__(self, model: Any, adapters: Sequence[tuple[Adapter, float]]) -> None:
        try:
            from peft import PeftModel
            from peft.tuners.lora import LoraLayer
        except ImportError:
            raise UserError(
                "comparing an adapter needs peft: pip install 'coreai-recipes[lora]', or build with --no-verify"
            ) from None
        self._layers: list[dict[str, Any]] = []
        for adapter, factor in adapters:
            wrapped: Any = PeftModel.from_pretrained(_without_memory(model), str(adapter.path), torch_device="cpu")
            named = wrapped.base_model.model.named_modules()
            layers = {name: module for name, module in named if isinstance(module, LoraLayer)}
            if layers.keys() != adapter.modules.keys():
                other = sorted(layers.keys() ^ adapter.modules.keys())[0]
                raise ValueError(f"{adapter.place}: peft and its file differ in which modules it has: {other}")
            for layer in layers.values():
                layer.scale_layer(factor)
            self._layers.append(layers)

    def merge(self, parameter: str, value: Tensor) -> Tensor:
        """The value of a parameter, by transformers' name, with every adapter merged."""
        module, _, leaf = parameter.rpartition(".")
        for layers in self._layers:
            layer = layers.get(module)
            if layer is None or leaf != "weight":
                continue
            base = layer.get_base_layer()
            empty = base.weight
            base.weight = nn.Parameter(value.float().clone(), requires_grad=False)
            layer.merge()
            value = base.weight.detach()
            layer.merged_adapters.clear()
            base.weight = empty
        return value


def _without_memory(model: nn.Module) -> nn.Module:
    """A copy whose parameters are one number each: peft puts its own beside those of the base, and meta is nowhere."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                number = torch.zeros((), dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(number.expand(parameter.shape), requires_grad=False)
    return copied
