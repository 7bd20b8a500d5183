"""What a plan says of the Gemma 4 recipes: tables that the host reads, experts, shared caches, a draft."""

import json

import pytest

from coreai_recipes.decoder.model import count_parameters
from coreai_recipes.planning.plan import Plan, make_plan
from coreai_recipes.recipe import load_recipe
from coreai_recipes.report.plan import products_table


def costs(plan: Plan) -> dict[str, tuple[int, str]]:
    return {cost.what: (cost.bytes, cost.how) for cost in plan.costs}


def test_the_per_layer_table_is_the_hosts_and_no_part_of_the_package() -> None:
    plan = make_plan(load_recipe("gemma4"))
    assert costs(plan)["per-layer table"] == (
        2 * 262144 * 35 * 256,
        "262144 x 8960, float16, read by the host, 17,920 bytes a token, never sent to the engine",
    )
    (size,) = [finding for finding in plan.lint.findings if finding.id == "pkg-size"]
    assert size.message.startswith("weight.bin is 4.56 GB: above 1.4 GB phones do not load it")


@pytest.mark.parametrize("name", ["gemma4", "gemma4-e4b", "gemma4-26b-a4b", "gemma4-31b", "qwen3-4b"])
def test_the_rows_add_up_to_the_checkpoint(name: str) -> None:
    recipe = load_recipe(name)
    stored = sum(size for what, (size, _) in costs(make_plan(recipe)).items() if not what.startswith("states"))
    assert stored == 2 * count_parameters(recipe)


def test_experts_are_told_from_what_every_token_reads() -> None:
    recipe = load_recipe("gemma4-26b-a4b")
    expert = 2 * 3 * 2816 * 704
    assert costs(make_plan(recipe))["experts of `full`"] == (
        5 * 128 * expert,
        "5 layers of 128, float16; a call of several tokens reads all, "
        f"decode the 8 of its token: {5 * 8 * expert:,} bytes",
    )
    every = load_recipe("gemma4-26b-a4b", [f"model.kinds.{kind}.experts.decode=all" for kind in ("sliding", "full")])
    assert costs(make_plan(every))["experts of `full`"][1].endswith(
        "a call of several tokens reads all, and so does decode"
    )


def test_the_table_says_what_shared_caches_save() -> None:
    plan = make_plan(load_recipe("gemma4"))
    assert products_table(plan.to_json())[0] == ("products", ">decode", ">prefill of 64", "how")
    rows = {what: (decode, prefill, how) for what, decode, prefill, how in products_table(plan.to_json())[1]}
    assert list(rows) == [
        "`sliding`", "`full`", "`sliding_shared`", "`full_shared`", "per-layer inputs", "head", "all", "not computed",
    ]  # fmt: skip
    decode, prefill, how = rows["`sliding_shared`"]
    assert decode == prefill
    assert how == "16 layers of 63.7 M weights, 512 rows; in prefill for the last token alone"
    assert rows["not computed"][0] == "-"
    assert rows["not computed"][2] == "66 % saved: 20 of 35 layers run for the last token alone"
    assert int(rows["all"][1].replace(",", "")) == sum(w.flops["prefill"] for w in plan.workloads)


def test_a_plan_without_shared_caches_saves_nothing() -> None:
    plan = make_plan(load_recipe("gemma4-31b"))
    assert plan.saved_in_prefill is None
    assert [row[0] for row in products_table(plan.to_json())[1]] == ["`sliding`", "`full`", "head", "all"]


def test_a_draft_is_a_column_of_its_own() -> None:
    plan = make_plan(load_recipe("gemma4-tiny"))
    assert products_table(plan.to_json())[0][-2:] == (">draft", "how")
    (row,) = [row for row in products_table(plan.to_json())[1] if row[0] == "draft"]
    assert row[1:-2] == ("-",) * len(plan.functions)
    assert {"weights of the draft", "head of the draft"} <= costs(plan).keys()


def test_the_document_holds_what_the_tables_do() -> None:
    document = json.loads(json.dumps(make_plan(load_recipe("gemma4")).to_json()))
    assert [work["what"] for work in document["workloads"]][-1] == "head"
    assert document["saved_in_prefill"]["flops"] == {"prefill": 185_100_926_976}
