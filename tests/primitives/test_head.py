"""The head against transformers': tied or not, with and without a softcap."""

from collections.abc import Callable

import pytest
import torch
from families import FAMILIES
from figures import psnr
from torch import Tensor

from coreai_recipes.primitives.head import Head
from coreai_recipes.recipe.schema import Recipe

Case = Callable[[], tuple[Tensor, Tensor]]


def of_family(name: str) -> Case:
    """Final norm and head of a whole model, on its own last hidden states."""

    def compare() -> tuple[Tensor, Tensor]:
        pair = FAMILIES[name]()
        ids = torch.arange(30)[None]
        hidden: list[Tensor] = []
        hook = pair.model.model.norm.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
        logits = pair.model(ids).logits
        hook.remove()
        return logits, pair.decoder().logits(hidden[0].transpose(1, 2).unsqueeze(2))

    return compare


PARITY: dict[str, dict[str, Case]] = {"linear": {name: of_family(name) for name in ("llama", "llama_tied", "gemma2")}}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in PARITY.items() for name in cases])
def test_a_head_equals_its_reference(kind: str, name: str) -> None:
    reference, x = PARITY[kind][name]()
    assert psnr(reference, x) >= 120


def test_a_missing_softcap_is_seen() -> None:
    """The cap of the case above is low enough to bend the logits: without it the figure falls."""
    pair = FAMILIES["gemma2"]()
    data = pair.recipe.model_dump()
    data["model"]["head"]["softcap"] = None
    ids = torch.arange(30)[None]
    capped, uncapped = pair.decoder()(ids), pair.decoder(Recipe.model_validate(data))(ids)
    assert psnr(capped, uncapped) < 60


def test_a_tied_head_owns_no_weight_and_needs_the_table() -> None:
    head = Head(131, 48, tied=True, softcap=None)
    assert not list(head.parameters())
    with pytest.raises(ValueError, match=r"^a tied head needs the embedding's table$"):
        head(torch.zeros(1, 48, 1, 1))
