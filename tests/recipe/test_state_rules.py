"""What a recipe with a buffer must be: rows that hold a call, of states that can be kept so."""

import pytest
from small_delta import small_delta

from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.rules import find_problems


def refused(model: str = "delta", **export: object) -> str:
    config = small_delta().config.to_dict()
    if model == "attention":
        config["layer_types"] = ["full_attention"] * 3
    recipe = recipe_from_config(config, "small").recipe.model_dump(mode="json", exclude_unset=True)
    recipe["export"] |= {"context": 96, "functions": {"prefill": 16}, **export}
    with pytest.raises((RecipeError, ValueError)) as caught:
        Recipe.model_validate(recipe)
    return str(caught.value)


def test_a_buffer_holds_the_tokens_of_a_call() -> None:
    assert "prefill takes 16 tokens per call, which do not go into 8 rows" in refused(buffer=8)


def test_a_buffer_is_of_layers_that_carry_a_state() -> None:
    assert "no layer carries a state, of which a buffer keeps rows" in refused("attention", buffer=64)


@pytest.mark.parametrize("name", ["mamba1", "rg_lru"])
def test_states_that_have_no_form_as_rows_or_as_two_halves_are_refused_with_either(name: str) -> None:
    from coreai_recipes.recipe.state_rules import state_problems

    kind = {"attention": {"kind": name}}
    recipe = {
        "model": {"kinds": {"mixer": kind}, "layers": ["mixer"]},
        "export": {"buffer": 64, "recurrent_state": "two_float16"},
    }
    assert [problem.message for problem in state_problems(recipe)] == [
        f"the state of `mixer`, {name}, cannot be two float16 yet",
        f"the state of `mixer`, {name}, cannot be kept as rows since a commit",
    ]


def test_two_halves_are_of_the_state_of_a_recurrence() -> None:
    assert "no layer carries the state of a recurrence" in refused("attention", recurrent_state="two_float16")


def test_a_state_space_stands_beside_an_attention_with_rows_of_its_own_and_in_no_draft() -> None:
    def said(stack: str = "model", **attention: object) -> list[str]:
        kind = {"attention": attention, "state_space": {"kind": "mamba2", "num_key_heads": 4, "num_value_heads": 6}}
        found = find_problems({stack: {"kinds": {"full": kind}, "layers": ["full"]}})
        return [each.message for each in found if each.code in ("state-space-beside", "delta-groups")]

    groups = "6 value heads cannot be divided among 4 key heads"
    assert said(kind="full") == [groups]
    assert said(kind="gated_delta") == [groups, "a state space beside gated_delta: it stands beside an attention"]
    assert said(kind="none") == [groups, "a state space beside none: it stands beside an attention"]
    shares = "a state space beside an attention that reads the cache of other layers"
    assert said(kind="full", shares_kv_with="full") == [groups, shares]
    assert said("draft", kind="full") == [groups, "a draft's layers carry no state"]


def test_blocks_of_an_rg_lru_are_as_wide_as_each_other() -> None:
    def found(blocks: int) -> list[str]:
        kind = {"attention": {"kind": "rg_lru", "channels": 36, "blocks": blocks}, "rotary": {"kind": "none"}}
        problems = find_problems({"model": {"kinds": {"recurrent": kind}, "layers": ["recurrent"]}})
        return [each.message for each in problems if each.code == "blocks-differ"]

    assert found(5) == ["36 channels cannot be divided into 5 blocks"]
    assert found(6) == []


def test_value_heads_that_share_keys_do_not_fade_by_channel():
    sizes = {"num_key_heads": 2, "num_value_heads": 4, "key_dim": 8, "value_dim": 8, "taps": 4}
    kind = {"attention": {"kind": "gated_delta", "decay": "channel", **sizes}, "rotary": {"kind": "none"}}
    (problem,) = [each for each in find_problems({"model": {"kinds": {"delta": kind}}}) if "heads" in each.message]
    assert problem.code == "delta-channels"
    assert problem.message == "4 value heads share 2 key heads, whose dimensions fade by factors of their own"
    assert problem.hint == "write 2, or `decay: head`"
