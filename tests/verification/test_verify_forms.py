"""Every form of storage in one package: it computes with the weights as stored, and coremltools reads the same."""

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.frontend.milproto.load import load
from verify_cases import Export, Saved

from coreai_recipes.recipe import load_recipe
from coreai_recipes.storage.layout import FILE as WEIGHTS
from coreai_recipes.storage.reading import stored_weights
from coreai_recipes.verification import run_stages

FORMS = [
    *(f"kind: palettize, bits: {bits}, group: {group}" for bits in (1, 2, 3, 4, 6, 8) for group in (16, 256)),
    *(
        f"kind: {kind}, symmetric: {symmetric}{block}"
        for kind in ("int4", "int8")
        for symmetric in ("true", "false")
        for block in ("", ", block: 32")
    ),
]
MATRICES = [
    "attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up", "mlp.down"
]  # fmt: skip


def test_every_width_and_form_computes_as_stored_and_is_what_coremltools_reads(
    tiny_llama: Saved, export: Export
) -> None:
    places = [f"layers.{layer}.{matrix}" for layer in range(4) for matrix in MATRICES]
    rules = ", ".join(f"{{match: {place}, {FORMS[i % len(FORMS)]}}}" for i, place in enumerate(places))
    assert len(places) >= len(FORMS)
    recipe = load_recipe(
        "tiny-llama", ["compress.default={kind: int4, block: 32, symmetric: false}", f"compress.rules=[{rules}]"]
    )
    package = export(recipe, tiny_llama[1])
    (result,) = run_stages(recipe, tiny_llama[1], package, stages=["package"]).stages
    assert result.passed, result.to_json()
    assert result.psnr_db is not None
    assert result.psnr_db > 90
    spec = ct.utils.load_spec(str(package))
    program = load(spec, spec.specificationVersion, str((package / WEIGHTS).parent))  # infers each type again
    stored = stored_weights(recipe, tiny_llama[1])
    seen = set()
    for function in program.functions.values():
        for operation in (each for each in function.operations if each.op_type.startswith("constexpr_")):
            name = operation.outputs[0].name
            owner = next(n for n in stored if name.startswith(n.replace(".", "_")))  # the table is the head too
            seen.add(owner)
            ours = stored[owner].read()
            theirs = torch.from_numpy(np.asarray(operation.materialized_val_inference(), np.float32))
            theirs = stored[owner].binding.rewrite.unfold(theirs[: len(ours)].reshape(ours.shape))
            assert torch.equal(ours, theirs), name
    assert len(seen) == len(places) + 1
