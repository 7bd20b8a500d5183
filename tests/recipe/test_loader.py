"""A wrong recipe says everything that is wrong, each with its place; a right one has a text of its own."""

from pathlib import Path

import pytest

from coreai_recipes.errors import RecipeError
from coreai_recipes.recipe import Recipe, load_recipe, load_resolved, recipe_text

GEMMA4 = Path(__file__).with_name("gemma4-e2b.yaml")

TEN_MISTAKES = """\
recipe: 1
name: ten mistakes
reference: {model_type: llama}
model:
  vocab_size: "64"
  hidden_size: 32.5
  norm: {kind: rms, eps: 0}
  head: {tied: yes}
  kinds:
    full:
      attention: {kind: full, num_heads: 4, num_kv_heads: 3, headdim: 8}
      rotary: {kind: partial, factor: 1.5, theta: 1e4}
      mlp: {kind: gated, activation: sillu, intermediate_size: 48}
  layers: [full, ful]
weights: {}
export:
  context: 64
  functions: {prefill: 128}
"""


def test_a_recipe_with_ten_mistakes_and_more_reports_each_with_its_place(refusal):
    assert refusal(TEN_MISTAKES) == [
        "r.yaml:2:7: name: `ten mistakes` is not a name\n"
        "  the name of the bundle's folder; letters, digits, `.`, `_` and `-`",
        'r.yaml:5:15: model.vocab_size: "64" is not a whole number above 0\n'
        "  rows of the embedding table, including the checkpoint's padding",
        "r.yaml:6:16: model.hidden_size: 32.5 is not a whole number above 0\n  width of the residual stream",
        "r.yaml:7:26: model.norm.eps: 0 is not above 0\n  added to the mean square (rms_norm_eps); Llama uses 1.0e-5",
        "r.yaml:8:16: model.head.tied: `yes` is not `true` or `false`\n"
        "  use the embedding table as the head (tie_word_embeddings)",
        "r.yaml:11:18: model.kinds.full.attention.head_dim: missing\n  dimensions of one head",
        "r.yaml:11:59: model.kinds.full.attention.num_kv_heads: 4 heads cannot be divided among 3 KV heads",
        "r.yaml:11:62: model.kinds.full.attention.headdim: unknown key\n  did you mean `head_dim`?",
        "r.yaml:12:39: model.kinds.full.rotary.factor: 1.5 is not in (0, 1]\n"
        "  the share of the head that rotates; GPT-NeoX uses 0.25, Phi-2 0.4",
        "r.yaml:13:38: model.kinds.full.mlp.activation: `sillu` is not one of "
        "`silu`, `gelu`, `gelu_tanh`, `relu`, `relu2`\n"
        "  did you mean `silu`?",
        "r.yaml:14:18: model.layers.1: there is no kind `ful`\n  did you mean `full`?",
        "r.yaml:15:10: weights.names: missing\n  the family whose tensor names the checkpoint uses; llama, qwen3 ...",
        "r.yaml:18:24: export.functions.prefill: prefill takes 128 tokens per call, but the context is 64",
    ]


# What to put for what in the small recipe, and the one problem that it makes.
MISTAKES = {
    ("recipe: 1", "recipe: 2"): "r.yaml:1:9: recipe: 2 is not `1`\n  version of the recipe language",
    ("recipe: 1", "recipe: true"): "r.yaml:1:9: recipe: true is not `1`\n  version of the recipe language",
    ("tied: true", "tied: true, softcap: .inf"): (
        "r.yaml:8:31: model.head.softcap: .inf is not a finite number\n  logits become softcap * tanh(logits / softcap)"
    ),
    ("eps: 1e-5", "eps: .nan"): (
        "r.yaml:7:26: model.norm.eps: .nan is not a finite number\n"
        "  added to the mean square (rms_norm_eps); Llama uses 1.0e-5"
    ),
    ("eps: 1e-5", "eps: 1e999"): (
        "r.yaml:7:26: model.norm.eps: 1e999 is not a finite number\n"
        "  added to the mean square (rms_norm_eps); Llama uses 1.0e-5"
    ),
    ("vocab_size: 64", "vocab_size: 4294967296"): (
        "r.yaml:5:15: model.vocab_size: 4294967296 is more than 1048576\n"
        "  rows of the embedding table, including the checkpoint's padding"
    ),
    ("vocab_size: 64", "vocab_size: null"): (
        "r.yaml:5:15: model.vocab_size: null is not a whole number above 0\n"
        "  rows of the embedding table, including the checkpoint's padding"
    ),
    ("vocab_size: 64", "vocab_size: [64]"): (
        "r.yaml:5:15: model.vocab_size: a list is not a whole number above 0\n"
        "  rows of the embedding table, including the checkpoint's padding"
    ),
    ("theta: 10000", "theta: true"): (
        "r.yaml:12:35: model.kinds.full.rotary.theta: true is not a number above 0\n"
        "  base of the geometric series of frequencies (rope_theta)"
    ),
    ("head: {tied: true}", "head: tied"): (
        "r.yaml:8:9: model.head: `tied` is not a mapping\n  from the last hidden state to logits"
    ),
    ("kind: full, theta", "kind: fulll, theta"): (
        "r.yaml:12:22: model.kinds.full.rotary.kind: `fulll` is not one of `full`, `partial`, `proportional`, `none`\n"
        "  did you mean `full`?"
    ),
    ("kind: full, theta", "kind: 3, theta"): (
        "r.yaml:12:22: model.kinds.full.rotary.kind: 3 is not one of `full`, `partial`, `proportional`, `none`"
    ),
    ("{kind: full, theta: 10000}", "{theta: 10000}"): (
        "r.yaml:12:15: model.kinds.full.rotary: `kind` is missing: one of `full`, `partial`, `proportional`, `none`"
    ),
    ("{kind: full, theta: 10000}", "{factor: 0.5, theta: 10000}"): (
        "r.yaml:12:15: model.kinds.full.rotary: "
        "`factor` needs `kind: partial` or `kind: proportional`, which pair different dimensions\n"
        "  add `kind: partial` (GPT-NeoX, Phi, GLM) or `kind: proportional` (Gemma 4)"
    ),
    ("theta: 10000}", "theta: 10000, factor: 0.5}"): (
        "r.yaml:12:42: model.kinds.full.rotary.factor: unknown key\n"
        "  `partial` and `proportional` have it, `full` does not"
    ),
    ("kind: full, theta: 10000", "kind: proportional, theta: 10000, factor: 1.5"): (
        "r.yaml:12:58: model.kinds.full.rotary.factor: 1.5 is not in (0, 1]\n"
        "  the share of the head that rotates; Gemma 4 uses 0.25"
    ),
    ("kind: full, theta: 10000", "kind: proportional, theta: 1, factor: 0.25, pairing: interleaved"): (
        "r.yaml:12:69: model.kinds.full.rotary.pairing: `interleaved` is not `half`\n  pairs (i, i + head_dim/2)"
    ),
    (
        "kind: gated",
        "kind: dense",
    ): (
        "r.yaml:13:19: model.kinds.full.mlp.kind: `dense` is not one of `gated`, `plain`, `moe`, `none`\n"
        "  if a plugin has this kind, name its file with --plugin"
    ),
    ("{repeat: 3, of: [full]}", "{repeat: 0, of: [full]}"): (
        "r.yaml:14:27: model.layers.1.repeat: 0 is not in [1, 1024]\n  how often the pattern repeats"
    ),
    ("{repeat: 3, of: [full]}", "{repeat: 3, of: []}"): (
        "r.yaml:14:34: model.layers.1.of: an empty list: at least one is required\n  kinds, in the order of the layers"
    ),
    ("{repeat: 3, of: [full]}", "7"): (
        "r.yaml:14:18: model.layers.1: 7 is not a word or a mapping\n"
        "  a letter, then letters, digits and `_`, at most 64"
    ),
    ("hidden_size: 32", "hidden_size: 32\n  embedding: {scale: sqrt}"): (
        "r.yaml:7:22: model.embedding.scale: `sqrt` is neither a number above 0 nor one of `sqrt_hidden_size`, "
        "`sqrt_hidden_size_bfloat16`\n"
        "  factor of the embedding; Gemma uses sqrt_hidden_size, RecurrentGemma that in bfloat16"
    ),
    # a whole number it is
    ("export:\n", "export:\n  chunks: 65\n"): (
        "r.yaml:17:11: export.chunks: 65 is not in [1, 64]\n"
        "  how many packages hold the model, one after another in running order; `auto`: as few as keep each below the "
        "0.95 GB of weights that a phone loads; with the format `coreai` always 1"
    ),
    ("prefill: 16", "prefill: 16, decode: true"): (
        "r.yaml:18:36: export.functions.decode: true is not `1`\n  one token per call"
    ),
}


@pytest.mark.parametrize(("old", "new"), MISTAKES, ids=lambda text: text[:40])
def test_each_mistake_is_one_plain_sentence(small, refusal, old, new):
    assert old in small
    assert refusal(small.replace(old, new)) == [MISTAKES[old, new]]


def test_a_name_that_no_kind_can_have_is_marked_at_the_key(small, refusal):
    assert refusal(
        small.replace("    full:\n", "    fu-ll:\n").replace("[full", "[fu-ll").replace("of: [full", "of: [fu-ll")
    )[0] == (
        "r.yaml:10:5: model.kinds.fu-ll: not a valid name for a kind\n  use a letter, then letters, digits and `_`"
    )


def test_missing_keys_are_marked_where_they_would_stand(refusal):
    assert refusal("# a comment\nrecipe: 1\nmodel:\n  hidden_size: 8\n") == [
        "r.yaml:2:1: name: missing\n  the name of the bundle's folder; letters, digits, `.`, `_` and `-`",
        "r.yaml:2:1: reference: missing\n  the transformers model that this one must equal; null if there is none",
        "r.yaml:2:1: weights: missing\n  the tensor names of the checkpoint",
        "r.yaml:2:1: export: missing\n  how the package is written",
        "r.yaml:3:1: model.vocab_size: missing\n  rows of the embedding table, including the checkpoint's padding",
        "r.yaml:3:1: model.norm: missing\n  the norm of every layer and before the head, unless set there",
        "r.yaml:3:1: model.kinds: missing\n  layer kinds; layers of one kind differ only in their weights",
        "r.yaml:3:1: model.layers: missing\n"
        "  the kind of each layer, in order; `{repeat: N, of: [kinds]}` repeats a pattern",
        "r.yaml:3:1: model.head: missing\n  from the last hidden state to logits",
    ]


@pytest.mark.parametrize("text", ["- 1\n", "word\n", "3\n"])
def test_the_top_must_be_a_mapping(refusal, text):
    (problem,) = refusal(text)
    shown = {"- 1\n": "a list", "word\n": "`word`", "3\n": "3"}[text]
    assert problem == f"r.yaml:1:1: {shown} at the top level, where a mapping is required"


def test_a_hundred_problems_are_enough(small, refusal):
    found = refusal(small + "".join(f"k{i}: 1\n" for i in range(5000)))
    assert len(found) == 101
    assert found[-1] == "r.yaml: more problems follow: fix these first"


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(RecipeError) as caught:
        load_recipe("smollm2-135")
    assert str(caught.value) == (
        "smollm2-135: no such file, and no built-in recipe of that name\n"
        "  did you mean `smollm2-135m`? `recipe list` names the built-in ones"
    )


def test_a_bundle_that_is_not_built_yet_is_said_to_be_a_recipes(tmp_path, monkeypatch):
    """`recipe lint dist/NAME` before `recipe build NAME` asked whether NAME was meant."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="built-in recipe: `recipe build gemma3-270m` writes"):
        load_recipe("dist/gemma3-270m")
    (tmp_path / "dist/mine").mkdir(parents=True)
    (tmp_path / "dist/mine/manifest.json").touch()
    with pytest.raises(RecipeError, match="did you mean the bundle `dist/mine`"):
        load_recipe("mine")


@pytest.mark.parametrize("source", ["a\0b", "x" * 5000, "../recipes/none.yaml", "~none", ""])
def test_strange_names_are_refused_without_a_traceback(source):
    with pytest.raises(RecipeError):
        load_recipe(source)


@pytest.mark.parametrize("name", ["one.mlmodel", "one.mlpackage", "one.mlmodelc"])
def test_a_model_is_named_as_one(name: str, tmp_path: Path) -> None:
    """Its bytes used to be read as YAML: `4:4: not UTF-8: byte 0xa0`."""
    (tmp_path / name).write_bytes(b"\x08\x04\xa0")
    with pytest.raises(RecipeError) as refused:
        load_recipe(tmp_path / name)
    assert str(refused.value) == (
        f"{tmp_path / name}: a Core ML model, not a recipe\n  `recipe lint {tmp_path / name}` looks at it"
    )


def test_a_folder_is_no_recipe_but_does_not_hide_a_built_in_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2-135m", "mine"):
        (tmp_path / name).mkdir()
    assert load_recipe("smollm2-135m").name == "smollm2-135m"
    with pytest.raises(RecipeError, match=r"^mine: a folder, not a recipe\n  it has neither"):
        load_recipe("mine")
    (tmp_path / "mine/config.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"^mine: a folder, not a recipe\n  `recipe new mine` writes a recipe for"):
        load_recipe("mine")
    (tmp_path / "mine/manifest.json").write_text("{}")
    with pytest.raises(
        RecipeError, match=r"^mine: a folder, not a recipe\n  the recipe of the bundle in it is mine/rec"
    ):
        load_recipe("mine")


def test_a_path_comes_before_a_built_in_name(small, load, tmp_path):
    (tmp_path / "qwen3-0.6b.yaml").write_text(small)
    load(small)
    assert load_recipe("qwen3-0.6b.yaml").name == "small"
    assert load_recipe("qwen3-0.6b").name == "qwen3-0.6b"


def test_the_text_of_a_recipe_loads_back_and_says_every_default(small, load):
    resolved = load(small)
    assert resolved.data["model"]["norm"] == {"kind": "rms", "eps": 1e-5}
    assert "norm: {kind: rms, eps: 1.0e-05, weight: w}" in resolved.text()
    again = load(resolved.text())
    assert again.recipe == resolved.recipe
    assert again.text() == resolved.text()
    assert again.sha256 == resolved.sha256


def test_recipes_that_say_the_same_have_the_same_digest(small, load):
    assert load(small).sha256 == load("# another comment\n" + small.replace("theta: 10000", "theta: 1.0e4")).sha256
    assert load(small).sha256 != load(small.replace("theta: 10000", "theta: 10001")).sha256


def test_a_recipe_without_a_reference_says_so_in_its_text(small, load):
    resolved = load(small.replace("{model_type: llama}", "null"))
    assert resolved.recipe.reference is None
    assert "\nreference: null\n" in resolved.text()
    assert load(resolved.text()).recipe == resolved.recipe


def test_gemma_4_as_the_design_writes_it():
    resolved = load_resolved(GEMMA4)
    model = resolved.recipe.model
    assert len(model.layer_kinds) == 35
    assert model.layer_kinds[:5] == ("sliding",) * 4 + ("full",)
    assert model.layer_kinds[15:20] == ("sliding_shared",) * 4 + ("full_shared",)
    assert model.kinds["full_shared"].attention.model_dump(exclude_defaults=True) == {
        "kind": "full",
        "num_heads": 8,
        "num_kv_heads": 1,
        "head_dim": 512,
        "qk_norm": {"over": "head"},
        "v_norm": True,
        "scale": 1.0,
        "shares_kv_with": "full",
    }
    assert model.kinds["full_shared"].rotary.kind == "proportional"
    assert model.kinds["sliding_shared"].mlp.intermediate_size == 12288
    assert resolved.notes == ("model.kinds.full.attention.window: dropped, `full` attention has none",)
    assert Recipe.model_validate(resolved.recipe.model_dump()) == resolved.recipe
    assert recipe_text(resolved.recipe) == resolved.text()
