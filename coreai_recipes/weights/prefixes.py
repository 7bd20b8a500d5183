"""What stands before a table's names in a checkpoint: a model that is a part of another has a name there."""

from collections.abc import Iterable, Iterator, Mapping

from coreai_recipes.weights.names import NameTable

EMBEDDING = "embedding.weight"


def choose_prefix(table: NameTable, parameters: Iterable[str], tensors: Mapping[str, object]) -> str:
    """The prefix under which the checkpoint has most of the tensors; the first of equals, the table's own before what
    stands before an embedding."""
    parameters = list(parameters)

    def count_found(prefix: str) -> int:
        sources = (table.find(name, prefix) for name in parameters if table.knows(name))
        return sum(source is not None and source.tensor in tensors for source in sources)

    return max((*table.prefixes, *_before_an_embedding(table, tensors)), key=count_found)


def _before_an_embedding(table: NameTable, tensors: Iterable[str]) -> Iterator[str]:
    source = table.tensors.get(EMBEDDING)
    if source is not None:
        name = source.tensor.removeprefix(table.prefixes[0])
        yield from (tensor.removesuffix(name) for tensor in tensors if tensor.endswith(f".{name}"))


def is_around(tensor: str, prefix: str) -> bool:
    """Whether a tensor belongs to what is around a part: `model.language_model.` is the prefix of one, `model.` not."""
    return "." in prefix.rstrip(".") and not tensor.startswith(prefix) and "lm_head" not in tensor
