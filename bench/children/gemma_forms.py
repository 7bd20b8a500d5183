"""What the fold and the shortened prefill save: one random model, exported in each form, counted and evaluated.

python -m bench.children.gemma_forms FOLDER STEPS RECIPE [KEY=VALUE...]
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from coreai_recipes import load_recipe
from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.front import Front, Sharing
from coreai_recipes.decoder.model import build_decoder, exported_form
from coreai_recipes.evaluate import Program
from coreai_recipes.evaluate.cost import function_costs
from coreai_recipes.evaluate.element_types import ELEMENT_TYPES
from coreai_recipes.evaluate.graph import STATE_OPERATIONS, read_graph
from coreai_recipes.evaluate.opset import OPERATIONS
from coreai_recipes.evaluate.package_reader import Package
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.targets.coreml.exporter import export_package
from coreai_recipes.verification.random_checkpoint import RandomCheckpoint

WARM_UP = 2
FORMS = {  # fold, last token alone
    "as it ships": (True, True),
    "without the fold": (False, True),
    "shared layers for every token": (True, False),
    "neither": (False, False),
}


@contextmanager
def every_token() -> Iterator[None]:
    """Prefill without its shortcut: layers that share a cache run as they do in `score`."""
    ours = Front.sharing

    def sharing(self: Front, function: str) -> Sharing:
        return "after" if function == "prefill" else ours(self, function)

    with patch.object(Front, "sharing", sharing):
        yield


def export(form: str, folder: Path, recipe: str, overrides: list[str]) -> Path:
    fold, alone = FORMS[form]
    loaded = load_recipe(recipe, [*overrides, f"export.fold={str(fold).lower()}"])
    decoder = build_decoder(loaded, exported_form(loaded))
    package = folder / form.replace(" ", "_") / "model.mlpackage"
    package.parent.mkdir()
    bindings = bind_weights(decoder, RandomCheckpoint(loaded))
    arguments = ([decoder], bindings, package, FragmentCache(folder / "fragments"))
    if alone:
        export_package(*arguments)
    else:
        with every_token():
            export_package(*arguments)
    return package


def result_bytes(package: Path, function: str) -> int:
    """What the operations of a function write, views and states aside: the traffic of what is between them."""
    graph = read_graph(Package(package), function)
    return sum(
        prod(result.shape) * ELEMENT_TYPES[result.element_type].bits // 8
        for node in graph.nodes
        if node.type not in STATE_OPERATIONS and OPERATIONS[node.type].reads != "nothing"
        for result in node.results
    )


class Call:
    """The functions of one form, with a state of their own."""

    def __init__(self, package: Path, ids: Tensor, rows: Tensor) -> None:
        program = Program(package)
        self.functions = {name: program.function(name) for name in program.functions}
        self.state, self.ids, self.rows = program.make_state(), ids, rows

    def __call__(self, function: str) -> Tensor:
        """`prefill` of all tokens but the last from position 0, `decode` of the last one."""
        last = len(self.ids) - 1
        taken = slice(0, last) if function == "prefill" else slice(last, last + 1)
        inputs = {
            "input_ids": self.ids[None, taken],
            "position": torch.tensor([taken.start], dtype=torch.int32),
            "count": torch.tensor([taken.stop - taken.start], dtype=torch.int32),
            "per_layer": self.rows[None, taken],
        }
        wanted = self.functions[function]
        return wanted({name: value for name, value in inputs.items() if name in wanted.inputs}, self.state)["logits"]


def main(folder: Path, steps: int, recipe: str, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    loaded = load_recipe(recipe, overrides)
    queries, per_layer = loaded.export.functions.queries, loaded.model.embedding.per_layer
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(loaded.model.vocab_size, (queries["prefill"] + 1,), generator=generator, dtype=torch.int32)
    width = len(loaded.model.layer_kinds) * per_layer.size if per_layer else 0
    rows = torch.randn(len(ids), width, generator=generator) * 0.02
    packages = {form: export(form, folder, recipe, overrides) for form in FORMS}
    calls = {form: Call(package, ids, rows) for form, package in packages.items()}
    found: dict[str, dict[str, Any]] = {form: {} for form in FORMS}
    for function in ("prefill", "decode"):
        taken: dict[str, list[float]] = {form: [] for form in FORMS}
        logits: dict[str, Tensor] = {}
        for turn in range(WARM_UP + steps):
            for form, call in calls.items():
                started = time.perf_counter()
                logits[form] = call(function)
                if turn >= WARM_UP:
                    taken[form].append(1000 * (time.perf_counter() - started))
        expected = logits["neither"]
        for form, package in packages.items():
            cost = function_costs(package)[function]
            error = (logits[form] - expected).pow(2).mean().sqrt()
            found[form][function] = {
                "operations": sum(cost.operations.values()),
                "by_type": cost.operations,
                "flops": cost.flops,
                "weight_bytes": cost.weight_bytes,
                "state_bytes": cost.state_bytes,
                "result_bytes": result_bytes(package, function),
                "milliseconds": median(taken[form]),
                "psnr_db": 999.0 if error == 0 else float(20 * torch.log10(expected.abs().max() / error)),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
