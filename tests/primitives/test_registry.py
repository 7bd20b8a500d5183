"""The registry: what it holds, what it says, and that everything in it is compared with a reference."""

from importlib import import_module
from typing import Any, Literal, get_args, get_origin

import pytest
from torch import nn

from coreai_recipes.primitives import primitive, register, registered
from coreai_recipes.primitives.registry import RegistryError, _registry
from coreai_recipes.recipe import schema


def without_parity() -> list[tuple[str, str]]:
    """Registered primitives that test_NOUN.py compares with nothing."""

    def is_compared(noun: str, kind: str) -> bool:
        try:
            return bool(import_module(f"test_{noun}").PARITY.get(kind))
        except ModuleNotFoundError:
            return False

    return [(noun, kind) for noun, kind in registered() if not is_compared(noun, kind)]


def test_every_primitive_is_compared_with_a_reference() -> None:
    assert registered()
    assert without_parity() == []


def test_a_primitive_without_a_parity_case_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_registry, ("norm", "batch"), nn.Identity)
    monkeypatch.setitem(_registry, ("router", "softmax"), nn.Identity)
    assert without_parity() == [("norm", "batch"), ("router", "softmax")]


def test_no_parity_case_is_for_a_primitive_that_is_gone() -> None:
    for noun in {noun for noun, _ in registered()}:
        assert {(noun, kind) for kind in import_module(f"test_{noun}").PARITY} == set(registered(noun))


def kinds_of(union: Any) -> set[str]:
    """Every `kind` of a discriminated union of the schema."""
    if isinstance(union, type) and issubclass(union, schema.Spec):
        return set(get_args(union.model_fields["kind"].annotation))
    assert get_origin(union) is not Literal
    return {kind for argument in get_args(union) for kind in kinds_of(argument) if _is_spec(argument)}


def _is_spec(argument: Any) -> bool:
    return bool(get_args(argument)) or (isinstance(argument, type) and issubclass(argument, schema.Spec))


@pytest.mark.parametrize(
    ("noun", "union"),
    [
        ("rotary", schema.Rotary),
        ("norm", schema.Norm),
        ("attention", schema.AttentionKind),
        ("mlp", schema.MLP),
        ("experts", schema.Router),
    ],
)
def test_every_kind_that_a_recipe_can_say_has_a_primitive(noun: str, union: Any) -> None:
    assert kinds_of(union) == {kind for _, kind in registered(noun)}


def test_registering_twice_says_what_is_there() -> None:
    with pytest.raises(RegistryError) as error:
        register("norm", "rms")(nn.Identity)
    assert str(error.value) == (
        "primitive norm `rms` is already coreai_recipes.primitives.norm.RMSNorm; kinds of norm: layer, rms"
    )
    assert primitive("norm", "rms").__name__ == "RMSNorm"


def test_asking_for_a_missing_kind_says_which_there_are() -> None:
    with pytest.raises(RegistryError) as error:
        primitive("norm", "batch")
    assert str(error.value) == "there is no primitive norm `batch`; kinds of norm: layer, rms"


def test_asking_for_a_missing_noun_says_which_there_are() -> None:
    with pytest.raises(RegistryError) as error:
        primitive("router", "softmax")
    assert str(error.value) == (
        "there is no primitive router `softmax`; "
        "nouns with primitives: attention, embedding, experts, head, mlp, norm, per_layer, rotary"
    )


def test_a_new_primitive_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreai_recipes.primitives.registry._registry", dict(_registry))

    @register("norm", "batch")
    class BatchNorm(nn.Module):
        pass

    assert primitive("norm", "batch") is BatchNorm
    assert registered("norm") == [("norm", "batch"), ("norm", "layer"), ("norm", "rms")]
