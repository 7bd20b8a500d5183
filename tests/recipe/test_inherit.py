"""`extends`, `like` and `--set`: what is merged, what is dropped, and where a problem is said to be."""

import pytest

CHILD = "recipe: 1\nname: child\nextends: base\n"

SLIDING = """\
    sliding:
      like: full
      attention: {kind: sliding, window: 8}
"""


def with_sliding(small: str) -> str:
    return small.replace("  layers: [full,", SLIDING + "  layers: [sliding, full,")


def test_extends_merges_mappings_and_replaces_lists(small, load):
    child = CHILD.replace("base", "base.yaml") + "model: {hidden_size: 40, layers: [full]}\n"
    resolved = load(child, base=small)
    assert resolved.recipe.name == "child"
    assert resolved.recipe.model.hidden_size == 40
    assert resolved.recipe.model.vocab_size == 64
    assert resolved.recipe.model.layers == ["full"]
    assert "extends" not in resolved.data


def test_extends_takes_a_built_in_name(load):
    assert load(CHILD.replace("base", "qwen3-0.6b")).recipe.model.hidden_size == 1024


def test_null_removes_a_key_and_is_a_value_where_the_schema_says_so(small, load):
    base = small.replace("tied: true", "tied: true, softcap: 30.0")
    child = CHILD.replace("base", "base.yaml") + "model: {head: {softcap: null}}\nreference: null\n"
    resolved = load(child, base=base)
    assert resolved.data["model"]["head"] == {"tied": True}
    assert resolved.recipe.reference is None


def test_a_problem_is_marked_in_the_file_that_says_it(small, refusal):
    child = CHILD.replace("base", "base.yaml") + "model: {hidden_size: 0}\n"
    assert refusal(child, base=small.replace("vocab_size: 64", "vocab_size: -1")) == [
        "r.yaml:4:22: model.hidden_size: 0 is not above 0\n  width of the residual stream",
        "base.yaml:5:15: model.vocab_size: -1 is not above 0\n"
        "  rows of the embedding table, including the checkpoint's padding",
    ]


def test_a_circle_of_extends_shows_the_chain(refusal):
    (problem,) = refusal(CHILD.replace("base", "a.yaml"), a="extends: b.yaml\n", b="extends: r.yaml\n")
    assert problem == "b.yaml:1:10: extends: a cycle: r.yaml -> a.yaml -> b.yaml -> r.yaml"


def test_a_recipe_may_not_extend_itself(refusal):
    assert refusal("extends: r.yaml\n") == ["r.yaml:1:10: extends: a cycle: r.yaml -> r.yaml"]


def test_a_long_chain_of_extends_is_refused(refusal):
    (problem,) = refusal("extends: a0.yaml\n", **{f"a{i}": f"extends: a{i + 1}.yaml\n" for i in range(20)})
    assert problem.startswith("a15.yaml:1:10: extends: more than 16 recipes that extend one another: r.yaml -> a0.yaml")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "smollm2-135",
            "smollm2-135: no such file, and no built-in recipe of that name\n"
            "  did you mean `smollm2-135m`? `recipe list` names the built-in ones",
        ),
        ("[a]", "a list is neither a path nor the name of a recipe"),
        ("null", "null is neither a path nor the name of a recipe"),
    ],
)
def test_what_cannot_be_extended_is_said_where_it_is_named(refusal, value, message):
    assert refusal(CHILD.replace("base", value)) == [f"r.yaml:3:10: extends: {message}"]


def test_like_may_name_a_later_kind_and_chains(small, load):
    kinds = "    last: {like: middle, rotary: {theta: 5}}\n    middle: {like: full, mlp: {intermediate_size: 7}}\n"
    text = small.replace("  kinds:\n", f"  kinds:\n{kinds}").replace("[full,", "[full, middle, last,")
    model = load(text).recipe.model
    assert model.kinds["last"].mlp.intermediate_size == 7
    assert model.kinds["last"].rotary.theta == 5
    assert list(model.kinds) == ["last", "middle", "full"]


def test_a_new_kind_drops_the_inherited_keys_that_it_does_not_have(small, load):
    text = with_sliding(small).replace("[sliding, full,", "[sliding, again, full,")
    again = "    again:\n      like: sliding\n      attention: {kind: full}\n"
    resolved = load(text.replace("  layers:", again + "  layers:"))
    assert "window" not in resolved.data["model"]["kinds"]["again"]["attention"]
    assert resolved.notes == ("model.kinds.again.attention.window: dropped, `full` attention has none",)


def test_keys_beside_the_new_kind_are_still_checked(small, refusal):
    text = with_sliding(small).replace("[sliding, full,", "[sliding, again, full,")
    again = "    again:\n      like: sliding\n      attention: {kind: full, window: 8}\n"
    assert refusal(text.replace("  layers:", again + "  layers:")) == [
        "r.yaml:19:31: model.kinds.again.attention.window: unknown key\n  `sliding` has it, `full` does not"
    ]


def test_a_misspelt_inherited_key_is_not_dropped_silently(small, refusal):
    text = with_sliding(small).replace("head_dim: 8", "head_dim: 8, windw: 3")
    assert refusal(text) == [
        "r.yaml:11:75: model.kinds.full.attention.windw: unknown key\n"
        "  did you mean `window`? `sliding` has it, `full` does not"
    ]


def test_an_inherited_mistake_is_told_once_where_it_was_written(small, refusal):
    assert refusal(with_sliding(small).replace("theta: 10000", "theta: 0")) == [
        "r.yaml:12:35: model.kinds.full.rotary.theta: 0 is not above 0\n"
        "  base of the geometric series of frequencies (rope_theta)"
    ]


def test_kinds_like_each_other_are_a_circle(small, refusal):
    text = small.replace("  kinds:\n", "  kinds:\n    a: {like: b}\n    b: {like: a}\n").replace(
        "[full,", "[a, b, full,"
    )
    assert refusal(text) == ["r.yaml:11:15: model.kinds.b.like: a cycle: `a` is like `b` is like `a`"]


def test_like_an_unknown_kind_offers_the_nearest_and_no_more(small, refusal):
    text = with_sliding(small).replace("like: full", "like: fulll")
    assert refusal(text) == ["r.yaml:15:13: model.kinds.sliding.like: there is no kind `fulll`\n  did you mean `full`?"]


def test_null_below_a_kind_with_like_removes_what_it_inherits(small, load):
    base = small.replace("head_dim: 8}", "head_dim: 8, bias: qkv, softcap: 50.0}")
    child = CHILD.replace("base", "base.yaml") + (
        "model:\n  kinds:\n    other: {like: full, attention: {softcap: null, bias: null}}\n  layers: [full, other]\n"
    )
    kinds = load(child, base=base).data["model"]["kinds"]
    assert "softcap" in kinds["full"]["attention"]
    assert not {"softcap", "bias"} & kinds["other"]["attention"].keys()


def test_a_kind_can_be_removed_by_null(small, load):
    child = CHILD.replace("base", "base.yaml") + "model: {kinds: {sliding: null}, layers: [full]}\n"
    assert list(load(child, base=with_sliding(small)).recipe.model.kinds) == ["full"]


def test_like_is_expanded_after_extends_and_set(small, load):
    child = CHILD.replace("base", "base.yaml") + "model: {kinds: {full: {rotary: {theta: 7}}}}\n"
    recipe = load(child, "model.kinds.full.mlp.intermediate_size=9", base=with_sliding(small)).recipe
    assert recipe.model.kinds["sliding"].rotary.theta == 7
    assert recipe.model.kinds["sliding"].mlp.intermediate_size == 9


# --- --set ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("export.context=128", ("export", "context"), 128),
        ("model.norm.eps=1e-6", ("model", "norm", "eps"), 1e-6),
        ("model.layers.1.repeat=2", ("model", "layers", 1, "repeat"), 2),
        ("model.layers.1.of.0=full", ("model", "layers", 1, "of", 0), "full"),
        ("model.layers=[full]", ("model", "layers"), ["full"]),
        ("model.embedding.scale=sqrt_hidden_size", ("model", "embedding", "scale"), "sqrt_hidden_size"),
        ("model.head.softcap=30", ("model", "head", "softcap"), 30),
        ("reference=null", ("reference",), None),
        ("reference.checkpoint=a=b", ("reference", "checkpoint"), "a=b"),
        ('name="010"', ("name",), "010"),
    ],
)
def test_set_reaches_every_value(small, load, override, path, value):
    data = load(small, override).data
    for step in path:
        data = data[step]
    assert data == value


def test_set_changes_a_kind_as_a_merge_does(small, load):
    resolved = load(
        with_sliding(small), "model.kinds.sliding.attention.kind=full", "model.kinds.full.rotary={kind: none}"
    )
    assert "window" not in resolved.data["model"]["kinds"]["sliding"]["attention"]
    assert resolved.data["model"]["kinds"]["full"]["rotary"] == {"kind": "none"}
    assert resolved.notes == (
        "model.kinds.sliding.attention.window: dropped, `full` attention has none",
        "model.kinds.full.rotary.theta: dropped, `none` rotary has none",
    )


def test_another_format_drops_the_fields_that_it_does_not_have(small, load):
    base = small.replace("export:", "export:\n  compute_units: all\n  device: M1\n  norm: mirrored", 1)
    notes = (
        "export.compute_units: dropped, `coreai` export has none",
        "export.device: dropped, `coreai` export has none",
    )
    by_set = load(base, "export.format=coreai")
    by_extends = load(CHILD.replace("base", "base.yaml") + "export: {format: coreai}\n", base=base)
    for resolved in (by_set, by_extends):
        assert resolved.notes == notes
        assert (resolved.recipe.export.format, resolved.recipe.export.norm) == ("coreai", "mirrored")
    same = load(base, "export.format=coreml")
    assert (same.notes, same.recipe.export.device) == ((), "M1")


def test_a_field_of_another_format_is_refused_where_it_is_said(small, refusal):
    assert refusal(small, "export.format=coreai", "export.device=M1") == [
        "--set export.device=M1: export.device: unknown key\n  `coreml` has it, `coreai` does not"
    ]
    assert refusal(small, "export.format=onnx") == [
        "--set export.format=onnx: export.format: `onnx` is not one of `coreml`, `coreai`"
    ]


def test_set_says_a_key_before_the_kind_that_has_it(small, load):
    overrides = ("model.kinds.full.attention.window=8", "model.kinds.full.attention.kind=sliding")
    assert load(small, *overrides).recipe.model.kinds["full"].attention.window == 8


SET_REFUSED = {
    "export.context": "--set export.context: must be KEY=VALUE, as in export.context=512",
    "=3": "--set =3: must be KEY=VALUE, as in export.context=512",
    "export.contxt=3": "--set export.contxt=3: export.contxt: unknown key\n  did you mean `context`?",
    "model.kinds.ful.like=x": "--set model.kinds.ful.like=x: model.kinds.ful: unknown key\n  did you mean `full`?",
    "name.x=3": "--set name.x=3: name.x: unknown key: `name` is `small`, nothing is below it",
    "model.head.softcap.x=3": (
        "--set model.head.softcap.x=3: model.head.softcap.x: unknown key: `model.head.softcap` is one value, "
        "nothing is below it"
    ),
    "model.layers.2=full": (
        "--set model.layers.2=full: model.layers.2: `model.layers` has no such entry\n  the entries are 0 to 1"
    ),
    "model.layers.-1=full": (
        "--set model.layers.-1=full: model.layers.-1: `model.layers` has no such entry\n  the entries are 0 to 1"
    ),
    "export.context=": ("--set export.context=: no value"),
    "export.context=010": ("--set export.context=010: 010 starts with 0, which some parsers read as octal: write 10"),
    "export.context=!!int 3": (
        "--set export.context=!!int 3: tag `tag:yaml.org,2002:int`: a recipe is plain data and has no tags"
    ),
    "model.norm.eps=a": (
        "--set model.norm.eps=a: model.norm.eps: `a` is not a number above 0\n"
        "  added to the mean square (rms_norm_eps); Llama uses 1.0e-5"
    ),
    "model.kinds.full.rotary.factor=0.5": (
        "--set model.kinds.full.rotary.factor=0.5: model.kinds.full.rotary.factor: unknown key\n"
        "  `partial` and `proportional` have it, `full` does not"
    ),
}


@pytest.mark.parametrize("override", SET_REFUSED)
def test_a_wrong_set_is_one_sentence(small, refusal, override):
    assert refusal(small, override) == [SET_REFUSED[override]]


def test_the_last_of_two_sets_wins(small, load):
    assert load(small, "export.context=128", "export.context=256").recipe.export.context == 256
