"""The head of a package: logits in pieces, and one stored table for a tied head and the embedding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from figures import psnr
from numpy.typing import NDArray
from programs import block_of, export, filled, layer_kind, random_weights, read_model, small_recipe, stored_constants

from coreai_recipes.evaluate import Program
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.hosts.logits import Pieces, choices
from coreai_recipes.recipe.schema import Compress, Recipe
from coreai_recipes.running.program import SavedProgram
from coreai_recipes.storage import row_blocks
from coreai_recipes.storage.compression import storage_of
from coreai_recipes.storage.layout import FILE as WEIGHTS
from coreai_recipes.verification.calls import run_and_show_logits

pytestmark = pytest.mark.xdist_group(__name__)

VOCAB = 33_000  # three pieces of 11,008, the last of which has 24 columns of padding; two in the first product
COMPRESSED = (
    {"kind": "int8"},
    {"kind": "int4", "block": 8, "symmetric": False},
    {"kind": "palettize", "bits": 4, "group": 16},
)


def recipe_of(tied: bool, vocab_size: int = VOCAB) -> Recipe:
    head = {"tied": tied, "softcap": 5.0} if tied else {"tied": False, "bias": True}
    sizes = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    kind = layer_kind(mlp={"intermediate_size": 16}) | {"attention": {"kind": "full", **sizes}}
    return small_recipe({"only": kind}, ["only"], score=3, vocab_size=vocab_size, hidden_size=16, head=head)


@pytest.fixture(params=[True, False], ids=["tied", "untied"], scope="module")
def built(request: pytest.FixtureRequest, made: Any, cache: FragmentCache) -> tuple[Recipe, Path]:
    recipe = recipe_of(request.param)
    return recipe, made(f"pieces-{request.param}.mlpackage", lambda folder: export(recipe, folder, cache))


def test_every_function_gives_the_logits_of_the_whole_sequence_in_pieces(built: tuple[Recipe, Path]) -> None:
    recipe, package = built
    program, pieces = Program(package), Pieces(VOCAB)
    state, ids = program.make_state(), torch.randint(0, VOCAB, (1, 8), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        whole = filled(recipe)(ids)[0]
    calls = [("prefill", 0, 4, pieces.shape(1)), ("decode", 4, 1, pieces.shape(1)), ("score", 5, 3, pieces.shape(3))]
    for name, position, count, shape in calls:
        given = torch.zeros(1, recipe.export.functions.queries[name], dtype=torch.int32)
        given[0, :count] = ids[0, position : position + count]
        inputs = {"input_ids": given, "position": torch.tensor([position], dtype=torch.int32)}
        if name != "decode":
            inputs["count"] = torch.tensor([count], dtype=torch.int32)
        outputs = program.function(name)(inputs, state)
        assert outputs["logits"].shape == shape
        ours = choices(outputs, VOCAB)
        assert psnr(whole[position + count - len(ours) : position + count], ours) >= 90, name


def test_no_axis_of_a_result_is_longer_than_the_engine_takes(built: tuple[Recipe, Path]) -> None:
    """Of the last two; a convolution has its channels before them."""
    model = read_model(built[1])
    for function in ("decode", "prefill", "score"):
        for op in block_of(model, function).operations:
            for output in op.outputs if op.type != "const" else ():
                sizes = [d.constant.size for d in output.type.tensorType.dimensions]
                assert max(sizes[-2:], default=0) <= 16384, (function, op.type, sizes)


def test_the_rows_behind_the_last_token_are_zeros_and_a_tied_table_is_stored_once(built: tuple[Recipe, Path]) -> None:
    from coremltools.libmilstoragepython import _BlobStorageReader

    recipe, package = built
    model, tied, rows = read_model(package), recipe.model.head.tied, Pieces(VOCAB).rows
    reader = _BlobStorageReader(str(package / "Data/com.apple.CoreML/weights/weight.bin"))
    places: dict[tuple[int, ...], int] = {}
    for _, kind, offset in stored_constants(model, "decode"):
        places[tuple(d.constant.size for d in kind.dimensions)] = offset

    def read(*shapes: tuple[int, ...]) -> NDArray[np.float16]:
        return np.concatenate([np.asarray(reader.read_fp16_data(places[shape])).view(np.float16) for shape in shapes])

    one, other = 2 * 11_008, 11_008  # the rows of two pieces and of one
    table = read((one, 16, 1, 1), (other, 16, 1, 1)).reshape(rows, 16)
    weights = random_weights(recipe)["embedding.weight" if tied else "head.weight"].view(VOCAB, 16)
    assert np.array_equal(table[:VOCAB], weights.numpy().astype(np.float16))
    assert not table[VOCAB:].any()
    if tied:
        assert np.array_equal(read((rows, 16)).reshape(rows, 16), table)
    else:
        assert (VOCAB, 16) in places  # what is gathered alone needs no rows behind it
        assert not read((one,), (other,))[VOCAB:].any()
    stored = 2 * 16 * (rows if tied else rows + VOCAB)
    assert stored < (package / WEIGHTS).stat().st_size < stored + 100_000


@pytest.mark.parametrize("form", COMPRESSED, ids=lambda form: f"{form['kind']}{form.get('bits', '')}")
def test_products_of_compressed_rows_are_those_of_the_whole_table(
    form: dict[str, Any], tmp_path: Path, cache: FragmentCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, in every precision: a package whose head is one product, as those were before, gives the logits."""
    recipe = recipe_of(True).model_copy(update={"compress": Compress.model_validate({"default": form})})
    export(recipe, tmp_path / "blocks", cache)
    with monkeypatch.context() as patched:
        patched.setattr(row_blocks, "NEAR", 1 << 20)
        export(recipe, tmp_path / "whole", cache)
    products = [
        sum(
            operation.type == "conv" and operation.outputs[0].type.tensorType.dimensions[1].constant.size > 9999
            for operation in block_of(read_model(tmp_path / name), "decode").operations
        )
        for name in ("whole", "blocks")
    ]
    assert products == [1, 2]
    inputs = {"input_ids": torch.tensor([[7]], dtype=torch.int32), "position": torch.zeros(1, dtype=torch.int32)}
    for precision in ("float32", "rounded"):
        whole, blocks = (
            program.function("decode")(inputs, program.make_state())["logits"]
            for program in (Program(tmp_path / name, precision) for name in ("whole", "blocks"))
        )
        assert torch.equal(whole, blocks), precision
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("whole", "blocks")]
    records = 64 * 2 * len(storage_of(recipe.compress.default).parts((1, 64)))
    assert 0 <= sizes[1] - sizes[0] - records < 64  # records alone, the first of which is aligned


def test_a_vocabulary_of_whole_pieces_is_stored_as_it_is(tmp_path: Path, cache: FragmentCache) -> None:
    export(recipe_of(True, 64), tmp_path / "p", cache)
    kinds = [kind for _, kind, _ in stored_constants(read_model(tmp_path / "p"), "decode")]
    assert [64, 16] in [[d.constant.size for d in kind.dimensions] for kind in kinds]


def test_a_package_may_choose_the_token_itself(tmp_path: Path, cache: FragmentCache) -> None:
    """Of the logits that it computes anyway, a value inside; here in each of three pieces, the last with padding."""
    recipe = recipe_of(False)
    recipe = recipe.model_copy(update={"export": recipe.export.model_copy(update={"outputs": "ids"})})
    export(recipe, tmp_path / "p", cache)
    program, chosen = Program(tmp_path / "p", "rounded"), []
    saved = SavedProgram(program)
    for position, token in enumerate(torch.randint(0, VOCAB, (30,), generator=torch.Generator().manual_seed(5))):
        inputs = {"input_ids": token.view(1, 1).int(), "position": torch.tensor([position], dtype=torch.int32)}
        outputs = run_and_show_logits(saved, "decode", inputs, recipe)
        inside = {"logits": outputs.pop("logits")}
        assert outputs.keys() == {"ids", "values"}
        logits = choices(inside, VOCAB)[0]
        assert outputs["ids"].tolist() == [[int((logits == logits.max()).nonzero()[0])]]
        assert float(outputs["values"]) == float(logits.max())
        chosen.append(int(outputs["ids"]) // Pieces(VOCAB).columns)
    assert {*chosen} == {0, 1, 2}
    score = program.function("score").outputs
    assert score["ids"].shape == score["values"].shape == (1, 3)
