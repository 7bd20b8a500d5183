"""What a bundle did on a device: where its operations ran, how long its calls took, what they held in memory.

Reports are added to a finished bundle, in its folder `device`, and name it by the digest of its manifest.json. One is
taken in either as written here, or with `compute_plan`: MLComputePlan's choice for each operation by function, as
argmaxtools writes it beside WhisperKit's models (`{operation: {"dispatch": "ANE", ...}}`).
"""

import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from coreai_recipes.errors import BundleError
from coreai_recipes.manifest.fields import Count, Described, Digest, Name, Size, Text
from coreai_recipes.manifest.files import read_regular
from coreai_recipes.manifest.reading import document_in, typed

MAX_BYTES = 64 << 20  # some 200 bytes an operation
EXAMPLE = "example"  # the device of fixtures: of no table
REQUIRED = ("manifest_sha256", "device", "chip", "os_build", "date")
UNITS = {"ANE": "engine", "GPU": "gpu", "CPU": "cpu"}

Seconds = Annotated[float, Field(strict=False, ge=1e-9, le=1e9, allow_inf_nan=False)]  # of ms too; a rate is finite


def _of_calendar(text: str) -> str:
    try:
        date.fromisoformat(text)
    except ValueError:
        raise ValueError("input should be a day of the calendar, as in 2026-11-28") from None
    return text


class Placed(Described):
    """How many operations of a function run where, constants aside."""

    engine: Size = 0
    gpu: Size = 0
    cpu: Size = 0


class Called(Described):
    """One function: the seconds until it was loaded, the median of its calls, where its operations run."""

    load_seconds: Seconds | None = None
    calls: Count | None = None
    median_ms: Seconds | None = None
    placed: Placed | None = None


class DeviceReport(Described):
    """A report. `device` is an id that `--device` takes, or `example`; `source` says who measured, where that is known.

    `footprint_bytes` is what the process held at most, beyond what it held before the package was loaded.
    """

    format: Literal[1] = 1
    manifest_sha256: Digest
    device: Text
    chip: Text
    os_build: Annotated[str, Field(pattern=r"^[0-9]{1,3}[A-Z][0-9]{1,6}[a-z]?$")]
    date: Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), AfterValidator(_of_calendar)]
    source: Text | None = None
    compute_units: Literal["cpu_and_ne", "cpu_and_gpu", "cpu_only", "all"] | None = None
    functions: Annotated[dict[Name, Called], Field(min_length=1)]
    footprint_bytes: Size | None = None

    def tokens_per_second(self) -> float | None:
        """By the median call of decode, which gives one."""
        decode = self.functions.get("decode")
        return None if decode is None or decode.median_ms is None else 1000 / decode.median_ms

    @property
    def file_name(self) -> str:
        """Its place in a bundle's folder of reports."""
        return f"{self.device}-{self.os_build}-{self.date}.json"

    def text(self) -> str:
        return json.dumps(self.model_dump(mode="json", exclude_none=True), indent=2) + "\n"


def read_device_report(path: Path) -> DeviceReport:
    """The report in a file. Raises BundleError, a line for each fault, for what is none."""
    try:
        content = document_in(read_regular(path, MAX_BYTES))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise BundleError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BundleError(f"{path}: a device report is a JSON object, and this is {type(content).__name__}")
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        plan = ", with MLComputePlan's dump under `compute_plan`, by function" if _is_dump(content) else ""
        raise BundleError(
            f"{path}: says nothing of {', '.join(missing)}: a device report needs {', '.join(REQUIRED)}{plan}"
        )
    if "compute_plan" in content:
        content = {**content, "functions": _of_plan(content.pop("compute_plan"), content.get("functions", {}), path)}
    return typed(DeviceReport, content, str(path))


def _is_dump(content: dict[str, Any]) -> bool:
    return bool(content) and all(isinstance(each, dict) and "dispatch" in each for each in content.values())


def _of_plan(plan: Any, functions: Any, path: Path) -> dict[str, Any]:
    """Functions with the operations of each counted by the unit that MLComputePlan prefers."""
    if not isinstance(plan, dict):
        raise BundleError(f"{path}: compute_plan: must be a mapping of functions")
    if not isinstance(functions, dict):
        raise BundleError(f"{path}: functions: must be a mapping")
    BundleError.collect(
        f"{path}: functions.{name!s:.80}: must be a mapping"
        for name, called in functions.items()
        if not isinstance(called, dict)
    )
    found = dict(functions)
    for name, operations in plan.items():
        if not isinstance(operations, dict) or not _is_dump(operations):
            raise BundleError(
                f"{path}: compute_plan.{name!s:.80}: every operation needs `dispatch`: {', '.join(UNITS)}"
            )
        words = Counter(str(each["dispatch"]) for each in operations.values())
        unknown = sorted(words.keys() - UNITS.keys())
        if unknown:
            raise BundleError(
                f"{path}: compute_plan.{name!s:.80}: dispatch {unknown[0]!r:.80} is not {', '.join(UNITS)}"
            )
        placed = {UNITS[word]: count for word, count in words.items()}
        found[name] = {**functions.get(name, {}), "placed": placed}
    return found
