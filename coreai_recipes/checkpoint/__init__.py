"""Sources of weights: safetensors, GGUF and the hub, and the names that families give their tensors."""

from coreai_recipes.checkpoint.base import Checkpoint, TensorInfo
from coreai_recipes.checkpoint.binding import Binding, ParameterInfo, bind
from coreai_recipes.checkpoint.open import open_checkpoint, open_headers

__all__ = ["Binding", "Checkpoint", "ParameterInfo", "TensorInfo", "bind", "open_checkpoint", "open_headers"]
