"""Each rule between fields: where it fires, with its whole sentence, and that its neighbour passes."""

import pytest
from pydantic import ValidationError

from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.plain import Problem
from coreai_recipes.recipe.rules import find_problems

SHARED = """\
    shared:
      like: full
      attention: {shares_kv_with: full}
"""

ROTARY = "rotary: {kind: full, theta: 10000}"

GATED = "mlp: {kind: gated, activation: silu, intermediate_size: 48}"
HEADS = "attention: {kind: full, num_heads: 4, num_kv_heads: 2, head_dim: 8}"
MIXTURE_OF_HEADS = "attention: {kind: mixture, num_experts: 4, num_kv_heads: 2, head_dim: 8, router: {score: softmax"
MIXTURE = "mlp: {kind: moe, activation: silu, intermediate_size: 8, num_experts: 4, router: {score: sparsemixer"

# What to put for what in the small recipe, the problem, and what to put instead that is right.
RULES = [
    (
        "num_kv_heads: 2",
        "num_kv_heads: 3",
        "r.yaml:11:59: model.kinds.full.attention.num_kv_heads: 4 heads cannot be divided among 3 KV heads",
        "num_kv_heads: 4",
    ),
    (
        GATED,
        f"{MIXTURE}, top: 2}}}}",
        "r.yaml:13:96: model.kinds.full.mlp.router.score: sparsemixer needs jitter, and there is none",
        f"{MIXTURE}, top: 2, jitter: 0.01}}}}",
    ),
    (
        GATED,
        f"{MIXTURE}, top: 2, jitter: 0.01, renorm: true}}}}",
        "r.yaml:13:139: model.kinds.full.mlp.router.renorm: sparsemixer has no renorm\n  remove it",
        f"{MIXTURE}, top: 2, jitter: 0.01, renorm: false}}}}",
    ),
    (
        "attention: {kind: full, num_heads: 4, num_kv_heads: 2",
        "attention: {kind: differential, num_heads: 3, num_kv_heads: 3",
        "r.yaml:11:67: model.kinds.full.attention.num_kv_heads: 3 KV heads have no two halves, whose heads are paired",
        "attention: {kind: differential, num_heads: 4, num_kv_heads: 2",
    ),
    (
        HEADS,
        f"{MIXTURE_OF_HEADS}, top: 5}}}}",
        "r.yaml:11:110: model.kinds.full.attention.router.top: 5 of 4 experts cannot be chosen",
        f"{MIXTURE_OF_HEADS}, top: 4}}}}",
    ),
    (
        HEADS,
        f"{MIXTURE_OF_HEADS}, top: 2, weighs: input}}}}",
        "r.yaml:11:121: model.kinds.full.attention.router.weighs: queries that are weighed would weigh scores: "
        "heads are weighed by what they give\n  remove it",
        f"{MIXTURE_OF_HEADS}, top: 2, weighs: output}}}}",
    ),
    (
        "head_dim: 8",
        "head_dim: 7",
        "r.yaml:11:72: model.kinds.full.attention.head_dim: 7 is odd, but a rotary rotates dimensions in pairs",
        "head_dim: 6",
    ),
    (
        "{kind: full, num_heads",
        "{kind: sliding, window: 65, num_heads",
        "r.yaml:11:42: model.kinds.full.attention.window: "
        "context 64 is shorter than the window 65: the window would never slide\n"
        "  raise export.context to 65 or more, or use `kind: full`, which is the same within 64",
        "{kind: sliding, window: 64, num_heads",
    ),
    (
        ROTARY,
        "rotary: {kind: partial, theta: 1, factor: 0.2}",
        "r.yaml:12:49: model.kinds.full.rotary.factor: 0.2 of head_dim 8 leaves no pair to rotate",
        "rotary: {kind: partial, theta: 1, factor: 0.25}",
    ),
    (
        ROTARY,
        "rotary: {kind: partial, theta: 1, factor: 0.4}",
        "r.yaml:12:49: model.kinds.full.rotary.factor: 0.4 of head_dim 8 is 3 dimensions, not whole pairs",
        "rotary: {kind: partial, theta: 1, factor: 0.5}",
    ),
    (
        ROTARY,
        "rotary: {kind: proportional, theta: 1, factor: 0.2}",
        "r.yaml:12:54: model.kinds.full.rotary.factor: 0.2 of head_dim 8 leaves no pair to rotate",
        "rotary: {kind: proportional, theta: 1, factor: 0.25}",
    ),
    (
        ROTARY,
        "rotary: {kind: full, theta: 10000, precision: bfloat16}",
        "r.yaml:12:53: model.kinds.full.rotary.precision: "
        "angles in bfloat16 lose positions (bfloat16 frequencies: cosine error 0.35 at position 200)\n"
        "  use float32, or add `lossy: true` to accept the loss",
        "rotary: {kind: full, theta: 10000, precision: bfloat16, lossy: true}",
    ),
    (
        ROTARY,
        "rotary: {kind: full, theta: 10000, scaling: {kind: llama3, factor: 8, low_freq_factor: 5, "
        "high_freq_factor: 4, original_context: 32}}",
        "r.yaml:12:94: model.kinds.full.rotary.scaling.low_freq_factor: "
        "5 is above high_freq_factor 4: between them lies the smooth transition",
        "rotary: {kind: full, theta: 10000, scaling: {kind: llama3, factor: 8, low_freq_factor: 4, "
        "high_freq_factor: 4, original_context: 32}}",
    ),
    (
        ROTARY,
        "rotary: {kind: full, theta: 10000, scaling: {kind: yarn, factor: 8, beta_slow: 32, original_context: 32}}",
        "r.yaml:12:86: model.kinds.full.rotary.scaling.beta_slow: "
        "32 is not below beta_fast 32: between them lies the ramp",
        "rotary: {kind: full, theta: 10000, scaling: {kind: yarn, factor: 8, beta_slow: 31, original_context: 32}}",
    ),
    (
        ROTARY,
        "rotary: {kind: full, theta: 10000, scaling: {kind: dynamic, factor: 8, original_context: 63}}",
        "r.yaml:12:51: model.kinds.full.rotary.scaling: context 64 exceeds the trained 63: beyond it frequencies "
        "change with a text's length, and keys in the cache were rotated by the earlier ones\n"
        "  set export.context to 63 or less, or use a fixed scaling: yarn, longrope, linear",
        "rotary: {kind: full, theta: 10000, scaling: {kind: dynamic, factor: 8, original_context: 64}}",
    ),
    (
        ROTARY,
        "rotary: {kind: partial, factor: 0.5, theta: 10000, scaling: {kind: longrope, factor: 8, original_context: 32, "
        "short_factor: [1, 2], long_factor: [1, 2, 3, 4]}}",
        "r.yaml:12:152: model.kinds.full.rotary.scaling.long_factor: 4 factors for the 2 pairs that turn",
        "rotary: {kind: partial, factor: 0.5, theta: 10000, scaling: {kind: longrope, factor: 8, original_context: 32, "
        "short_factor: [1, 2], long_factor: [1, 2]}}",
    ),
    (
        "[full, {",
        "[full, ful, {",
        "r.yaml:14:18: model.layers.1: there is no kind `ful`\n  did you mean `full`?",
        "[full, full, {",
    ),
    (
        "of: [full]",
        "of: [full, other]",
        "r.yaml:14:41: model.layers.1.of.1: there is no kind `other`\n  available: full",
        "of: [full, full]",
    ),
    (
        "  layers:",
        "    spare: {like: full}\n  layers:",
        "r.yaml:14:5: model.kinds.spare: no layer is of kind `spare`\n  use it in model.layers, or remove it",
        "  layers:",
    ),
    ("repeat: 3", "repeat: 1024", "r.yaml:14:11: model.layers: more than 1024 layers", "repeat: 1023"),
    (
        "prefill: 16",
        "prefill: 65",
        "r.yaml:18:24: export.functions.prefill: prefill takes 65 tokens per call, but the context is 64",
        "prefill: 64",
    ),
    (
        "prefill: 16",
        "prefill: 16, score: 65",
        "r.yaml:18:35: export.functions.score: score takes 65 tokens per call, but the context is 64",
        "prefill: 16, score: 64",
    ),
]


@pytest.mark.parametrize(("old", "wrong", "problem", "right"), RULES, ids=[rule[2].split(": ")[1] for rule in RULES])
def test_each_rule_fires_and_spares_its_neighbour(small, load, refusal, old, wrong, problem, right):
    assert refusal(small.replace(old, wrong)) == [problem]
    load(small.replace(old, right))


def shared(small: str) -> str:
    return small.replace("  layers: [full, {repeat: 3, of: [full]}]", f"{SHARED}  layers: [full, shared]")


SHARING = {
    ("[full, shared]", "[shared, full]"): (
        "r.yaml:16:35: model.kinds.shared.attention.shares_kv_with: "
        "no layer of kind `full` comes before the first of `shared`"
    ),
    ("shares_kv_with: full", "shares_kv_with: ful"): (
        "r.yaml:16:35: model.kinds.shared.attention.shares_kv_with: there is no kind `ful`\n  did you mean `full`?"
    ),
    ("shares_kv_with: full", "shares_kv_with: shared"): (
        "r.yaml:16:35: model.kinds.shared.attention.shares_kv_with: `shared` has no cache of its own: it shares one too"
    ),
    ("shares_kv_with: full", "shares_kv_with: full, head_dim: 16"): (
        "r.yaml:16:35: model.kinds.shared.attention.shares_kv_with: "
        "head_dim is 16 here and 8 in `full`: one cache cannot serve both"
    ),
    ("shares_kv_with: full}", "shares_kv_with: full}\n      rotary: {theta: 5}"): (
        "r.yaml:17:23: model.kinds.shared.rotary.theta: `shared` reads keys that `full` rotates with theta 10000\n"
        "  make both rotaries equal, or leave out attention.shares_kv_with"
    ),
}


@pytest.mark.parametrize(("old", "new"), SHARING)
def test_a_cache_is_shared_by_kinds_that_can_read_it(small, load, refusal, old, new):
    load(shared(small))
    assert SHARING[old, new] in refusal(shared(small).replace(old, new))


DRAFTED = """\
draft:
  reference: {model_type: gemma4_assistant}
  vocab_size: 64
  hidden_size: 24
  norm: {kind: rms, eps: 1e-5}
  kinds:
    full:
      attention: {kind: full, num_heads: 4, num_kv_heads: 2, head_dim: 8, shares_kv_with: full}
      rotary: {kind: full, theta: 10000}
      mlp: {kind: gated, activation: silu, intermediate_size: 48}
  layers: [full]
  weights: {names: gemma4_assistant}
"""

DRAFTS_ROTARY = "full}\n      rotary: {kind: full, theta: 10000}"
DRAFTS = {
    ("num_kv_heads: 2, head_dim: 8, s", "num_kv_heads: 4, head_dim: 8, s"): (
        "r.yaml:26:91: draft.kinds.full.attention.shares_kv_with: "
        "num_kv_heads is 4 here and 2 in `full`: one cache cannot serve both"
    ),
    ("head_dim: 8, s", "head_dim: 16, s"): (
        "r.yaml:26:92: draft.kinds.full.attention.shares_kv_with: "
        "head_dim is 16 here and 8 in `full`: one cache cannot serve both"
    ),
    (", shares_kv_with: full", ""): (
        "r.yaml:26:18: draft.kinds.full.attention: a draft has no cache of its own: name the kind that it reads\n"
        "  add `shares_kv_with:` with a kind of the model"
    ),
    ("  vocab_size: 64\n  hidden_size: 24", "  vocab_size: 65\n  hidden_size: 24"): (
        "r.yaml:21:15: draft.vocab_size: 65 tokens here and 64 in the model: they must be equal"
    ),
    (", score: 5", ""): (
        "r.yaml:18:14: export.functions: `score` is missing, which verifies the draft's tokens\n"
        "  add `score: 5`: the last token and 4 drafted ones"
    ),
    (DRAFTS_ROTARY, DRAFTS_ROTARY.replace("full, theta", "partial, factor: 0.5, theta")): (
        "r.yaml:27:22: draft.kinds.full.rotary.kind: `full` reads keys that `full` rotates with kind full\n"
        "  make both rotaries equal, or leave out attention.shares_kv_with"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), DRAFTS)
def test_a_draft_must_fit_its_target(small, load, refusal, old, new):
    text = small.replace("prefill: 16}", "prefill: 16, score: 5}") + DRAFTED
    load(text)
    assert DRAFTS[old, new] in refusal(text.replace(old, new))


def test_a_recipe_made_in_python_keeps_the_rules_too(small, load):
    data = load(small).data
    data["export"]["functions"]["prefill"] = 65
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(data)
    (error,) = caught.value.errors()
    message = "prefill takes 65 tokens per call, but the context is 64"
    assert error["type"] == "rules"
    assert error["msg"] == f"export.functions.prefill: {message}"
    assert error["ctx"]["problems"] == [Problem(("export", "functions", "prefill"), "function-context", message)]


def test_field_errors_do_not_hide_the_rules(small, refusal):
    text = small.replace("vocab_size: 64", "vocab_size: 0").replace("num_kv_heads: 2", "num_kv_heads: 3")
    assert [problem.split(": ")[1] for problem in refusal(text)] == [
        "model.vocab_size",
        "model.kinds.full.attention.num_kv_heads",
    ]


@pytest.mark.parametrize("data", [{}, {"model": 3}, {"model": {"kinds": [1], "layers": "full"}}, {"export": None}])
def test_rules_are_silent_about_what_is_not_there(data):
    assert find_problems(data) == []


RESIDUAL = "context: 64\n  residual_scale: 0.5"


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (("placement: pre", "placement: pre"), []),
        (("placement: pre", "placement: add"), ["the blocks of `full` read the residual stream without a norm that"]),
        (("weight: w", "weight: none"), []),
        (
            ("weight: w}\n  placement: pre", "weight: none}\n  placement: sandwich"),
            ["the norms after the blocks of `full` have no weights that could absorb it"],
        ),
        (("tied: true", "tied: true, norm: none"), ["no norm before the head would undo it"]),
    ],
)
def test_a_scaled_stream_that_nothing_undoes_is_refused_where_the_scale_is_said(small, load, refusal, change, problems):
    """`validate` said valid where `plan` and `build` refused."""
    text = small.replace("context: 64", RESIDUAL)
    norm = next(line for line in text.splitlines() if line.startswith("  norm: {"))
    text = text.replace(norm, f"{norm.rstrip('}')}, weight: w}}\n  placement: pre")
    assert change[0] in text
    text = text.replace(*change)
    if not problems:
        assert load(text).recipe.export.residual_scale == 0.5
        return
    found = refusal(text)
    assert [line.split(": ", 2)[1] for line in found] == ["export.residual_scale"] * len(problems)
    assert all(line.split(": ", 2)[2].startswith(problem) for line, problem in zip(found, problems, strict=True))
    place = found[0].split(":")
    assert text.splitlines()[int(place[1]) - 1][int(place[2]) - 1 :] == "0.5"


LATENT = "attention: {kind: latent, num_heads: 4, num_kv_heads: 4, nope_dim: 6, rope_dim: 4, value_dim: 8, kv_rank: 8}"
GROUPED = "attention: {kind: full, num_heads: 4, num_kv_heads: 2, head_dim: 8}"


def test_latent_values_are_no_wider_than_keys(small, load, refusal):
    """The two have one cache: wider values were a traceback of the build."""
    load(small.replace(GROUPED, LATENT.replace("value_dim: 8", "value_dim: 10")))
    (problem,) = refusal(small.replace(GROUPED, LATENT.replace("value_dim: 8", "value_dim: 11")))
    assert problem.split(": ", 1)[1].startswith(
        "model.kinds.full.attention.value_dim: 11 is more than a head's keys have, 10: one cache holds both"
    )


def test_latent_heads_that_do_not_turn_are_run(small, load):
    """Their rotary had no pairing, which only a build asked for."""
    import torch

    from coreai_recipes.decoder.model import build_decoder, fill

    text = small.replace(GROUPED, LATENT).replace("rotary: {kind: full, theta: 10000}", "rotary: {kind: none}")
    decoder = build_decoder(load(text).recipe)
    shapes = {name: parameter.shape for name, parameter in decoder.named_parameters()}
    fill(decoder, lambda name: torch.ones(shapes[name]))
    assert decoder(torch.tensor([[1, 2, 3]])).isfinite().all()


@pytest.mark.parametrize(
    ("attention", "rotary", "message"),
    [
        (
            {"channels": 64, "taps": 3},
            "none",
            "model.kinds.conv.attention.channels: 64, and hidden_size is 32\n  write 32",
        ),
        ({"channels": 32, "taps": 63}, "none", "model.kinds.conv.attention.taps: 63 taps see more than the context 62"),
        (
            {"channels": 32, "taps": 3},
            "full",
            "model.kinds.conv.rotary.kind: full: a convolution turns nothing\n  write `none`",
        ),
    ],
)
def test_a_convolution_fits_the_hidden_state_and_turns_nothing(attention, rotary, message):
    kind = {"attention": {"kind": "short_conv", **attention}, "rotary": {"kind": rotary}}
    recipe = {"model": {"hidden_size": 32, "kinds": {"conv": kind}, "layers": ["conv"]}, "export": {"context": 62}}
    found = [problem for problem in find_problems(recipe) if problem.location[:3] == ("model", "kinds", "conv")]
    said = [".".join(map(str, p.location)) + f": {p.message}" + (f"\n  {p.hint}" if p.hint else "") for p in found]
    assert said == [message]


def test_a_draft_needs_a_target_that_can_go_back():
    kind = {"attention": {"kind": "short_conv", "channels": 32, "taps": 3}, "rotary": {"kind": "none"}}
    draft = {"kinds": {"full": {"attention": {"kind": "full", "shares_kv_with": "conv"}}}, "layers": ["full"]}
    recipe = {"model": {"hidden_size": 32, "kinds": {"conv": kind}, "layers": ["conv"]}, "draft": draft}
    (problem,) = [problem for problem in find_problems(recipe) if problem.location == ("draft",)]
    assert problem.message == "the target's `conv` carries a state that no guess can be taken out of"
