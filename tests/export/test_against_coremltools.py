"""The linked package against the one that coremltools makes of the same model, converted whole and combined by itself.

Core ML is not at hand to accept the package, so coremltools is the judge. Names aside the two must be the same; every
difference that remains is named here, with its reason.
"""

import contextlib
import hashlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from figures import psnr
from programs import (
    RECIPES,
    blob_digest,
    block_of,
    export,
    filled,
    operation_types,
    operations_with_types,
    random_weights,
    read_model,
    stored_constants,
    stored_weights,
    tensor_words,
    type_words,
)
from whole import convert_whole

from coreai_recipes.decoder.model import PER_LAYER_TABLE
from coreai_recipes.evaluate import Program
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.hosts.logits import choices
from coreai_recipes.primitives.registry import registered
from coreai_recipes.recipe.schema import Recipe

pytestmark = pytest.mark.xdist_group(__name__)

SCALED = "per_layer.projection.weight"
DTYPES = {"float16": "fp16", "float32": "fp32"}  # MIL's names where they differ from the protobuf's


@dataclass
class Case:
    """A recipe's package, `ours`, and the one of coremltools, `theirs`, converted when it is first asked for."""

    name: str
    recipe: Recipe
    package: Path
    convert: Callable[[], Path]

    @cached_property
    def ours(self) -> Any:
        return read_model(self.package)

    @cached_property
    def whole(self) -> Path:
        return self.convert()

    @cached_property
    def theirs(self) -> Any:
        return read_model(self.whole)

    @property
    def functions(self) -> list[str]:
        return list(self.recipe.export.functions.queries)


@pytest.fixture(params=RECIPES, scope="module")
def case(request: pytest.FixtureRequest, made: Any, cache: FragmentCache) -> Case:
    name = request.param
    recipe = RECIPES[name]()

    def link(folder: Path) -> None:
        export(recipe, folder, cache)

    def convert(folder: Path) -> None:
        folder.mkdir()
        with contextlib.redirect_stderr(io.StringIO()):  # coremltools' progress bars
            convert_whole(filled(recipe), folder)

    package = made(f"{name}.mlpackage", link)
    return Case(name, recipe, package, lambda: made(f"{name}-whole", convert) / "whole.mlpackage")


def test_the_recipes_hold_every_attention_with_every_rotary() -> None:
    """But those whose packages are held against torch in tests/test_families.py: latent attention (deepseek_v3, youtu),
    the difference of two (diffllama), a mixture of heads (jetmoe), and what stands in attention's place, which
    has no rotary."""
    kinds = [kind for make in RECIPES.values() for kind in make().model.kinds.values()]
    elsewhere = {
        "latent",
        "differential",
        "mixture",
        "short_conv",
        "gated_delta",
        "lightning",
        "mamba1",
        "mamba2",
        "rg_lru",
        "none",
    }
    attentions = {kind for _, kind in registered("attention")} - elsewhere
    wanted = {(a, r) for a in attentions for _, r in registered("rotary")}
    assert {(kind.attention.kind, kind.rotary.kind) for kind in kinds} == wanted
    pairings = {(kind.rotary.kind, getattr(kind.rotary, "pairing", None)) for kind in kinds}
    assert {("full", "interleaved"), ("full", "half"), ("partial", "interleaved"), ("partial", "half")} <= pairings


# --- the same package as coremltools' -----------------------------------------------------------------------------


def test_the_description_is_that_of_save_multifunction(case: Case) -> None:
    theirs = case.theirs.description
    theirs.ClearField("metadata")  # versions and the date of the conversion
    assert case.ours.description == theirs


def test_versions_opset_and_default_are_those_of_coremltools(case: Case) -> None:
    ours, theirs = case.ours, case.theirs
    assert ours.specificationVersion == theirs.specificationVersion == 9
    assert ours.mlProgram.version == theirs.mlProgram.version
    assert ours.description.defaultFunctionName == "decode"
    assert set(ours.mlProgram.functions) == set(theirs.mlProgram.functions) == set(case.functions)
    for name in case.functions:
        ours_function, theirs_function = ours.mlProgram.functions[name], theirs.mlProgram.functions[name]
        assert ours_function.opset == theirs_function.opset == "CoreML8"
        assert list(ours_function.block_specializations) == list(theirs_function.block_specializations)
        assert dict(ours_function.attributes) == dict(theirs_function.attributes)
    assert dict(ours.mlProgram.attributes).keys() == dict(theirs.mlProgram.attributes).keys() - {"buildInfo"}


def test_the_functions_take_and_give_the_same_and_hold_the_same_states(case: Case) -> None:
    for name in case.functions:
        ours, theirs = (model.mlProgram.functions[name] for model in (case.ours, case.theirs))
        signature = {port.name: type_words(port) for port in ours.inputs}
        assert signature == {port.name: type_words(port) for port in theirs.inputs}
        assert list(block_of(case.ours, name).outputs) == list(block_of(case.theirs, name).outputs) == ["logits"]


def test_there_are_as_many_operations_of_each_type_as_in_a_whole_conversion(case: Case) -> None:
    for name in case.functions:
        ours, theirs = operation_types(case.ours, name), without_batch_norm(operation_types(case.theirs, name))
        ours["mul"] -= sum(scales_in_weights(case, name).values())
        different = {kind: (ours[kind], theirs[kind]) for kind in ours | theirs if ours[kind] != theirs[kind]}
        assert not different, f"{case.name}, {name}: ours and theirs have {different}"


def test_operations_give_the_same_types_and_shapes_as_in_a_whole_conversion(case: Case) -> None:
    for name in case.functions:
        ours = operations_with_types(case.ours, name) - scales_in_weights(case, name)
        theirs = without_batch_norm(operations_with_types(case.theirs, name))
        assert ours == theirs, f"{case.name}, {name}: ours only {ours - theirs}, theirs {theirs - ours}"


def scales_in_weights(case: Case, function: str) -> Counter[str]:
    """The products that coremltools multiplies into the weights of the projection before them, whose values it sees.

    Of all our projections only that of the per-layer inputs is followed by a constant; 48^-0.5 takes three factors.
    """
    per_layer, queries = case.recipe.model.embedding.per_layer, case.recipe.export.functions.queries[function]
    if per_layer is None:
        return Counter()
    columns = len(case.recipe.model.layer_kinds) * per_layer.size
    return Counter({f"mul -> float16(1, {columns}, 1, {queries})": 3})


def without_batch_norm(counts: Counter[str]) -> Counter[str]:
    """`counts` with each batch_norm as the mul and add that it was made of.

    coremltools joins the weight and the bias of a LayerNorm so when it sees their values, which the linker never does.
    Its batch_norm divides by sqrt(1 + 1e-5) besides, which ours does not.
    """
    apart: Counter[str] = Counter()
    for words, count in counts.items():
        for kind in ("mul", "add") if words.startswith("batch_norm") else ("batch_norm",):
            apart[words.replace("batch_norm", kind)] += count
    return apart


def test_positions_are_compared_as_integers(case: Case) -> None:
    """`positions // chunk` is a float16 to coremltools' front: beyond 2,048 it knows every second position."""
    for function in case.functions:
        operations = block_of(case.ours, function).operations
        types = {output.name: tensor_words(output.type.tensorType) for each in operations for output in each.outputs}
        of_positions = [each for each in operations if each.type in ("floor_div", "mod", "less_equal", "greater_equal")]
        read = {argument.name for each in of_positions for key in "xy" for argument in each.inputs[key].arguments}
        assert of_positions
        assert [name for name in read if types.get(name, "int32").startswith("float")] == []


def test_the_weights_are_the_same_float16_blobs(case: Case) -> None:
    """Per function: every weight in every shape that it is used in, and nothing else."""
    channels = case.recipe.model.hidden_size
    neutral = {stored((channels,), torch.full((channels,), value).half()) for value in (0.0, 1.0)}
    for name in case.functions:
        ours, theirs = (
            {
                (shape_without_ones(kind), blob_digest(package, offset))
                for _, kind, offset in stored_constants(model, name)
                if tensor_words(kind).startswith("float16")
            }
            for model, package in ((case.ours, case.package), (case.theirs, case.whole))
        )
        kept = {name: w for name, w in stored_weights(case.recipe).items() if name != PER_LAYER_TABLE}
        # coremltools writes what is small into the program itself, and scales one of them: see scales_in_weights
        apart = {stored(tuple(w.shape), w.half()) for key, w in kept.items() if w.numel() < 10 or key == SCALED}
        columns = kept[SCALED].shape[:2] if SCALED in kept else ()
        assert ours - theirs <= apart
        added = {(shape, digest) for shape, digest in theirs - ours if shape not in (columns, columns[:1])}
        assert added <= neutral  # the mean and the variance of a batch_norm
        assert ours == {stored(tuple(w.shape), w.half()) for w in kept.values()}
        dtypes = {tensor_words(kind).partition("(")[0] for _, kind, _ in stored_constants(case.ours, name)}
        assert dtypes == {"float16"}


def stored(shape: tuple[int, ...], values: torch.Tensor) -> tuple[tuple[int, ...], str]:
    digest = hashlib.sha256(values.numpy().tobytes()).hexdigest()
    return tuple(size for size in shape if size > 1), digest


def shape_without_ones(kind: Any) -> tuple[int, ...]:
    return tuple(d.constant.size for d in kind.dimensions if d.constant.size > 1)


def test_both_packages_compute_the_same(case: Case) -> None:
    programs = [Program(path) for path in (case.package, case.whole)]
    states = [program.make_state() for program in programs]
    tokens = torch.randint(0, case.recipe.model.vocab_size, (40,))
    queries, weights, position = case.recipe.export.functions.queries, random_weights(case.recipe), 0
    for name, count in (("prefill", 12), ("prefill", 9), ("decode", 1), *([("score", 3)] * ("score" in queries))):
        ids = torch.zeros(1, queries[name], dtype=torch.int32)
        ids[0, :count] = tokens[position : position + count]
        inputs = {"input_ids": ids, "position": torch.tensor([position])}
        if name != "decode":
            inputs["count"] = torch.tensor([count])
        if PER_LAYER_TABLE in weights:
            inputs["per_layer"] = weights[PER_LAYER_TABLE][ids.long()]
        both = (p.function(name)(inputs, s) for p, s in zip(programs, states, strict=True))
        ours, theirs = (choices(outputs, case.recipe.model.vocab_size) for outputs in both)
        kept = count if name == "score" else 1
        if case.name in ("full", "gemma4"):  # see without_batch_norm and scales_in_weights
            assert psnr(theirs[:kept], ours[:kept]) > {"full": 80, "gemma4": 60}[case.name]
        else:
            assert torch.equal(ours[:kept], theirs[:kept])
        position += count


# --- what coremltools makes of ours -------------------------------------------------------------------------------


def test_every_type_is_the_one_that_coremltools_infers(case: Case) -> None:
    from coremltools.converters.mil.frontend.milproto.load import load
    from coremltools.converters.mil.mil import types

    with contextlib.redirect_stderr(io.StringIO()):
        program = load(case.ours, case.ours.specificationVersion, str(case.package / "Data/com.apple.CoreML/weights"))
    assert set(program.functions) == set(case.functions)
    for name, function in program.functions.items():
        declared = {out.name: out for op in block_of(case.ours, name).operations for out in op.outputs}
        inferred = {
            out.name: f"{types.builtin_to_string(out.dtype)}({', '.join(map(str, out.shape))})"
            for op in function.operations
            for out in op.outputs
            if out.name in declared
        }
        tensors = {key: type_words(out) for key, out in declared.items()}
        for protobuf, mil in DTYPES.items():
            tensors = {key: words.replace(f"{protobuf}(", f"{mil}(") for key, words in tensors.items()}
        assert inferred == {key: words for key, words in tensors.items() if key in inferred}
        assert len(inferred) >= len(operation_types(case.ours, name))


def test_no_dimension_is_unknown_and_no_rank_exceeds_five(case: Case) -> None:
    for name in case.functions:
        outputs = [out for op in block_of(case.ours, name).operations for out in op.outputs]
        assert [out.name for out in outputs if "?" in type_words(out)] == []
        assert max(out.type.tensorType.rank for out in outputs) <= 5


def test_coremltools_opens_each_function(case: Case) -> None:
    import coremltools as ct

    for name in case.functions:
        model = ct.models.MLModel(str(case.package), skip_model_load=True, function_name=name)
        assert [function.name for function in model.get_spec().description.functions] == case.functions
