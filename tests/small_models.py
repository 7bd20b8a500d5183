"""transformers models with random weights, in which no parameter is at its default."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def small_model(model_class: Callable[[Any], nn.Module], config: Any, seed: int = 0) -> Any:
    """A transformers model of `config` with random weights, no parameter at its default: norms off 1 (or 0), biases
    off 0, and projections so large that attention attends to some places more than to others."""
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            random = torch.randn(parameter.shape, generator=generator)
            if name.endswith("A_log"):
                parameter.copy_(random * 0.5 - 1)  # slow and fast heads
            elif name.endswith("recurrent_param"):
                parameter.copy_(random - 3)  # slow and fast channels; it begins at random
            elif parameter.dim() > 1:
                parameter.copy_(random * 1.5 * parameter.shape[-1] ** -0.5)
            elif name.endswith(("bias", "sinks")) or "lambda_" in name:
                parameter.copy_(random * 0.5)  # sinks and lambdas begin at random
            else:
                parameter.add_(random * (0.2 if "norm" in name else 0.5))
        stored = model.state_dict()
        for name, buffer in model.named_buffers():
            # a bare number is the same in every model of its family (xielu's beta), and held to be so
            if name.endswith(("slope_rate", "_decay")):
                continue  # tables that follow from the config (MiniMax)
            if name in stored and buffer.is_floating_point() and buffer.dim():
                buffer.add_(0.2 * torch.randn(buffer.shape, generator=generator))
    return model
