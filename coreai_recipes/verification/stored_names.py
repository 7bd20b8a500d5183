"""Which of a checkpoint's tensors make which parameter of a transformers model, as transformers itself finds them.

Its own table of conversions is read, and its own way with a prefix that is missing or too many, so that a mistake in
our weight names is seen.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

# How a whole with eyes or ears names its text part, after its own conversions: `model.language_model.layers`
TEXT_PART = re.compile(r"^(?:model\.)?(?:language|text)_model\.(?:model\.)?")


class StoredNames:
    """For each parameter the tensors that it is made of. A mixture's experts lie in one, and in a checkpoint each has
    tensors of its own.

    `wrapper` is the model_type of the whole that the checkpoint holds, when `model` is its text part.
    """

    def __init__(self, model: Any, tensors: Iterable[str], wrapper: str | None = None) -> None:
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        transforms = get_model_conversion_mapping(model)
        outer = (get_checkpoint_conversion_mapping(wrapper) or []) if wrapper else []
        self._outer = [each for each in outer if not isinstance(each, WeightConverter)]
        self._converters = [each for each in (*outer, *transforms) if isinstance(each, WeightConverter)]
        self._renamings = [each for each in transforms if not isinstance(each, WeightConverter)]
        self._by_pattern = {pattern: each for each in self._converters for pattern in each.source_patterns}
        prefix = model.base_model_prefix  # Llama 4's text model says its whole's
        self._model, self._prefix = model, prefix if hasattr(model, prefix) else "model"
        self._parameters = model.state_dict()
        self._sources: dict[str, dict[str | None, list[str]]] = {}
        for name in sorted(tensors, key=_by_number):
            parameter, pattern = self._rename(self._inside(name, wrapper))
            if parameter in self._parameters:
                self._sources.setdefault(parameter, {}).setdefault(pattern, []).append(name)

    def __contains__(self, parameter: str) -> bool:
        """Whether the checkpoint has what the parameter is made of."""
        return parameter in self._sources

    def find(self, parameter: str) -> str | None:
        """The tensor that is the parameter as it is stored; None when there is none, or when it is made of several."""
        return self._sources.get(parameter, {}).get(None, [None])[0]

    def convert(self, parameter: str, read: Callable[[str], Tensor]) -> Tensor | None:
        """The parameter, made of what `read` gives for each tensor; None when it is stored as it is, or not at all."""
        sources = self._sources.get(parameter, {})
        found: dict[str, Any] = {pattern: [read(n) for n in names] for pattern, names in sources.items() if pattern}
        if not found or None in sources:
            return None
        converter = self._by_pattern[next(iter(found))]
        for operation in converter.operations:
            found = operation.convert(
                found,
                source_patterns=converter.source_patterns,
                target_patterns=converter.target_patterns,
                model=self._model,
                full_layer_name=parameter,
            )
        return next(iter(found.values()))  # type: ignore[no-any-return]

    def _rename(self, name: str) -> tuple[str, str | None]:
        """As `convert_and_load_state_dict_in_model`: by the table, else as it is, with the base model's prefix."""
        from transformers.core_model_loading import rename_source_key

        around = {"base_model_prefix": self._prefix, "meta_state_dict": self._parameters}
        renamed, pattern = rename_source_key(name, self._renamings, self._converters, **around)
        if renamed not in self._parameters and name in self._parameters:
            renamed, pattern = rename_source_key(name, [], [], **around)
        return renamed, pattern

    def _inside(self, name: str, wrapper: str | None) -> str:
        """The name in the text part of what the whole calls it."""
        if wrapper is None:
            return name
        from transformers.core_model_loading import apply_renamings

        return TEXT_PART.sub(f"{self._prefix}.", apply_renamings(name, self._outer))


def _by_number(name: str) -> list[int | str]:
    """Expert 10 after expert 9; names of one pattern alternate between words and numbers alike."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
