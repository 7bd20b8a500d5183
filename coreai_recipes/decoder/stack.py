"""What a recipe's stacks have in common as torch modules: its decoder, and the draft that reads the decoder's caches.

Binding, storing, exporting and planning go over a recipe's stacks, and ask each what is its own.
"""

from collections.abc import Iterable
from typing import Any, Self, cast

import torch
from torch import nn

from coreai_recipes.primitives.float32 import keep_in_float32
from coreai_recipes.primitives.layer import PLAIN, Form, Layer
from coreai_recipes.primitives.norm import mirror_norms
from coreai_recipes.recipe.schema import Recipe


class StackModule(nn.Module):
    """A stack of `recipe`, the one that is `key` in it, in `form`. Parameters are on the meta device until filled.

    Attributes:
        tables: parameters that are no part of the program: the host looks their rows up and hands them in.
        whole_numbers: parameters that are no weights, and stand in the program itself.
        of_tokens: parameters with a row for each token that gets a logit: a package has as many as its pieces.
    """

    tables: tuple[str, ...] = ()
    whole_numbers: tuple[str, ...] = ()
    of_tokens: tuple[str, ...] = ()
    layers: nn.ModuleList

    def __init__(self, recipe: Recipe, key: str, form: Form) -> None:
        super().__init__()
        if key not in recipe.stacks:
            raise ValueError(f"{recipe.name} has no {key}")
        self.recipe, self.of, self.form = recipe, recipe.stacks[key], form

    @classmethod
    def build(cls, recipe: Recipe, form: Form = PLAIN, **sizes: Any) -> Self:
        """The stack on the meta device."""
        with torch.device("meta"):
            stack = cls(recipe, form=form, **sizes).eval()
        if stack.form.mirrored:
            mirror_norms(stack)
        keep_in_float32(stack.stack, stack.form.float32)
        return stack

    @property
    def stack(self) -> list[Layer]:
        """The layers in running order."""
        return cast(list[Layer], list(self.layers))

    def unused(self) -> Iterable[str]:
        """Parameters that it could have and does not need, though a checkpoint may hold their tensors."""
        return ()
