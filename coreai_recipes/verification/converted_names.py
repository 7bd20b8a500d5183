"""How transformers makes a model's parameters of a checkpoint's tensors where they are stored otherwise.

It is transformers' own table that is read, so that a mistake in ours is seen.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor


class ConvertedNames:
    """Parameters of a transformers model that are put together of tensors, or stored under another name.

    A mixture's experts lie in one parameter, and in a checkpoint each has tensors of its own.
    """

    def __init__(self, model: Any, tensors: Iterable[str]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, rename_source_key

        transforms = get_model_conversion_mapping(model, add_legacy=False)
        converters = [each for each in transforms if isinstance(each, WeightConverter)]
        renamings = [each for each in transforms if not isinstance(each, WeightConverter)]
        self._converters = {pattern: each for each in converters for pattern in each.source_patterns}
        self._sources: dict[str, dict[str | None, list[str]]] = {}
        for name in sorted(tensors, key=_by_number) if transforms else ():
            renamed, pattern = rename_source_key(name, renamings, converters)
            if renamed != name:
                self._sources.setdefault(renamed, {}).setdefault(pattern, []).append(name)

    def renamed(self, parameter: str) -> str:
        """The tensor that is the parameter by another name (GPT-NeoX's embed_out), else the parameter's own name."""
        sources = self._sources.get(parameter, {})
        return sources[None][0] if None in sources else parameter

    def read(self, parameter: str, read: Callable[[str], Tensor]) -> Tensor | None:
        """The parameter, made of what `read` gives for each tensor; None when it is stored as it is."""
        sources = self._sources.get(parameter)
        if sources is None:
            return None
        found: dict[str, Any] = {}
        for pattern, names in sources.items():
            if pattern is None:
                return read(names[0])
            found[pattern] = [read(name) for name in names]
        converter = self._converters[next(iter(found))]
        for operation in converter.operations:
            found = operation.convert(
                found, source_patterns=converter.source_patterns, target_patterns=converter.target_patterns
            )
        return next(iter(found.values()))  # type: ignore[no-any-return]


def _by_number(name: str) -> list[int | str]:
    """Expert 10 after expert 9; names of one pattern alternate between words and numbers alike."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
