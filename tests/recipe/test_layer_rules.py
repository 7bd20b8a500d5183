"""Layers of which a part is missing: without attention, without an MLP, experts without a gate."""

from coreai_recipes.recipe.rules import find_problems


def test_a_layer_without_an_mlp_has_no_norm_behind_it_and_nothing_beside_it() -> None:
    kind = {"mlp": {"kind": "none"}, "experts": {}}
    found = find_problems({"model": {"placement": "sandwich", "kinds": {"mixer": kind}, "layers": ["mixer"]}})
    assert [each.message for each in found if each.code == "mlp-none"] == [
        "no MLP, and the placement sandwich",
        "no MLP, and experts, which stands beside one",
    ]
    fitting = {"model": {"kinds": {"mixer": {"mlp": {"kind": "none"}}}, "layers": ["mixer"]}}
    assert not any(each.code == "mlp-none" for each in find_problems(fitting))


def test_a_layer_without_attention_has_an_mlp_behind_one_norm_and_nothing_beside_it() -> None:
    def said(model: dict, **kind: object) -> list[str]:
        kinds = {"alone": {"attention": {"kind": "none"}, **kind}}
        found = find_problems({"model": {**model, "kinds": kinds, "layers": ["alone"]}})
        return [each.message for each in found if each.code in ("attention-none", "turns")]

    assert said({"placement": "post"}, mlp={"kind": "none"}, experts={}, rotary={"kind": "full"}) == [
        "full: a layer without attention turns nothing",
        "no attention, and the placement post",
        "no attention, and no MLP: such a layer does nothing",
        "no attention, and experts, which stands behind one",
    ]
    assert said({}, mlp={"kind": "plain"}, rotary={"kind": "none"}) == []


def test_experts_without_a_gate_have_no_clamp_and_no_biases() -> None:
    def said(**mlp: object) -> list[str]:
        kind = {"mlp": {"kind": "moe", "num_experts": 4, "bias": True, "clamp": {"limit": 7.0}, **mlp}}
        found = find_problems({"model": {"kinds": {"moe": kind}, "layers": ["moe"]}})
        return [each.message for each in found if each.code == "experts-plain"]

    assert said(gated=False) == ["experts without a gate have no clamp", "experts without a gate have no bias"]
    assert said() == []


def test_factors_of_the_residual_are_of_blocks_that_follow_each_other() -> None:
    def said(placement: str, factor: float) -> list[str]:
        kind = {"attention": {"kind": "full"}, "mlp_residual": {"stream": factor}}
        found = find_problems({"model": {"placement": placement, "kinds": {"full": kind}, "layers": ["full"]}})
        return [each.message for each in found if each.code == "residual-parallel"]

    assert said("parallel", 2.0) == ["attention and MLP are added to the stream at once with the placement parallel"]
    assert said("parallel", 1.0) == said("from_norm", 2.0) == []
