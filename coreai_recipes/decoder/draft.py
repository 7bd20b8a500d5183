"""A recipe's draft: a small model that guesses the target's next tokens from its last hidden state and its caches.

It owns no cache: each layer reads the keys and values of the target's last layer of the kind that it names. What it is
given is the target's embedding of the last token beside the target's last hidden state (then its own, projected back),
at the position of the last token, which stays the same for a whole round (transformers, gemma4_assistant and
SinglePositionMultiTokenCandidateGenerator).
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.decoder.states import StateSpec, state_specs
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.primitives.cache import SharedCache, draft_mask
from coreai_recipes.primitives.layer import PLAIN, Form, Layer
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.primitives.registry import primitive
from coreai_recipes.primitives.rotary import Rotary, build_rotary
from coreai_recipes.recipe.schema import DRAFT, Recipe
from coreai_recipes.recipe.schema import Draft as DraftSpec

ORDERING = "clusters.ordering"  # the tokens of its clusters: whole numbers, not a weight


def step_names(steps: int) -> list[tuple[str, str]]:
    """What a call's logits and hidden states are named in the function, step by step."""
    logits = [f"step_{step}_logits" for step in range(steps)] if steps > 1 else ["logits"]
    return list(zip(logits, [*(f"step_{step}_hidden" for step in range(steps - 1)), "hidden"], strict=True))


class Draft(StackModule):
    """The draft of `recipe`, which becomes the function of its key.

    The target's embedding is its own affair: `forward` is given what it makes of the token.
    """

    def __init__(self, recipe: Recipe, form: Form = PLAIN) -> None:
        # what is scaled is the target's residual stream: this one stays as it is
        super().__init__(recipe, DRAFT, Form(folded=form.folded, mirrored=form.mirrored, regrouped=form.regrouped))
        self.spec = spec = cast(DraftSpec, recipe.draft)
        target_size = recipe.model.hidden_size
        self.pre_projection = Projection(2 * target_size, spec.hidden_size)
        self.layers = nn.ModuleList(Layer(spec, name, form=self.form) for name in spec.layer_kinds)
        self.rotaries = nn.ModuleDict(
            {
                name: build_rotary(kind.rotary, kind.attention.rotary_dim, form.folded, recipe.export.context)
                for name, kind in spec.kinds.items()
            }
        )
        self.norm = build_norm(spec.norm, spec.hidden_size)
        self.post_projection = Projection(spec.hidden_size, target_size)
        self.head = primitive("head", "linear")(spec.vocab_size, spec.hidden_size, False, None)
        self.clusters = Clusters(spec) if spec.centroids else None
        # a head whose rows are gathered needs no others than the tokens'
        self.of_tokens, self.whole_numbers = (("head.weight",), ()) if self.clusters is None else ((), (ORDERING,))

    def owner(self, kind: str) -> str:
        """The kind of the target whose cache the draft's layers of `kind` read."""
        return cast(str, self.spec.kinds[kind].attention.shares_kv_with)

    @property
    def owners(self) -> dict[str, StateSpec]:
        """The states that are read, by kind of the target, in the order of first use."""
        states = state_specs(self.recipe)
        return {owner: states[owner] for owner in dict.fromkeys(map(self.owner, self.spec.layer_kinds))}

    def slot(self, owner: str) -> int:
        """The place in its states of the target's last layer of a kind."""
        spec = self.owners[owner]
        return spec.at(spec.layers - 1)

    def _rotary(self, kind: str) -> Rotary:
        return cast(Rotary, self.rotaries[kind])

    def ports(self, kind: str) -> dict[str, tuple[int, ...]]:
        """The inputs by name that layers of a kind are given (`LayerInputs`)."""
        rows = self.owners[self.owner(kind)].rows
        found = self._rotary(kind).ports(1)
        found["mask"] = (1, 1, 1, rows) if self.recipe.export.keys_last else (1, rows, 1, 1)
        return found

    def inputs(self, kind: str, position: Tensor, seen: Mapping[str, Tensor]) -> LayerInputs:
        """cos, sin (1, R/2, 1, 1) and mask (1, rows, 1, 1), or (1, 1, 1, rows), of the layers of `kind`.

        `position` (1,) is the last token's, `seen` by kind of the target how many of its positions are seen (1,).
        """
        owner = self.owner(kind)
        state = self.owners[owner]
        mask = draft_mask(state.rows, state.window, seen[owner], self.recipe.export.keys_last)
        return self.given(kind, position, mask)

    def given(self, kind: str, positions: Tensor, mask: Tensor) -> LayerInputs:
        """What layers of `kind` are given at `positions` (S,): angles and this mask."""
        return LayerInputs(mask, **self._rotary(kind).given(positions))

    def start(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """x (1, C', 1, 1) of the last token's embedding (1, C, 1, 1) and the last hidden state (1, 1, C)."""
        joined = torch.cat((embedded, hidden.transpose(1, 2).unsqueeze(2)), 1)
        return cast(Tensor, self.pre_projection(joined))

    def finish(self, x: Tensor, counts: Sequence[int] = (), tables: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Logits (1, 1, V), or with `counts` in pieces (1, n, m), and the next hidden state (1, 1, C) of what comes out
        of the last layer. `counts` and `tables` are the products' of the head (`Head.in_pieces`)."""
        x, pieces = self.norm(x), Pieces(self.spec.vocab_size)
        hidden = self.post_projection(x).squeeze(2).transpose(1, 2)
        if self.clusters is None:
            return self.head.in_pieces(x, counts, tables) if counts else self.head(x), hidden  # type: ignore[operator]
        shape = (pieces.count, pieces.columns) if counts else (1, self.spec.vocab_size)
        return self.clusters(x, self.head.weight, shape), hidden

    def forward(
        self, embedded: Tensor, hidden: Tensor, position: int, seen: Mapping[str, int], states: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits and the next hidden state, after a target whose `states` are as its last call left them."""
        at = torch.tensor([position], dtype=torch.int32)
        counts = {owner: torch.tensor([count], dtype=torch.int32) for owner, count in seen.items()}
        x = self.start(embedded, hidden)
        for layer in self.stack:
            owner = self.owner(layer.kind)
            slot = torch.tensor([self.slot(owner)], dtype=torch.int32)
            spec = self.owners[owner]
            cache = SharedCache(states[spec.keys], states[spec.values] if spec.values else None, slot)
            x = layer(x, self.inputs(layer.kind, at, counts), cache)
        return self.finish(x)


class Clusters(nn.Module):
    """An ordered-embedding head: x (1, C', 1, 1) and the head's table (V, C', 1, 1) -> logits (1, n, m), of which the
    first V are tokens'.

    The vocabulary lies in equal clusters. Tokens of those whose centroids x is nearest to get their own logits, every
    other one the least of these less 1 (transformers, Gemma4AssistantMaskedEmbedder). `ordering` (clusters, V /
    clusters) says which tokens each cluster has: whole numbers, that float32 holds and float16 would not.
    """

    def __init__(self, spec: DraftSpec) -> None:
        super().__init__()
        if spec.centroids is None:
            raise ValueError("the draft has no centroids")
        count, self.top = spec.centroids.count, spec.centroids.top
        self.centroids = Projection(spec.hidden_size, count)
        self.ordering = nn.Parameter(torch.empty(count, spec.vocab_size // count), requires_grad=False)

    def forward(self, x: Tensor, table: Tensor, shape: tuple[int, int]) -> Tensor:
        nearest = torch.topk(self.centroids(x).flatten(1), self.top, 1).indices  # (1, top)
        tokens = F.embedding(nearest, self.ordering).flatten().long()  # (tokens of these clusters,)
        rows = F.embedding(tokens, table.squeeze(3).squeeze(2))  # (tokens, C')
        logits = torch.matmul(rows, x.flatten(2).squeeze(0)).flatten()  # (tokens,)
        others = (logits.amin(0, keepdim=True) - 1).expand(shape[0] * shape[1])
        return others.scatter(0, tokens, logits).view(1, *shape)
