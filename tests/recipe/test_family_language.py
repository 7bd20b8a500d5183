"""The language of families/*.yaml: each rule forwards and backwards, on families that are made up."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coreai_recipes.errors import CheckpointError, RecipeError
from coreai_recipes.recipe import Resolved, load_resolved
from coreai_recipes.recipe.importing import check_reference, config_for, family
from coreai_recipes.recipe.importing.assembling import recipe_from_config
from coreai_recipes.recipe.importing.family import load_family
from coreai_recipes.recipe.schema import Recipe

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
E2B = Path(__file__).with_name("gemma4-e2b.yaml")
Write = Callable[[str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes the family `made_up`, which may extend Llama."""
    (tmp_path / "llama.yaml").write_text((family.FAMILIES / "llama.yaml").read_text())
    monkeypatch.setattr(family, "FAMILIES", tmp_path)
    family._load_family.cache_clear()
    yield lambda text: (tmp_path / "made_up.yaml").write_text(f"about: made up\n{text}") and None
    family._load_family.cache_clear()


def read(**fields: Any) -> Recipe:
    return recipe_from_config({"model_type": "made_up", "num_hidden_layers": 6, **SIZES, **fields}, "small").recipe


def round_trip(recipe: Recipe) -> dict[str, Any]:
    """The config of a recipe, which reads back as the same model."""
    config = config_for(recipe)
    assert recipe_from_config(config, "small").recipe.model == recipe.model
    return config


LAYERS = """
extends: llama
fields:
  window: {default: 8, sets: attention.window, of: {attention: sliding}}
  %s
layers:
  attention:
    values: {sliding: {set: {attention.kind: sliding}}, full: {set: {attention.kind: full}}}
    rules: [%s, {all: full}]
"""


@pytest.mark.parametrize(
    ("field", "rule", "said", "sliding"),
    [
        ("first_k: {default: 2, type: count}", "{first: first_k, is: sliding}", {"first_k": 3}, [0, 1, 2]),
        ("first_k: {default: 2, type: count}", "{first: first_k, is: sliding}", {}, [0, 1]),
        ("last_k: {default: 2, type: count}", "{last: last_k, is: sliding}", {"last_k": 1}, [5]),
        ("since: {default: 2, type: count}", "{from: since, is: sliding}", {"since": 4}, [4, 5]),
        ("end: {default: -1, type: any}", "{after: end, is: sliding}", {"end": 2}, [3, 4, 5]),
        ("end: {default: -1, type: any}", "{after: end, is: sliding}", {}, []),
        ("only_in: {default: null, type: list}", "{in: only_in, is: sliding}", {"only_in": [1, 4]}, [1, 4]),
        ("only_in: {default: null, type: list}", "{in: only_in, is: sliding}", {}, []),
        ("step: {default: 2}", "{every: step, is: sliding}", {"step": 3}, [2, 5]),
        (
            "runs: {default: null, type: list}",
            "{patterns: runs, values: {a: sliding, b: full}}",
            {"runs": [[["a", "b"], 2], [["a"], 2]]},
            [0, 2, 4, 5],
        ),
        ("step: {default: 2}", "{every: step, at: 0, is: sliding}", {"step": 3}, [0, 3]),
    ],
)
def test_each_pattern_of_layers(write: Write, field: str, rule: str, said: dict[str, Any], sliding: list[int]) -> None:
    write(LAYERS % (field, rule))
    recipe = read(**said)
    assert [i for i, kind in enumerate(recipe.model.layer_kinds) if kind == "sliding"] == sliding
    round_trip(recipe)


def test_a_field_has_other_names_and_fields_may_lie_in_one_another(write: Write) -> None:
    write(
        """
extends: llama
aliases: {hidden_size: n_embd}
inline: [attn_config]
fields:
  hidden_size: null
  n_embd: {default: 64, sets: model.hidden_size}
  head_dim: {absent: n_embd // num_attention_heads}
  attn_config.softcap: {default: null, type: number, sets: attention.softcap}
"""
    )
    recipe = read(attn_config={"softcap": 5.0})
    assert (recipe.model.hidden_size, recipe.model.kinds["full"].attention.softcap) == (32, 5.0)
    config = round_trip(recipe)
    assert (config["n_embd"], config["attn_config"]) == (32, {"softcap": 5.0})
    with pytest.raises(CheckpointError, match=r"^config.json: attn_config.alibi: not understood"):
        read(attn_config={"alibi": True})


def test_a_field_is_divided_by_another_or_by_its_root(write: Write) -> None:
    write(
        """
extends: llama
fields:
  depth: {default: 1.4, off: null, type: number, sets: model.residual_multiplier, over: sqrt num_hidden_layers}
  base: {default: 8, type: number, sets: model.head.scale, over: hidden_size}
  turning: {default: 4, sets: rotary.factor, over: hidden_size // num_attention_heads}
rope: {all: null}
fixed: {rotary.kind: partial, rotary.theta: 10000.0}
"""
    )
    recipe = read(depth=1.3, base=24, turning=6)
    assert (recipe.model.residual_multiplier, recipe.model.head.scale) == (1.3 / 6**0.5, 24 / 32)
    assert recipe.model.kinds["full"].rotary.factor == 6 / 8
    written = round_trip(recipe)
    assert (written["depth"], written["base"], written["turning"]) == (1.3, 24, 6)
    assert read(depth=None).model.residual_multiplier == 1.0


def test_a_pattern_that_is_none_or_ends_early_is_refused(write: Write) -> None:
    write(LAYERS % ("runs: {default: null, type: list}", "{patterns: runs, values: {a: sliding}}"))
    for runs, message in (
        ([["a", 2]], "runs: a list: not understood"),
        ([[["a"], 2]], "runs: lists 2 layers, and there are more"),
    ):
        with pytest.raises(CheckpointError) as refused:
            read(runs=runs)
        assert str(refused.value).startswith(f"config.json: {message}")


def test_what_a_listed_layer_needs_is_named_and_so_is_what_an_absent_field_means(write: Write) -> None:
    rule = "{list: types, values: {slow: sliding, fast: full}, needs: {odd: magic, 'null': magic}}"
    write(LAYERS % ("types: {default: null, type: list}\n  old: {default: 3, only: [0], needs: age}", rule))
    round_trip(read(types=["slow", "fast"] * 3, old=0))
    for said, message in (
        ({"types": ["slow", "odd"] * 3, "old": 0}, 'types.1: "odd": this model needs magic, which recipes do not have'),
        ({"old": 0}, "types: null: this model needs magic, which recipes do not have"),
        ({"types": ["slow"] * 6}, "old: 3: this model needs age, which recipes do not have"),
    ):
        with pytest.raises(CheckpointError) as refused:
            read(**said)
        assert str(refused.value) == f"config.json: {message}"


def test_fields_together_choose_the_weight_names(write: Write) -> None:
    write(
        """
extends: llama
fields: {new_layout: {default: false}}
switches:
  layout:
    - {if: {new_layout: true}, set: {weights: qwen3}}
    - {if: {new_layout: false}, set: {weights: llama}}
"""
    )
    assert read().weights.names == "llama"
    recipe = read(new_layout=True)
    assert recipe.weights.names == "qwen3"
    assert round_trip(recipe)["new_layout"] is True


def test_a_rope_type_may_mean_something_of_its_own(write: Write) -> None:
    write(
        """
extends: llama
rope:
  all:
    types: {dynamic: {set: {rotary.scaling.kind: linear}, fields: {alpha: {sets: rotary.scaling.factor, type: number}}}}
    fields: {beta: {default: 0.0, only: [0.0], needs: queries scaled by their position}}
"""
    )
    recipe = read(rope_parameters={"rope_type": "dynamic", "alpha": 3.0, "beta": 0})
    rotary = recipe.model.kinds["full"].rotary
    assert (rotary.scaling.kind, rotary.scaling.factor) == ("linear", 3.0)  # type: ignore[union-attr]
    round_trip(recipe)
    with pytest.raises(CheckpointError) as caught:
        read(rope_parameters={"rope_type": "default", "beta": 0.1})
    assert list(caught.value.problems) == [
        "config.json: rope_parameters.beta: 0.1: this model needs queries scaled by their position, "
        "which recipes do not have"
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("extends: made_up", "families: made_up -> made_up is a cycle"),
        ("extends: llama\nlayer_count: depth", "no rule in `fields` for depth"),
        ("extends: llama\nfields: {x: {when: {y: 1}}}", "no rule in `fields` for y"),
        ("extends: llama\nfields: {x: {setz: model.x}}", "Extra inputs are not permitted"),
    ],
)
def test_a_file_that_is_wrong_is_our_own_mistake(write: Write, text: str, reason: str) -> None:
    write(text)
    with pytest.raises(ValueError, match="families") as caught:
        load_family("made_up")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "wrong", "right"),
    [
        ("gemma4_text", "partial", "proportional"),
        ("gemma4_unified_text", "partial", "proportional"),
        ("phi", "proportional", "partial"),
        ("glm", "proportional", "partial"),
    ],
)
def test_another_rotary_than_the_family_s_is_named_with_its_line_and_what_it_costs(
    small: str, load: Callable[..., Resolved], model_type: str, wrong: str, right: str
) -> None:
    text = small.replace("model_type: llama", f"model_type: {model_type}")
    text = text.replace("{kind: full, theta: 10000}", f"{{kind: {wrong}, theta: 10000, factor: 0.5}}")
    assert against_reference(load(text))[:1] == [
        f"r.yaml:12:22: model.kinds.full.rotary.kind: `{wrong}` here, and transformers' {model_type} has `{right}`, "
        "which pairs different dimensions: 15.4 dB on Gemma 4's global layers, where text stays fluent and fewer "
        f"drafted tokens are accepted\n  write `kind: {right}`; for another architecture, set `reference: null`"
    ]
    right_kind = load(text.replace(f"kind: {wrong}", f"kind: {right}"))
    assert not any("rotary.kind" in problem for problem in against_reference(right_kind))
    assert against_reference(load(text.replace(f"{{model_type: {model_type}}}", "null"))) == []


def test_a_deliberate_experiment_with_another_rotary_still_loads() -> None:
    good = "model.layer_scalar=true"
    assert against_reference(load_resolved(E2B, [good])) == []
    problem, *_ = against_reference(load_resolved(E2B, [good, "model.kinds.full.rotary.kind=partial"]))
    assert problem.startswith(
        "--set model.kinds.full.rotary.kind=partial: model.kinds.full.rotary.kind: `partial` here"
    )


def test_every_field_that_the_family_cannot_be_is_named_where_it_is_written() -> None:
    resolved = load_resolved(E2B, ["model.norm.weight=1+w", "model.kinds.sliding.attention.v_norm=false"])
    assert [problem.partition(" here")[0] for problem in against_reference(resolved)] == [
        f"{E2B}:5:1: model.layer_scalar: false",
        "--set model.norm.weight=1+w: model.norm.weight: 1+w",
        "--set model.kinds.sliding.attention.v_norm=false: model.kinds.sliding.attention.v_norm: false",
    ]


def test_a_reference_without_rules_is_not_judged() -> None:
    unknown = load_resolved("tiny-llama", ["reference.model_type=something", "model.placement=sandwich"])
    assert against_reference(unknown) == []
    assert against_reference(load_resolved("tiny-llama", ["reference=null", "model.placement=sandwich"])) == []


def against_reference(resolved: Resolved) -> list[str]:
    """What `check_reference` says of a recipe."""
    try:
        check_reference(resolved)
    except RecipeError as error:
        return list(error.problems)
    return []


def test_a_width_is_a_multiple_of_another_field(write: Write) -> None:
    write(
        """
extends: llama
fields:
  intermediate_size: null
  multiple: {default: 4, sets: mlp.intermediate_size, times: hidden_size}
ignored: {intermediate_size: the multiple says it}
"""
    )
    recipe = read(multiple=3)
    assert recipe.model.kinds["full"].mlp.intermediate_size == 3 * 32
    assert round_trip(recipe)["multiple"] == 3
    data = recipe.model_dump()
    data["model"]["kinds"]["full"]["mlp"]["intermediate_size"] += 1
    with pytest.raises(RecipeError, match="has no multiple like it"):
        config_for(Recipe.model_validate(data))


def test_each_layer_has_a_theta_of_its_own_or_none(write: Write) -> None:
    write("extends: llama\nthetas: thetas\nfields:\n  thetas: {default: null, type: list}\n")
    thetas = [5.0, 0, 5.0, 7.0, 0, 9.0]
    recipe = read(thetas=thetas)
    assert recipe.model.layer_kinds == ("full", "full_nope", "full", "full_theta2", "full_nope", "full_theta3")
    kinds = [recipe.model.kinds[kind].rotary for kind in recipe.model.layer_kinds]
    assert [getattr(rotary, "theta", 0) for rotary in kinds] == thetas
    assert round_trip(recipe)["thetas"] == thetas
    assert read(rope_theta=3.0).model.kinds["full"].rotary.theta == 3.0
    for wrong, message in (
        ([5.0], "thetas: lists 1 layers, and there are 6"),
        ([-5.0] * 6, "thetas.0: -5.0 is not a finite number above 0"),
    ):
        with pytest.raises(CheckpointError) as refused:
            read(thetas=wrong)
        assert str(refused.value) == f"config.json: {message}"


def test_null_parameters_say_that_layers_do_not_turn(write: Write) -> None:
    slot = "{of: {attention: %s}, nested: %s, theta: 10.0, may_be_null: true}"
    slots = f"rope: {{all: null, s: {slot % ('sliding', 's')}, f: {slot % ('full', 'f')}}}"
    write(LAYERS % ("step: {default: 2}", "{every: step, is: sliding}") + slots)
    recipe = read(rope_parameters={"s": {"rope_type": "default", "rope_theta": 7.0}, "f": None})
    assert {name: kind.rotary.kind for name, kind in recipe.model.kinds.items()} == {"full": "none", "sliding": "full"}
    assert round_trip(recipe)["rope_parameters"]["f"] is None


def test_an_activation_may_have_its_own_words_alone(write: Write) -> None:
    rule = "{default: gelu, sets: mlp.activation, values: {gelu: gelu_tanh, relu: relu}, exactly: true}"
    write(f"extends: llama\nfields:\n  hidden_act: {rule}\n")
    assert round_trip(read())["hidden_act"] == "gelu"
    with pytest.raises(CheckpointError, match="hidden_act"):
        read(hidden_act="gelu_new")


def test_a_field_may_spell_the_layers_which_then_say_how_many_there_are(write: Write) -> None:
    write(
        LAYERS % ("types: {default: null, type: list}", "{list: types, values: {local: sliding, global: full}}")
        + "spelled: {pattern: {list: types, letters: {L: local, G: global}}}\ncounted: types\n"
    )

    def kinds(**fields: Any) -> tuple[str, ...]:
        return recipe_from_config({"model_type": "made_up", **SIZES, **fields}, "small").recipe.model.layer_kinds

    assert kinds(pattern="LGL") == ("sliding", "full", "sliding")
    assert kinds(types=["global", "local"], pattern="LGL") == ("full", "sliding")
    assert round_trip(read(pattern="LLGGLG"))["types"] == ["local", "local", "global", "global", "local", "global"]
    with pytest.raises(CheckpointError, match=r'types\.1: "X": not understood'):
        kinds(pattern="LX")
    with pytest.raises(CheckpointError, match="types: 3 entries, and num_hidden_layers is 6"):
        read(pattern="LGL")
