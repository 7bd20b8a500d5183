"""A transformers model's parameters, read of a checkpoint when their modules run and given back afterwards."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.errors import CheckpointError
from coreai_recipes.verification.stored_names import StoredNames

# Tables that transformers makes of the config where a checkpoint lacks them (MiniMax); so it does with buffers that a
# model's class names (A.X K1).
MADE_BUFFERS = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")


class Weights:
    """Fills modules of a transformers model with a checkpoint's tensors, and empties them.

    `wrapper` is the model_type of the whole that the checkpoint holds, when the model is its text part; `exchange` may
    give another tensor in the place of one that was read, and `merge` what adapters make of a parameter of that name.
    """

    def __init__(
        self,
        model: Any,
        checkpoint: Checkpoint,
        wrapper: str | None = None,
        exchange: Callable[[Tensor], Tensor] | None = None,
        merge: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._merge = merge
        self._exchange = exchange or _as_read
        self._model_type = model.config.model_type
        self._names = {id(module): name for name, module in model.named_modules()}
        self._meta: dict[tuple[int, str], Tensor] = {}  # what an emptied module gets back
        self._stored = StoredNames(model, checkpoint.tensors, wrapper)
        for path, module in model.named_modules():
            for name in module._buffers.keys() & {*MADE_BUFFERS, *(model._keys_to_ignore_on_load_missing or ())}:
                if self._stored.find(f"{path}.{name}") is None:
                    module._non_persistent_buffers_set.add(name)
        self._tied = self._settle_ties(model)

    def owns_any(self, module: nn.Module) -> bool:
        return bool(self._own(module))

    def fill(self, module: nn.Module) -> None:
        """Read every parameter and every stored buffer of `module` and what is inside it."""
        for child in module.modules():
            for leaf in self._own(child):
                wanted = getattr(child, leaf)
                value = self._stored.convert(self._name(child, leaf), self._checkpoint.read)
                if value is None:
                    value = self._checkpoint.read(self._find(child, leaf, tuple(wanted.shape)))
                if self._merge is not None:
                    value = self._merge(self._name(child, leaf), value)
                self._put(child, leaf, self._exchange(value).to(wanted.dtype))

    def fill_rows(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give a token table only the rows in use, and the module the ids of those rows."""
        weight: Tensor = module.weight  # type: ignore[assignment]
        tensor = self._find(module, "weight", tuple(weight.shape))
        ids, places = torch.unique(arguments[0], return_inverse=True)
        rows = [self._checkpoint.read(tensor, range(row, row + 1)) for row in ids.tolist()]
        self._put(module, "weight", self._exchange(torch.cat(rows)).to(weight.dtype))
        return (places, *arguments[1:])

    def multiply(self, head: nn.Linear, x: Tensor) -> Tensor:
        """x times the head's weight, in blocks of rows."""
        tensor = self._find(head, "weight", tuple(head.weight.shape))
        blocks = self._checkpoint.blocks(tensor)
        logits = torch.cat([F.linear(x, block.to(x.dtype)) for block in map(self._exchange, blocks)], -1)
        if "bias" not in self._own(head):
            return logits
        return logits + self._checkpoint.read(self._find(head, "bias", tuple(head.bias.shape))).to(x.dtype)

    def empty(self, module: nn.Module) -> None:
        """Put the tensors on the meta device back."""
        for child in module.modules():
            for leaf in self._own(child):
                meta = self._meta.pop((id(child), leaf), None)
                if meta is not None:
                    self._set(child, leaf, meta)

    def _own(self, module: nn.Module) -> list[str]:
        """The names of what `module` itself owns and a checkpoint holds."""
        buffers = [name for name in module._buffers if name not in module._non_persistent_buffers_set]
        return [name for name in (*module._parameters, *buffers) if getattr(module, name) is not None]

    def _settle_ties(self, model: Any) -> dict[str, str]:
        """Which parameter is read in another's place, as `PreTrainedModel.tie_weights` has it: what is stored twice
        with different values is not tied, and of what is stored once the one that is there is read."""
        found: dict[str, str] = {}
        for target, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
            names = self._stored.find(target), self._stored.find(source)
            if names[0] and names[1] and not self._checkpoint.are_equal(names[0], names[1]):
                model.config.tie_word_embeddings = False  # what `tie_weights` asks when it is called again
            elif names[0] and not names[1]:
                found[source] = target
            else:
                found[target] = source
        return found

    def _find(self, module: nn.Module, leaf: str, shape: tuple[int, ...]) -> str:
        """The checkpoint's name of a tensor. Raises CheckpointError."""
        name = self._name(module, leaf)
        name = self._tied.get(name, name)
        found = self._stored.find(name)
        place = f"{self._checkpoint.place}: "
        if found is None:
            raise CheckpointError(f"{place}{name} is missing, transformers' {self._model_type} needs it as {shape}")
        stored = self._checkpoint.tensors[found].shape
        if stored != shape:
            raise CheckpointError(f"{place}{found} is {stored}, transformers' {self._model_type} needs {shape}")
        return found

    def _name(self, module: nn.Module, leaf: str) -> str:
        return f"{self._names[id(module)]}.{leaf}".lstrip(".")

    def _put(self, module: nn.Module, leaf: str, value: Tensor) -> None:
        self._meta.setdefault((id(module), leaf), getattr(module, leaf))
        self._set(module, leaf, value)

    @staticmethod
    def _set(module: nn.Module, leaf: str, value: Tensor) -> None:
        if leaf in module._parameters and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value, requires_grad=False)
        setattr(module, leaf, value)


def _as_read(tensor: Tensor) -> Tensor:
    return tensor
