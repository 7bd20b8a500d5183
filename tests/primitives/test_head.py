"""The head against transformers': tied or not, with and without softcap, bias, factor and a narrower table."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
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


def of_parts(scale: float = 1.0, bias: bool = False, width: int | None = None) -> Case:
    """Phi's bias, Cohere's and Granite's factor, OPT-350m's projection, by torch's own modules."""

    def compare() -> tuple[Tensor, Tensor]:
        ours = Head(131, 48, tied=False, softcap=None, bias=bias, scale=scale, width=width)
        for parameter in ours.parameters():
            parameter.normal_()
        x = torch.randn(1, 9, 48)
        narrow = x if ours.projection is None else F.linear(x, ours.projection.weight[:, :, 0, 0])
        theirs = F.linear(narrow, ours.weight[:, :, 0, 0]) * scale
        theirs = theirs if ours.bias is None else theirs + ours.bias
        return theirs, ours(x.transpose(1, 2).unsqueeze(2))

    return compare


PARITY: dict[str, dict[str, Case]] = {
    "linear": {
        **{name: of_family(name) for name in ("llama", "llama_tied", "gemma2")},
        "phi_biased": of_parts(bias=True),
        "cohere_scaled": of_parts(scale=0.0625),
        "granite_divided": of_parts(scale=1 / 13),
        "opt_projected": of_parts(width=20),
    }
}


def test_a_block_of_rows_takes_its_own_part_of_the_bias() -> None:
    head = Head(131, 48, tied=False, softcap=5.0, bias=True)
    for parameter in head.parameters():
        parameter.normal_()
    x = torch.randn(1, 48, 1, 9)
    blocks = [head(x, head.weight[rows], head.bias[rows]) for rows in (slice(0, 50), slice(50, 131))]
    assert psnr(head(x), torch.cat(blocks, -1)) >= 120


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
