"""What is converted, and how: the float32 island, no weight in sight, the same bytes in every process."""

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import coremltools
import pytest
import torch
from programs import RECIPES, block_of, export, layer_kind, small_recipe, tensor_words

from coreai_recipes.decoder.front import CallShape
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.export.converting import fragment_identity, trace
from coreai_recipes.export.fragments import Fragment, front_fragment, layer_fragment
from coreai_recipes.export.functions import fragments_of
from coreai_recipes.export.head_fragments import head_fragment
from coreai_recipes.protobuf import Model_pb2
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.chunks import chunks_of
from coreai_recipes.targets.coreml import convert
from coreai_recipes.targets.coreml.convert import LARGEST_CONSTANT, convert_fragment

pytestmark = pytest.mark.xdist_group(__name__)


class RecordingCache(FragmentCache):
    """Remembers every fragment that an export asked for, in order."""

    def __init__(self, cache: FragmentCache) -> None:
        super().__init__(cache.root)
        self.given: dict[str, bytes | None] = {}

    def get(self, key: str) -> bytes | None:
        return self.given.setdefault(key, super().get(key))

    def put(self, key: str, data: bytes) -> None:
        self.given[key] = data
        super().put(key, data)

    @property
    def data(self) -> list[bytes]:
        """In the order in which it was asked for."""
        return [data for data in self.given.values() if data is not None]


@pytest.fixture(params=RECIPES, scope="module")
def converted(request: pytest.FixtureRequest, cache: FragmentCache, tmp_path_factory: Any) -> dict[str, Any]:
    """The converted fragments of a recipe by name."""
    recipe, recording = RECIPES[request.param](), RecordingCache(cache)
    export(recipe, tmp_path_factory.mktemp("fragments") / "model.mlpackage", recording)
    names = fragments_of([build_decoder(recipe)])
    given = recording.data[: len(names)]  # behind them the program that is linked of them
    return {name: Model_pb2.Model.FromString(data) for name, data in zip(names, given, strict=True)}


# --- float32 where the angles are, and nowhere else -------------------------------------------------------------------


def float32_operations(model: Any) -> set[str]:
    """The outputs of a fragment's operations that are float32, constants aside."""
    return {
        out.name
        for op in block_of(model, "main").operations
        for out in op.outputs
        if op.type != "const" and tensor_words(out.type.tensorType).startswith("float32")
    }


def ancestors(model: Any, names: set[str]) -> set[str]:
    """`names` and everything that they are computed from."""
    found = set(names)
    for operation in reversed(block_of(model, "main").operations):
        if found & {out.name for out in operation.outputs}:
            found |= {a.name for given in operation.inputs.values() for a in given.arguments}
    return found


def test_only_what_cos_and_sin_are_computed_from_is_float32(converted: dict[str, Any]) -> None:
    for name, model in converted.items():
        outputs = set(block_of(model, "main").outputs)
        angles = {output for output in outputs if output.startswith(("cos_", "sin_"))}
        assert float32_operations(model) <= ancestors(model, angles), name
        assert bool(float32_operations(model)) == name.startswith("front_")


def test_cos_and_sin_are_taken_in_float32(converted: dict[str, Any]) -> None:
    for name, model in converted.items():
        angles = [op for op in block_of(model, "main").operations if op.type in ("cos", "sin")]
        assert bool(angles) == name.startswith("front_")
        assert {op.outputs[0].name for op in angles} <= float32_operations(model)
        outputs = [port for port in block_of(model, "main").outputs if port.startswith(("cos_", "sin_"))]
        makers = [op for op in block_of(model, "main").operations for out in op.outputs if out.name in outputs]
        assert all(op.type == "cast" and op.inputs["x"].arguments[0].name in float32_operations(model) for op in makers)


def test_mask_and_hidden_state_never_pass_through_float32(converted: dict[str, Any]) -> None:
    for model in converted.values():
        outputs = {name for name in block_of(model, "main").outputs if not name.startswith(("cos_", "sin_"))}
        assert not ancestors(model, outputs) & float32_operations(model)


def test_a_front_casts_the_positions_the_mask_the_angles_and_the_ids_once(cache: FragmentCache, tmp_path: Path) -> None:
    recipe, recording = small_recipe({"full": layer_kind()}), RecordingCache(cache)
    export(recipe, tmp_path / "model.mlpackage", recording)
    names = list(fragments_of([build_decoder(recipe)]))
    for name, numbers in (("front_1", 1), ("front_12", 2)):  # the mask, and which tokens are padding
        model = Model_pb2.Model.FromString(recording.data[names.index(name)])
        casts = [op for op in block_of(model, "main").operations if op.type == "cast"]
        words = sorted(tensor_words(op.outputs[0].type.tensorType).partition("(")[0] for op in casts)
        assert words == [*["float16"] * (numbers + 2), "float32", "int16"], (
            f"{name}: those, cos and sin; positions; ids"
        )


# --- no weight in sight -----------------------------------------------------------------------------------------------


def test_no_fragment_holds_a_stored_constant(converted: dict[str, Any]) -> None:
    for name, model in converted.items():
        for operation in block_of(model, "main").operations:
            if operation.type == "const":
                value = operation.attributes["val"]
                assert value.WhichOneof("value") == "immediateValue", name
                assert value.ByteSize() < 4 * LARGEST_CONSTANT


def test_no_conversion_sees_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter of a decoder is on the meta device, and is an input of the program that is converted."""
    decoder = build_decoder(RECIPES["full"]())
    assert {parameter.device.type for parameter in decoder.parameters()} == {"meta"}
    seen: list[str] = []

    def convert(traced: Any, **options: Any) -> None:
        assert {name for name, _ in traced.named_parameters()} == set()
        assert set(traced.state_dict()) <= {"keys", "values"}
        seen.extend(port.name for port in options["inputs"] if port.name.startswith("weight_"))
        raise InterruptedError

    monkeypatch.setattr(coremltools, "convert", convert)
    fragments = (
        front_fragment(decoder, CallShape(decoder.front, 1), chunks_of([decoder])[0]),
        layer_fragment(decoder, "proportional", CallShape(decoder.front, 1), chunks_of([decoder])[0]),
        layer_fragment(decoder, "none", CallShape(decoder.front, 12), chunks_of([decoder])[0]),
        head_fragment(decoder, CallShape(decoder.front, 1)),
    )
    for fragment in fragments:
        with pytest.raises(InterruptedError):
            convert_fragment(fragment)
    owners = (decoder.embedding, decoder.layers[3], decoder.layers[4], decoder.norm)
    assert len(seen) == sum(len(list(owner.parameters())) for owner in owners) + 1  # the tied head's table


def test_a_constant_that_could_be_a_weight_is_refused() -> None:
    class Baked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.linspace(0, 1, LARGEST_CONSTANT + 1)

    from coreai_recipes.export.fragments import FLOAT, Port

    port = Port(FLOAT, (1, LARGEST_CONSTANT + 1))
    with pytest.raises(RuntimeError, match=r"^baked: constant \S+ of shape \[8193\] is baked in$"):
        convert_fragment(Fragment("baked", Baked(), {"x": port}, {"y": port}, {}))


def test_a_state_of_a_fragment_is_zeros() -> None:
    """In memory as it comes there may be NaN, which coremltools' comparison of the states calls inconsistent."""
    decoder = build_decoder(small_recipe())
    fragment = layer_fragment(decoder, "full", CallShape(decoder.front, 1), chunks_of([decoder])[0])
    assert all(not buffer.any() for buffer in fragment.module.buffers())


def test_names_and_order_are_those_of_the_program_alone(converted: dict[str, Any]) -> None:
    """coremltools' passes walk sets of objects: `const_5` in one conversion was `const_3` in the next."""
    for model in converted.values():
        function = model.mlProgram.functions["main"]
        block = block_of(model, "main")
        ports = {port.name for port in function.inputs} | set(block.outputs)
        counts: Counter[str] = Counter()
        for operation in block.operations:
            for output in operation.outputs:
                if output.name not in ports:
                    assert output.name == f"{operation.type}_{counts[operation.type]}"
                    counts[operation.type] += 1
            if operation.outputs:
                assert list(operation.attributes["name"].immediateValue.tensor.strings.values) == [
                    operation.outputs[0].name
                ]


# --- what tells one fragment from another -----------------------------------------------------------------------------


IDENTITIES = """
import hashlib, json, sys
from coreai_recipes.targets.coreml.convert import convert_fragment
from coreai_recipes.export.converting import fragment_identity, trace
from coreai_recipes.export.functions import fragments_of
from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.recipe.schema import Recipe
fragments = fragments_of([build_decoder(Recipe.model_validate_json(sys.stdin.read()))])
found = {name: fragment_identity(fragment) for name, fragment in fragments.items()}
converted = [convert_fragment(fragments[name]) for name in ("front_12", "pick_12")]
print(json.dumps([found, [hashlib.sha256(data).hexdigest() for data in converted]]))
"""


def test_identity_and_bytes_are_the_same_in_every_process(cache: FragmentCache, tmp_path: Path) -> None:
    recipe = RECIPES["sliding"]()
    fragments = fragments_of([build_decoder(recipe)])
    recording = RecordingCache(cache)
    export(recipe, tmp_path / "model.mlpackage", recording)
    digests = [sha256(recording.data[list(fragments).index(name)]).hexdigest() for name in ("front_12", "pick_12")]
    ours = [{name: fragment_identity(fragment) for name, fragment in fragments.items()}, digests]
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IDENTITIES],
        input=recipe.model_dump_json(),
        env={**os.environ, "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == ours


def kinds(**changes: Any) -> dict[str, Any]:
    return {"full": layer_kind(**changes)}


LAYERS = {"layer_full_1", "layer_full_12"}
FRONTS = {"front_1", "front_12"}
CHANGES: dict[str, tuple[Callable[[], Recipe], set[str]]] = {
    "theta": (lambda: small_recipe(kinds(rotary={"kind": "full", "theta": 20000.0})), FRONTS),
    "scaling": (
        lambda: small_recipe(kinds(rotary={"kind": "full", "scaling": {"kind": "linear", "factor": 2.0}})),
        FRONTS,
    ),
    "pairing": (lambda: small_recipe(kinds(rotary={"kind": "full", "pairing": "interleaved"})), LAYERS),
    "rotary kind": (lambda: small_recipe(kinds(rotary={"kind": "partial", "factor": 0.5})), FRONTS | LAYERS),
    "angle precision": (
        lambda: small_recipe(kinds(rotary={"kind": "full", "precision": "bfloat16", "lossy": True})),
        FRONTS,
    ),
    "product": (lambda: small_recipe(kinds(rotary={"kind": "full", "product": "float32"})), LAYERS),
    "eps": (lambda: small_recipe(norm={"kind": "rms", "eps": 1e-6}), LAYERS | {"head_1"}),
    "norm kind": (lambda: small_recipe(norm={"kind": "layer", "eps": 1e-5}), LAYERS | {"head_1"}),
    "norm weight": (lambda: small_recipe(norm={"kind": "rms", "eps": 1e-5, "weight": "none"}), LAYERS | {"head_1"}),
    "placement": (lambda: small_recipe(placement="sandwich"), LAYERS),
    "scale": (lambda: small_recipe(kinds(attention_scale=0.5)), LAYERS),
    "attention softcap": (lambda: small_recipe(kinds(attention_softcap=5.0)), LAYERS),
    "bias": (lambda: small_recipe(kinds(attention_bias="qkv")), LAYERS),
    "q and k norm": (lambda: small_recipe(kinds(attention_qk_norm={"over": "head"})), LAYERS),
    "v norm": (lambda: small_recipe(kinds(attention_v_norm=True)), LAYERS),
    "heads": (lambda: small_recipe(kinds(attention_num_heads=6)), LAYERS),
    "activation": (lambda: small_recipe(kinds(mlp={"activation": "gelu_tanh"})), LAYERS),
    "intermediate size": (lambda: small_recipe(kinds(mlp={"intermediate_size": 80})), LAYERS),
    "head softcap": (lambda: small_recipe(head={"tied": True, "softcap": 7.0}), {"head_1"}),
    "embedding scale": (lambda: small_recipe(embedding={"scale": 2.0}), FRONTS),
    "context": (lambda: small_recipe(context=256), FRONTS | LAYERS),
    "window": (lambda: small_recipe({"full": layer_kind("sliding")}), FRONTS | LAYERS),
    "vocabulary": (lambda: small_recipe(vocab_size=161), {*FRONTS, "head_1"}),
    "width": (lambda: small_recipe(hidden_size=64), {*FRONTS, *LAYERS, "head_1", "pick_12"}),
    "layers": (lambda: small_recipe(layers=["full"]), LAYERS),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_a_fragment_changes_its_identity(change: str) -> None:
    make, expected = CHANGES[change]
    before, after = (fragments_of([build_decoder(recipe)]) for recipe in (small_recipe(), make()))
    assert before.keys() == after.keys()
    changed = {name for name in before if fragment_identity(before[name]) != fragment_identity(after[name])}
    assert expected <= changed
    assert {name for name in changed if name.startswith("pick_")} == expected & {"pick_12"}


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_angles_of_a_lower_precision_can_be_converted(precision: str) -> None:
    """`validate` and `plan` took bfloat16, of which coremltools has no type."""
    rotary = {"kind": "full", "precision": precision, "lossy": True}
    decoder = build_decoder(small_recipe(kinds(rotary=rotary)))
    assert convert_fragment(front_fragment(decoder, CallShape(decoder.front, 1), chunks_of([decoder])[0]))


def test_what_a_conversion_is_spared_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    fragments = fragments_of([build_decoder(RECIPES["mixture"]())]).values()
    layers = [fragment for fragment in fragments if fragment.name.startswith("layer") and fragment.name.endswith("_1")]
    spared = [convert_fragment(fragment) for fragment in layers]
    monkeypatch.setattr(convert, "_checking_less", contextlib.nullcontext)
    assert spared == [convert_fragment(fragment) for fragment in layers]
    assert spared


def test_another_seed_or_name_changes_no_identity() -> None:
    recipe = small_recipe()
    renamed = recipe.model_copy(update={"name": "another"})
    before, after = (fragments_of([build_decoder(recipe)]) for recipe in (recipe, renamed))
    assert {n: fragment_identity(f) for n, f in before.items()} == {n: fragment_identity(f) for n, f in after.items()}


def test_a_trace_leaves_the_states_as_they_were() -> None:
    """A layer writes them; kept, each traced layer would hold as much memory as it wrote until it is converted."""
    decoder = build_decoder(RECIPES["full"]())
    kind = next(iter(decoder.front.kinds))
    fragment = layer_fragment(decoder, kind, CallShape(decoder.front, 1), chunks_of([decoder])[0])
    traced = trace(fragment)
    assert fragment.states
    for name in fragment.states:
        before, within = fragment.module.get_buffer(name), traced.get_buffer(name)
        assert not before.any()
        assert within.data_ptr() == before.data_ptr()
