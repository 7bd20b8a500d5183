"""Which parameter is stored how: matrices as the recipe says, vectors in float16, tables of a host as named."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.errors import RecipeError
from coreai_recipes.lint.findings import lint
from coreai_recipes.planning.outline import outline
from coreai_recipes.planning.plan import make_plan
from coreai_recipes.recipe import built_in_recipes, load_recipe
from coreai_recipes.storage.accounting import account, by_kind
from coreai_recipes.storage.compression import Compression, is_matrix
from coreai_recipes.storage.parameters import own_parameters, raw_tables, stored_parameters
from coreai_recipes.weights.rewrite import Rewrite

Run = Callable[..., tuple[int, str, str]]
INT8 = ["compress.default.kind=int8"]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("embedding.weight", (131, 48), True),
        ("layers.0.mlp.up.weight", (88, 48, 1, 1), True),
        ("layers.0.experts.gate_up", (4, 88, 48), True),
        ("layers.0.experts.router.proj.weight", (4, 48, 1, 1), True),
        ("layers.0.mlp.gate_up_bias", (4, 88), False),
        ("layers.0.attention.q_norm.weight", (4, 24), False),  # a norm over each head has a weight for each
        ("layers.0.attention_norm.weight", (1, 48, 1, 1), False),
        ("layers.0.attention.q.bias", (48,), False),
        ("layers.0.scalar", (1, 1, 1, 1), False),
    ],
)
def test_matrices_are_what_multiplies_or_is_looked_up(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert is_matrix(name, shape) is expected


@pytest.mark.parametrize("name", built_in_recipes())
def test_every_vector_of_every_recipe_stays_float16(name: str) -> None:
    recipe = load_recipe(name, INT8)
    stored = stored_parameters(build_stacks(recipe))
    compression = Compression.of(recipe)
    of_form = Counter(str(compression.storage(*each)) for each in stored.shapes.items())
    assert of_form["int8 per channel"] == sum(
        "norm" not in n and max(s) < torch.Size(s).numel() for n, s in stored.shapes.items()
    )
    assert 8 < stored.bits_per_weight < (8.6 if name in ("tiny-llama", "gemma4-tiny") else 8.05)


def test_a_table_that_the_host_reads_stays_float16() -> None:
    recipe = load_recipe("gemma4", INT8)
    assert raw_tables([build_decoder(recipe)]).forms == "float16"
    table = next(cost for cost in make_plan(recipe).costs if cost.what == "per-layer table")
    assert table.how.startswith("262144 x 8960, float16, read by the host, 17,920 bytes a token")


def test_a_plan_counts_the_bytes_of_each_form() -> None:
    recipe = load_recipe("smollm2-135m", INT8)
    plan, decoder = make_plan(recipe), build_decoder(recipe)
    costs = {cost.what: (cost.bytes, cost.how) for cost in plan.costs}
    assert costs["table, tied to the head"] == (
        49152 * 576 + 2 * 49152,
        "49152 x 576, int8 per channel, 8.03 bits a weight, stored once",
    )
    assert costs["weights of `full`"][1] == "30 layers, int8 per channel and float16, 8.03 bits a weight"
    assert costs["around the layers"][0] == 2 * 576
    stored = sum(size for what, (size, _) in costs.items() if not what.startswith("states"))
    assert stored == own_parameters([decoder]).bytes == stored_parameters([decoder]).bytes
    assert plan.weights == {
        "weights": 134_515_008,
        "bytes": stored,
        "file_bytes": 134_990_720,
        "bits_per_weight": 8.0264,
        "forms": "int8 per channel and float16",
    }


def test_the_rules_see_int8_in_a_recipe_as_in_its_package() -> None:
    found = {finding.id for finding in lint(outline(load_recipe("smollm2-135m", INT8))).findings}
    assert "pq-int8" in found
    assert "pq-block" not in found
    assert "pq-int8" not in {finding.id for finding in lint(outline(load_recipe("smollm2-135m"))).findings}


def test_a_kind_that_there_is_not_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny-llama\nname: mine\ncompress: {default: {kind: int9}}\n")
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert str(refused.value) == (
        f"{path}:3:28: compress.default.kind: `int9` is not one of `float16`, `int4`, `int8`, `palettize`, `source`\n"
        "  did you mean `int8`?"
    )


def test_a_recipe_that_compresses_nothing_says_nothing() -> None:
    assert not Compression.of(load_recipe("tiny-llama")).compresses
    assert not Compression.of(load_recipe("tiny-llama", ["compress.default.kind=float16"])).compresses


def test_what_an_exported_form_turns_and_scales_is_turned_back() -> None:
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    for rewrite in (Rewrite(row_order=(2, 0, 1, 3)), Rewrite(column_order=(1, 3, 2, 0)), Rewrite(factor=0.25)):
        assert not torch.equal(rewrite.apply(weight), weight)
        assert torch.equal(rewrite.unfold(rewrite.apply(weight)), weight)
    assert torch.equal(Rewrite(offset=1.0).unfold(Rewrite(offset=1.0).apply(weight)), weight + 1)


def test_a_rule_changes_those_that_it_matches_and_the_last_one_holds() -> None:
    rules = (
        '{match: "layers.*", bits: 3}, {match: "layers.*.mlp.down", group: 8}, '
        "{match: embedding.weight, kind: int8}, {match: layers.0.mlp.up, kind: float16}"
    )
    palettes = "compress.default={kind: palettize, bits: 4, group: 16}"
    recipe = load_recipe("tiny-llama", [palettes, f"compress.rules=[{rules}]"])
    stored, compression = stored_parameters([build_decoder(recipe)]), Compression.of(recipe)
    expected = {
        "layers.1.mlp.up.weight": "palettes of 3 bits for 16 channels",
        "layers.1.mlp.down.weight": "palettes of 4 bits for 8 channels",  # over the default, not over another rule
        "layers.0.mlp.up.weight": "float16",
        "embedding.weight": "int8 per channel",
        "layers.1.mlp_norm.weight": "float16",
    }
    assert {name: str(compression.storage(name, stored.shapes[name])) for name in expected} == expected


def test_the_table_says_which_rule_holds_over_which_and_what_does_not_fit() -> None:
    rules = (
        '{match: "layers.*", bits: 3}, {match: "layers.*.mlp.down", bits: 3}, {match: "layers.*.mlp.*", bits: 6}, '
        '{match: "*.up", kind: int4, block: 20}'
    )
    recipe = load_recipe(
        "tiny-llama", ["compress.default={kind: palettize, bits: 4, group: 20}", f"compress.rules=[{rules}]"]
    )
    stored = stored_parameters([build_decoder(recipe)])
    rows = {row["name"]: row for row in account(stored)}
    assert "over" not in rows["layers.0.attention.q"]
    assert (rows["layers.0.mlp.down"]["rule"], rows["layers.0.mlp.down"]["over"]) == (
        "layers.*.mlp.*", ["layers.*", "layers.*.mlp.down"]
    )  # fmt: skip
    assert rows["layers.0.mlp.up"]["over"] == ["layers.*", "layers.*.mlp.*"]
    assert rows["layers.0.mlp.up"]["why"] == "blocks of 20 do not divide a channel of 96"
    assert rows["embedding"]["why"] == "groups of 20 do not divide 512 channels"
    assert "rule" not in rows["embedding"]
    whole = by_kind(list(rows.values()))
    assert [row["bytes"] for row in whole[:-1]] == sorted((row["bytes"] for row in whole[:-1]), reverse=True)
    assert next(row for row in whole if row["name"] == "layers.*.mlp.down") == {
        "name": "layers.*.mlp.down",
        "count": 4,
        "form": "palettes of 6 bits for 16 channels",
        "bits_per_weight": 6.3636,
        "bytes": 4 * 13440,
        "share": pytest.approx(4 * 13440 / stored.file_bytes, abs=1e-5),
        "psnr_db": None,
        "kl": None,
        "notes": [
            "`layers.*.mlp.*` holds over `layers.*`, `layers.*.mlp.down`",
            "groups of 20 do not divide 96 channels",
        ],
    }
    assert whole[-1]["name"] == "all others"
    assert sum(row["bytes"] for row in whole) == stored.bytes


def test_a_rule_keeps_what_the_default_says_of_integers() -> None:
    recipe = load_recipe(
        "tiny-llama",
        [
            "compress.default={kind: int4, block: 32, symmetric: false}",
            "compress.rules=[{match: embedding, kind: int8}, {match: layers.0.*, symmetric: true}, "
            "{match: layers.1.*, block: 16}, {match: layers.2.*, kind: palettize, bits: 4}]",
        ],
    )
    assert [str(rule.storage) for rule in Compression.of(recipe).rules] == [
        "int8 for blocks of 32 with offsets",
        "int4 for blocks of 32",
        "int4 for blocks of 16 with offsets",
        "palettes of 4 bits for 16 channels",
    ]


def test_a_recipe_whose_rules_alone_compress_compresses() -> None:
    only = ["compress.rules=[{match: embedding, kind: palettize, bits: 6}]"]
    compression = Compression.of(load_recipe("tiny-llama", only))
    assert compression.compresses
    assert str(compression.storage("embedding.weight", (512, 96))) == "palettes of 6 bits for 16 channels"


@pytest.mark.parametrize(
    ("command", "match", "expected"),
    [
        ("plan", "layers.*.mlp.dwn", "matches nothing\n  did you mean `layers.*.mlp.down`?"),
        ("lint", "layers.9.mlp.down", "matches nothing\n  did you mean `layers.*.mlp.down`?"),
        ("build", "head", "matches nothing\n  the head is the table, stored once: write `embedding`"),
        ("verify", "layers.*.mlp", "matches nothing\n  did you mean `layers.*.mlp.up`?"),
        (
            "validate",
            "layers.*_norm",
            "matches `layers.0.attention_norm` and no matrix to compress\n  vectors stay float16",
        ),
    ],
)
def test_a_rule_that_matches_nothing_is_refused_at_its_line(
    run: Run, tmp_path: Path, command: str, match: str, expected: str
) -> None:
    path = tmp_path / "mine.yaml"
    words = "compress:\n  default: {kind: palettize, bits: 4}\n  rules:\n    - {match: embedding, bits: 6}\n"
    path.write_text(f"extends: tiny-llama\nname: mine\n{words}    - {{match: {match}, bits: 6}}\n")
    status, _, error = run(command, path)
    assert (status, error.strip()) == (2, f"{path}:7:15: compress.rules.1.match: `{match}` {expected}")


@pytest.mark.parametrize(
    ("default", "rule", "expected"),
    [
        ("int8", "{match: embedding}", "0: this rule changes nothing"),
        ("int8", "{match: embedding, bits: 6}", "0.bits: `int8` has no bits\n  add `kind: palettize`"),
        ("int8", "{match: embedding, kind: float16, group: 8}", "0.group: `float16` has no group"),
        ("int8", "{match: embedding, kind: palettize}", "0: `bits` is missing, and the default, `int8`, has none"),
        ("int8", "{match: embedding, kind: palletize}", "0.kind: `palletize` is not one of"),
        ("int8", "{match: embedding, kind: palettize, bits: 4, block: 32}", "0.block: `palettize` has no block"),
        ("float16", "{match: embedding, block: 32}", "0.block: `float16` has no block\n  add `kind: int4`"),
        ("int8", "{match: embedding, block: 0}", "0.block: "),
        ("int8", "{match: embedding, symmetric: 1}", "0.symmetric: "),
        ("int8", "{match: embedding, kinds: int8}", "0.kinds: unknown key\n  did you mean `kind`?"),
    ],
)
def test_a_rule_that_says_nothing_or_nonsense_is_refused(default: str, rule: str, expected: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load_recipe("tiny-llama", [f"compress.default.kind={default}", f"compress.rules=[{rule}]"])
    assert f"compress.rules.{expected}" in str(refused.value)
