"""Everything that is known of a bundle, in one document: what `recipe report --json` prints and its page draws."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from coreai_recipes.bundle.device_reports import document_of, reports_of
from coreai_recipes.bundle.opened import Bundle, identity_of, recipe_of

if TYPE_CHECKING:
    from coreai_recipes.manifest.audit import Audit
    from coreai_recipes.recipe import Recipe

LAYER = re.compile(r"(?:^|_|\.)layers?[._](\d+)(?:[._]|$)")  # of a parameter or module, of a value in a program
PRODUCTS = ("conv", "matmul", "linear", "einsum")
LIMITS = {"float16": 65504, "sums on M1 (mac-32768)": 32768, "divisors on phones (div-sub)": 16384}


def facts_of(bundle: Bundle) -> dict[str, Any]:
    """The facts of one bundle. Raises UserError where it contradicts itself; no weight is read."""
    from coreai_recipes.bundle.ruling import open_for_rules
    from coreai_recipes.lint.devices import find_device
    from coreai_recipes.lint.findings import lint
    from coreai_recipes.planning.plan import make_plan
    from coreai_recipes.recipe.loader import recipe_text

    bundle.check_package()
    recipe = recipe_of(bundle.path)
    subject, plan = open_for_rules(bundle.path), make_plan(recipe).to_json()
    device = None if subject.device is None else find_device(subject.device)
    found = lint(subject, device, allow=subject.allow).to_json()
    audit = subject.audit
    return {
        "name": recipe.name,
        "format": recipe.export.format,
        "manifest_sha256": identity_of(bundle.path),
        "bytes": bundle.bytes,
        "checkpoint": bundle.manifest["checkpoint"]["source"],
        "versions": bundle.manifest["versions"],
        "recipe": recipe_text(recipe),
        "device": None if device is None else device.words,
        "layers": list(recipe.model.layer_kinds),
        "kinds": {name: _kind(recipe, name) for name in dict.fromkeys(recipe.model.layer_kinds)},
        "report": bundle.report,
        "figures": list(_figures(bundle.report)),
        "ranges": None if audit is None else list(_ranges(audit)),
        "limits": LIMITS,
        "audited": None if audit is None else {"prompts": audit.prompts, "positions": audit.positions},
        "by_tensor": _by_tensor(bundle.report, plan),
        "lint": found,
        "plan": plan,
        "device_reports": [document_of(bundle, report) for report in reports_of(bundle)],
    }


def _kind(recipe: "Recipe", name: str) -> dict[str, Any]:
    """A kind in plain data, and which dimension of a head its rotary turns with which."""
    kind = recipe.model.kinds[name]
    described = kind.model_dump(mode="json", exclude_defaults=True)
    parts = {key: dict(_flat(described.get(key) or {})) for key in ("attention", "rotary", "mlp")}
    return {**parts, "turns": turns_of(recipe, name)}


def _flat(described: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Fields by their dotted names, the kind first."""
    for key, value in sorted(described.items(), key=lambda item: item[0] != "kind"):
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def turns_of(recipe: "Recipe", name: str) -> list[dict[str, Any]]:
    """Each dimension of a head, the one that it is turned with, itself where it passes, and the angle of a position.

    Seen on the rotary itself: each unit vector is turned by position 1.
    """
    import torch

    from coreai_recipes.primitives.rotary import Rotary
    from coreai_recipes.recipe.schema import NoRotary

    kind = recipe.model.kinds[name]
    if isinstance(kind.rotary, NoRotary):
        return []
    size = kind.attention.rotary_dim
    each = torch.eye(size).view(size, 1, 1, size)  # (B, H, S, D)
    turned = Rotary(kind.rotary, size)(each, torch.ones(size, 1, dtype=torch.int64)).view(size, size)
    found = []
    for index, row in enumerate(turned):
        others = [other for other in row.nonzero().flatten().tolist() if other != index]
        partner = others[0] if others else index
        angle = abs(float(torch.atan2(row[partner], row[index]))) if others else 0.0
        found.append({"dimension": index, "with": partner, "turns": bool(others), "angle": angle})
    return found


def _figures(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each tensor that a stage compared: its layer, what it is there, both figures and their floors."""
    for stage in report["stages"]:
        for each in stage["detail"].get("figures", ()):
            layer, part = _place(each["tensor"])
            yield {
                "stage": stage["name"],
                "tensor": each["tensor"],
                "layer": layer,
                "part": part or "output",
                "psnr_db": each["psnr_db"],
                "snr_min_db": each["snr_min_db"],
                "floor_db": stage["floor_db"],
                "snr_min_floor_db": stage["detail"].get("snr_min_floor_db"),
            }


def _ranges(audit: "Audit") -> Iterator[dict[str, Any]]:
    """The largest sum of products of each layer in each function, and of what is in none: the masks that are added to
    scores would hide them."""
    largest: dict[tuple[str, int | None], tuple[float, str]] = {}
    for function, values in audit.functions.items():
        for name, value in values.items():
            if value.operation not in PRODUCTS:
                continue
            key = function, _place(name)[0]
            if value.largest >= largest.get(key, (-1.0, ""))[0]:
                largest[key] = value.largest, name
    for (function, layer), (size, name) in largest.items():
        yield {"function": function, "layer": layer, "largest": size, "value": name}


def _by_tensor(report: Mapping[str, Any], plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every parameter as it is stored: as verification measured it, else as the plan has it."""
    measured = (stage["detail"].get("by_tensor") for stage in report["stages"])
    rows = next((rows for rows in measured if rows), plan["by_tensor"])
    places = [_place(row["name"]) for row in rows]
    return [{**row, "layer": layer, "part": part} for row, (layer, part) in zip(rows, places, strict=True)]


def _place(name: str) -> tuple[int | None, str]:
    """The layer that a name says, and what it is there; None and the whole name where it says none."""
    at = LAYER.search(name)
    return (None, name) if at is None else (int(at[1]), name[at.end() :])
