"""Sources of weights: safetensors, GGUF and the hub."""

from coreai_recipes.checkpoint.base import Checkpoint, TensorInfo
from coreai_recipes.checkpoint.open import open_checkpoint, open_headers

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint", "open_headers"]
