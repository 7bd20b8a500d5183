"""Stage `decompressed`: what Core AI's runtime makes of compressed weights, to the bit.

The asset runs beside its dense twin, in which the evaluator's numbers stand where an operation makes them of palettes
or integers: the same calls give the same outputs and leave the same states. And those numbers are what the recipe
stores, made anew of the checkpoint. So one index of a palette, or one entry, is seen.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coreai_recipes.decoder.filling import Weight
from coreai_recipes.decoder.states import COMMIT
from coreai_recipes.hosts.coreai_models_dynamic import OPEN
from coreai_recipes.recipe.schema import MODEL, Recipe
from coreai_recipes.running.coreai import CoreAIProgram
from coreai_recipes.running.program import as_ours
from coreai_recipes.storage.accounting import measured
from coreai_recipes.storage.compression import shown_name
from coreai_recipes.storage.reading import StoredWeight, stored_weights
from coreai_recipes.verification.calls import FunctionCall, describe_calls
from coreai_recipes.verification.figures import compare
from coreai_recipes.verification.packaged import PackagedWeight
from coreai_recipes.verification.report import Figures, StageResult, figures_json, number
from coreai_recipes.verification.stages.package_float16 import FLOAT16_PRODUCTS, attention_products
from coreai_recipes.verification.subject import Subject

NAME = "decompressed"
SPREAD = 0.1  # of what a call is given beside tokens
AS_IT_IS = "the asset as it is"
WIDENED = "both in float32, whose products are faster here"

Ports = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Calls:
    """The outputs of calls from empty states, and the states behind the last, by what they are called in a report.

    Raises ValueError where there is none: states of zeros are equal whatever the weights.
    """

    calls: list[FunctionCall]
    values: dict[str, Tensor]

    def __post_init__(self) -> None:
        if not self.calls:
            raise ValueError("no function was called")


def run(subject: Subject) -> StageResult:
    weights = dict(_weights(subject))
    others = [name for name, psnr_db in weights.items() if psnr_db != inf]
    figures: list[Figures] = []
    detail: dict[str, Any] = {"floor": "bit-exact", "runtime": subject.runtime, "weights_compared": len(weights)}
    for package in subject.packages:
        widened = not _is_affordable(subject)
        detail["program"] = WIDENED if widened else AS_IT_IS
        asset, dense = (run_calls(subject, package, widened, is_dense) for is_dense in (False, True))
        detail["calls"] = describe_calls(asset.calls)
        figures += differing(asset.values, dense.values)
        detail["values_compared"] = detail.get("values_compared", 0) + len(asset.values)
    psnr_db, snr_min_db = (min((getattr(f, key) for f in figures), default=inf) for key in ("psnr_db", "snr_min_db"))
    if others:
        least = {"psnr_db": number(weights[others[0]]), "snr_min_db": None}
        detail["first_below"] = {"tensor": f"{others[0]}, which is not as the recipe stores it", **least}
        detail["strangers"] = others
        psnr_db = min(psnr_db, *(weights[name] for name in others))
    elif figures:
        detail["first_below"] = figures_json(figures[0])
    return StageResult(NAME, not others and not figures, psnr_db, snr_min_db, None, detail)


def differing(ref: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> list[Figures]:
    """The figures of each value that is not equal to the bit, or holds nothing that could be compared."""
    found = []
    for name, one in ref.items():
        other = values[name]
        if one.numpy().tobytes() != other.numpy().tobytes():
            found.append(compare(name, *(value.float().reshape(1, -1) for value in (one, other))))
        elif not one.float().isfinite().any():
            found.append(Figures(f"{name}, of which nothing is finite", -inf, -inf))
    return found


def run_calls(subject: Subject, package: Path, widened: bool, dense: bool) -> Calls:
    """A call of each function of a package by Core AI's runtime, with made-up inputs, the same each time."""
    recipe = subject.recipe
    program = CoreAIProgram(package, recipe.export.context, widened=widened, dense=dense)
    try:
        # of another project's host, the functions that its own make up
        engine: Any = as_ours(program, recipe.export.host, recipe.export.context, recipe.model.vocab_size)
        there = program.signatures if engine is program else recipe.export.functions.queries
        state, values = engine.make_state(), dict[str, Tensor]()
        calls = list(_plan(recipe, there))
        for place, call in enumerate(calls):
            function = engine.function(call.function)
            outputs = function(_made_up(function.inputs, call, recipe.model.vocab_size, place), state)
            for name in sorted(outputs, key=_in_order):
                values[f"{name} of {call.function} at position {call.position}"] = outputs[name]
            subject.progress(NAME, len(calls) * dense + place + 1, 2 * len(calls))
        values |= {f"state {name}": value.clone() for name, value in state.items()}
    finally:
        program.close()
    return Calls(calls, values)


def _plan(recipe: Recipe, there: Mapping[str, Any]) -> Iterator[FunctionCall]:
    """A whole call of each function, one behind the other, for each decompresses every weight that it reads; and where
    another project's host has functions for calls that are not full, one of these."""
    position = 0
    for name, query in {**_queries(recipe), COMMIT: 1}.items():
        for count in dict.fromkeys([query] if recipe.export.host is None else [query, query // 2 + 1]):
            if name in there:
                position = position if position + query <= recipe.export.context else 0
                yield FunctionCall(name, position, count, query)
                position += count


def _queries(recipe: Recipe) -> dict[str, int]:
    """Tokens of a call by function, `prefill` first, and a draft's."""
    sizes = recipe.export.functions.queries
    drafts = (key for key in recipe.stacks if key != MODEL)
    return {"prefill": sizes["prefill"], **sizes, **dict.fromkeys(drafts, 1)}


def _is_affordable(subject: Subject) -> bool:
    tokens = 2 * sum(_queries(subject.recipe).values())
    return tokens * attention_products(subject.recipe) <= FLOAT16_PRODUCTS


def _made_up(ports: Ports, call: FunctionCall, vocab_size: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    said = {"position": call.position, "count": call.count}
    found = {}
    for name, (dtype, described) in sorted(ports.items()):
        shape = [call.queries if size == OPEN else size for size in described]
        if name in said:
            found[name] = torch.full(described, said[name], dtype=torch.int32)
        elif "int" in dtype:
            found[name] = torch.randint(vocab_size, shape, generator=generator, dtype=torch.int32)
        else:
            found[name] = SPREAD * torch.randn(shape, generator=generator)
    return found


def _in_order(name: str) -> tuple[bool, int, str]:
    """Hidden states in the order of the layers, before all else."""
    number = name.removeprefix("hidden_")
    return not number.isdigit(), int(number) if number.isdigit() else 0, name


def _weights(subject: Subject) -> Iterator[tuple[str, float]]:
    """Each compressed weight of the asset and of tables beside it, and its PSNR against what the recipe stores."""
    for key, source in subject.sources.items():
        stored = stored_weights(subject.recipe, source, key, subject.package)
        pairs = {
            name: weight
            for name, weight in stored.items()
            if isinstance(weight, StoredWeight) and weight.storage.operation is not None
        }
        prefix = subject.recipe.stacks[key].prefix
        ours = {name: _packaged(subject, prefix + name, weight) for name, weight in pairs.items()}
        for name, weight in measured(ours, pairs).items():
            yield shown_name(prefix + name), weight.psnr_db


def _packaged(subject: Subject, name: str, stored: StoredWeight) -> Weight:
    """The weight in the asset, or a table that lies beside it. Raises BundleError where it is in neither."""
    binding, constant = stored.binding, subject.constants.get(name.replace(".", "_"))
    if constant is None:
        return subject.packaged_weights[name]
    return PackagedWeight(name, constant, binding.shape, binding.rewrite)
