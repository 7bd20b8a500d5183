"""A bundle measured by Core ML on this Mac: the load of each function, its calls, where its operations run."""

import statistics
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.running.coreml import CoreMLProgram, check_coreml
from coreai_recipes.running.program import open_program

if TYPE_CHECKING:
    from coreai_recipes.manifest.schema import Function, Manifest

CALLS = 20  # of each function, after one that warms up
UNITS = {"MLNeuralEngineComputeDevice": "engine", "MLGPUComputeDevice": "gpu", "MLCPUComputeDevice": "cpu"}


def measure(folder: Path, manifest: "Manifest", compute_units: str, calls: int = CALLS) -> dict[str, dict[str, Any]]:
    """By function: seconds until its first call returned, the median of `calls` more in ms, operations by unit.

    Each call is made at position 0, of token 0: the time of a static program does not depend on what it computes.
    Raises UserError where Core ML cannot run.
    """
    check_coreml()
    program = open_program(folder, manifest, "coreml", compute_units)
    rows = {table.input for table in manifest.tables}
    found: dict[str, dict[str, Any]] = {}
    for name, function in manifest.functions.items():
        inputs = _inputs(function, rows)
        start = time.perf_counter()
        program.call(name, inputs)
        loaded, times = time.perf_counter() - start, []
        for _ in range(calls):
            start = time.perf_counter()
            program.call(name, inputs)
            times.append(time.perf_counter() - start)
        found[name] = {"load_seconds": loaded, "calls": calls, "median_ms": 1000 * statistics.median(times)}
    for package in manifest.programs:
        for name, placed in placement(
            CoreMLProgram(folder / package.file, compute_units), [*package.functions]
        ).items():
            total = Counter(found[name].get("placed", {})) + Counter(placed)
            found[name]["placed"] = dict(total)
    return found


def placement(program: CoreMLProgram, functions: list[str]) -> dict[str, dict[str, int]]:
    """By function, how many operations MLComputePlan prefers to run where."""
    from coremltools import ComputeUnit
    from coremltools.models.compute_plan import MLComputePlan

    found: dict[str, dict[str, int]] = {}
    for name in functions:
        compiled = program.function(name).compiled
        plan = MLComputePlan.load_from_path(compiled, compute_units=ComputeUnit[program.compute_units.upper()])
        counts: Counter[str] = Counter()
        for operation in plan.model_structure.program.functions[name].block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is not None and operation.operator_name != "const":
                counts[UNITS.get(type(usage.preferred_compute_device).__name__, "cpu")] += 1
        found[name] = dict(counts)
    return found


def _inputs(function: "Function", rows: set[str]) -> dict[str, Any]:
    """Zeros, but for `count`, of which all tokens are real; rows of tables are for others to look up."""
    import torch

    found = {
        name: torch.zeros(port.shape, dtype=getattr(torch, port.dtype))
        for name, port in function.inputs.items()
        if name not in rows
    }
    if "count" in found:
        found["count"] += function.query
    return found
