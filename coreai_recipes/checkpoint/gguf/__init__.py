"""GGUF files under transformers' tensor names: the header, the rows, the config and the tokenizer of a model."""

from coreai_recipes.checkpoint.gguf.checkpoint import GGUFCheckpoint

__all__ = ["GGUFCheckpoint"]
