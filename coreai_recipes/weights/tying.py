"""Whether a checkpoint's head is its embedding's table: transformers' rule (5.23, `PreTrainedModel.tie_weights`).

config.json's `tie_word_embeddings` says what is meant, the tensors decide: where both are there and their values
differ, the head is its own; where only one is there, it is both. A wrapper's flag goes before that of its text part.
"""

from typing import Literal

from coreai_recipes.checkpoint.base import Checkpoint, Unread
from coreai_recipes.weights.names import load_names
from coreai_recipes.weights.prefixes import EMBEDDING, choose_prefix

# none: no head, or no table beside it; undecided: only the headers are at hand
Head = Literal["none", "copy", "own", "undecided"]


def judge_head(checkpoint: Checkpoint, names: str) -> tuple[Head, str]:
    """What the head's matrix in `checkpoint` is beside its table, by the weight names `names`; and its tensor's name.

    Values are compared, whatever their dtypes, up to the first block that differs. Raises CheckpointError when a
    tensor cannot be read.
    """
    table = load_names(names)
    prefix = choose_prefix(table, (EMBEDDING,), checkpoint.tensors)
    head = table.find_head(prefix, checkpoint.tensors)
    embedding = table.find(EMBEDDING, prefix) if table.knows(EMBEDDING) else None
    if head is None or embedding is None or embedding.tensor not in checkpoint.tensors or head == embedding.tensor:
        return "none", ""
    if checkpoint.tensors[head].shape != checkpoint.tensors[embedding.tensor].shape:
        return "own", head
    if isinstance(checkpoint, Unread):
        return "undecided", head
    return "copy" if checkpoint.are_equal(embedding.tensor, head) else "own", head
