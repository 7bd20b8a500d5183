"""audit.json: how large and how small the values of a bundle's program became on the prompts of `recipe audit`.

It lies in the bundle, listed among the manifest's files. Rules that need ranges read it by `read_audit`.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from coreai_recipes.manifest.fields import Count, Described, Size, Text
from coreai_recipes.manifest.files import read_regular
from coreai_recipes.manifest.reading import parse_json, typed

AUDIT = "audit.json"
MAX_BYTES = 64 << 20  # some 60 bytes a value of the program

Number = Annotated[float, Field(strict=False, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=False, ge=0, le=1, allow_inf_nan=False)]


class Value(Described):
    """One value of a function: a float result of an operation, over all positions of all prompts.

    Attributes:
        operation: the type of the operation that gives it.
        largest: its largest magnitude, evaluated in float32: beyond 65,504 float16 has infinity.
        least: its least magnitude that is not zero; 0 where all are.
        subnormal: the share of its elements that are below 2^-14 and not zero.
    """

    operation: Text
    largest: Number
    least: Number
    subnormal: Share = 0.0


class Audit(Described):
    """audit.json. `functions`: values by function and by their name in the program."""

    format: Literal[1]
    prompts: Count
    positions: Size
    functions: dict[Text, dict[Text, Value]]

    def value(self, function: str, name: str) -> Value | None:
        """What is known of a value; None where the audit did not come by."""
        return self.functions.get(function, {}).get(name)


def read_audit(folder: Path) -> Audit | None:
    """The audit of the bundle in `folder`, None where it has none. Raises BundleError for a file that is no audit."""
    try:
        content = read_regular(folder / AUDIT, MAX_BYTES, within=folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return typed(Audit, parse_json(content, folder / AUDIT, AUDIT), f"{folder}: {AUDIT}")


def audit_text(audit: Audit) -> str:
    """audit.json's text, a value a line."""
    functions = [
        f"  {json.dumps(function)}: {{\n"
        + ",\n".join(f"   {json.dumps(name)}: {value.model_dump_json()}" for name, value in values.items())
        + "\n  }"
        for function, values in audit.functions.items()
    ]
    head = f'{{"format": {audit.format}, "prompts": {audit.prompts}, "positions": {audit.positions}, "functions": {{\n'
    return head + ",\n".join(functions) + "\n}}\n"
