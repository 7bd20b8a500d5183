"""Forms of .aimodel and what they lose: small random models, written in each of two ways; stages `package` and
`package_float16` by Apple's runtime: `make coreai-forms`, for two tables of docs.

    python tests/coreai_forms.py                      measure every model, and write the tables
    python tests/coreai_forms.py phi3-longrope        measure these anew, and keep the figures of the others

The models are those of `test_families`, the texts those of `coreai_table`. The figures stand in
tests/coreai_forms.json: by the field of `export` that differs, by model, by what the field says.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coreai_table import TOKENS, as_coreai

from coreai_recipes.errors import UserError
from coreai_recipes.recipe.loader import validate_data
from coreai_recipes.recipe.schema import Recipe

MEASURED = Path(__file__).parent / "coreai_forms.json"
DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- {}: written by `make coreai-forms` -->\n", "<!-- end of {} -->\n"
STAGES = ("package", "package_float16")
Figures = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Table:
    """A field of `export` and what it may say, the page that its table is on, and the models with what is in them."""

    field: str
    words: tuple[str, ...]
    page: str
    models: Mapping[str, str]


TABLES = (
    Table(
        "recurrent_state",
        ("float16", "two_float16"),
        "coreai.md",
        {
            "qwen3_5_text-unusual": "the gated delta rule",
            "mamba2-unusual": "Mamba-2",
            "granitemoehybrid-unusual": "Mamba-2 and attention",
            "lfm2-unusual": "short convolutions and attention",
        },
    ),
    Table(
        "buffer",
        ("16",),
        "coreai.md",
        {
            "qwen3_5_text-unusual": "the gated delta rule",
            "mamba2-unusual": "Mamba-2",
            "granitemoehybrid-unusual": "Mamba-2 and attention",
            "lfm2-unusual": "short convolutions and attention",
        },
    ),
    Table(
        "rotary_op",
        ("plain", "composite"),
        "core-ai-rotary.md",
        {
            "phi-unusual": "partial",
            "phi3-longrope": "longrope",
            "glm-unusual": "partial, interleaved pairs",
            "ministral3-unusual": "yarn",
            "gemma4_text-unusual": "proportional beside full",
        },
    ),
)


def measured() -> dict[str, Figures]:
    """What was found, by field, model and word: the figures of both stages, or the reason against it."""
    found: dict[str, Figures] = json.loads(MEASURED.read_text())
    return found


def measure(model: str, field: str, word: str) -> dict[str, Any]:
    """The figures of one form of a model, of which every weight is a random one."""
    from test_families import CONFIGS, read_recipe, save_model, without_choice

    with TemporaryDirectory() as folder:
        checkpoint = save_model(without_choice(CONFIGS[model]), Path(folder) / "checkpoint")
        try:
            recipe = _saying(as_coreai(read_recipe(checkpoint.config)), field, word)
            return _figures(recipe, checkpoint, Path(folder) / "model.aimodel")
        except UserError as error:
            return {"reason": str(error)}


def _saying(recipe: Recipe, field: str, word: str) -> Recipe:
    said = recipe.model_dump(mode="json", exclude_unset=True)
    export = {**said["export"], field: int(word) if word.isdigit() else word}
    if field == "buffer":  # which holds the tokens of a call
        export["functions"] = {"prefill": export[field]}
    changed, problems = validate_data({**said, "export": export})
    if changed is None or problems:
        raise UserError("; ".join(problem.message for problem in problems))
    return changed


def _figures(recipe: Recipe, checkpoint: Any, asset: Path) -> dict[str, Any]:
    from coreai_recipes.decoder.filling import bind_stacks
    from coreai_recipes.decoder.model import exported_form
    from coreai_recipes.decoder.stacks import build_stacks
    from coreai_recipes.export.cache import FragmentCache
    from coreai_recipes.targets.coreai.exporter import export_package
    from coreai_recipes.verification.run import run_stages

    stacks, sources = build_stacks(recipe, exported_form(recipe)), {"model": checkpoint}
    export_package(stacks, bind_stacks(stacks, sources), asset, FragmentCache(None))
    stages = run_stages(recipe, sources, asset, stages=list(STAGES), runtime="coreai", tokens=TOKENS).stages
    package, half = stages
    found: dict[str, Any] = {
        "package": round(package.psnr_db, 2),
        "package_float16": round(half.psnr_db, 2),
        "floor": round(half.floor_db, 2),
    }
    if states := half.detail.get("states"):
        found["states"] = round(states["psnr_db"], 2)
    if below := [stage.name for stage in stages if not stage.passed]:
        found["reason"] = f"`{below[0]}` is below its floor"
    return found


def written(table: Table, found: Figures) -> str:
    """The table in Markdown, between its marks."""
    lines = [f"| model | | `{table.field}` | `package` | `package_float16` | its floor | its states alone | |"]
    lines.append("|---|---|---|---:|---:|---:|---:|---|")
    for model, what in table.models.items():
        forms = found.get(model, {})
        for word, entry in ((word, forms[word]) for word in table.words if word in forms):
            figures = (f"{entry[key]:.1f}" if key in entry else "-" for key in (*STAGES, "floor", "states"))
            reason = " ".join(entry.get("reason", "").replace("|", r"\|").split())
            lines.append(f"| `{model}` | {what} | `{word}` | {' | '.join(figures)} | {reason} |")
    return BEGIN.format(table.field) + "\n".join(lines) + "\n" + END.format(table.field)


def page_with(text: str, table: Table, found: Figures) -> str:
    """The page's text with another table between the marks."""
    before, _, rest = text.partition(BEGIN.format(table.field))
    return before + written(table, found) + rest.partition(END.format(table.field))[2]


def main(names: Sequence[str]) -> None:
    known = {model for table in TABLES for model in table.models}
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"in no table: {', '.join(unknown)}")
    found = measured() if MEASURED.exists() else {}
    for table in TABLES:
        figures = found.setdefault(table.field, {})
        for model in (model for model in table.models if not names or model in names):
            figures[model] = {word: measure(model, table.field, word) for word in table.words}
            print(f"{model}: {figures[model]}", file=sys.stderr, flush=True)
            MEASURED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        page = DOCS / table.page
        page.write_text(page_with(page.read_text(), table, figures))


if __name__ == "__main__":
    main(sys.argv[1:])
