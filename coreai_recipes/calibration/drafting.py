"""What comes into a draft's matrices on a text: rounds that begin behind each position at once.

A round begins when the target has processed the positions before `end`, and knows the token there. Its first step is
given that token and the target's last hidden state; each one after it, the text's next token and the draft's own hidden
state before it. All of them stand at `end`, and see the keys and values that the target has there.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import empty, weights_form
from coreai_recipes.primitives.cache import NoCache, mask
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.weights.binding import Binding

TABLE = "head.weight"


class Drafting:
    """The draft of `recipe` over windows that its target has read. A table of its head is never filled."""

    def __init__(self, recipe: Recipe, checkpoint: Checkpoint) -> None:
        self.draft = Draft.build(recipe, weights_form(recipe))
        self._bound = bind_weights(self.draft, checkpoint)
        self.steps = (recipe.export.functions.score or 2) - 1
        self.owners = frozenset(self.draft.owners)

    @property
    def weights(self) -> dict[str, Binding]:
        """By their names in a package."""
        return {self.draft.of.prefix + name: binding for name, binding in self._bound.items()}

    def begin(
        self, embedded: Sequence[Tensor], hidden: Sequence[Tensor], caches: Mapping[str, Sequence[NoCache]]
    ) -> tuple[Callable[[int, int], None], dict[int, str]]:
        """A function that takes a step, by its number, of the rounds of a window, one step after the other; and the
        names of the matrices by identity. `end` is last called.

        Of each window `embedded` and `hidden` (1, C, 1, S) are the tokens and the target's normed last hidden states;
        `caches`, by kind that is read, those of its last layer.
        """
        draft, row = self.draft, torch.zeros(1, self.draft.spec.hidden_size, 1, 1)
        parts = [(name, part) for name, part in draft.named_children() if name not in ("head", "rotaries")]
        for name, part in parts:
            fill_from(part, self._bound, f"{name}.")
        names = {id(p): draft.of.prefix + name for name, p in draft.named_parameters() if name != TABLE}
        names[id(row)] = draft.of.prefix + TABLE
        last = [each.squeeze(2).transpose(1, 2) for each in hidden]  # (1, S, C)

        def step(number: int, window: int) -> None:
            tokens, count = embedded[window], embedded[window].shape[3] - self.steps
            ends = torch.arange(1, count + 1)
            given = last[window] if number else last[window][:, :count]
            x = draft.start(tokens[..., 1 + number : 1 + number + count], given)
            for layer in draft.stack:
                owner = draft.owner(layer.kind)
                span = draft.owners[owner].window
                seen = mask(torch.arange(tokens.shape[3]), ends - 1, None if span is None else span + 1)
                x = layer(x, draft.given(layer.kind, ends, seen), caches[owner][window])
            x = draft.norm(x)
            draft.head(x, row)  # looked at; what it gives is not the draft's
            if draft.clusters is not None:
                draft.clusters.centroids(x)
            last[window] = draft.post_projection(x).squeeze(2).transpose(1, 2)

        return step, names

    def end(self) -> None:
        """Give back the memory."""
        empty(self.draft)
