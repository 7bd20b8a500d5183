"""What a call computes once, before any layer, and how the layers of each kind see a call."""

from coreai_recipes.decoder.front.call_shape import CallShape, Sharing
from coreai_recipes.decoder.front.front import Front

__all__ = ["CallShape", "Front", "Sharing"]
