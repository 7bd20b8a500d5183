"""The table of families in docs/coreai.md: each family's test model as an .aimodel, by Apple's runtime: `make
coreai-families`.

    python tests/coreai_table.py              measure every family, and write the table
    python tests/coreai_table.py qwen3 phi    measure these anew, and keep the figures of the others

The figures stand in tests/coreai_families.json: PSNR and SNR_min of stage `package`, or why there are none; `main` and
`no_main` are the same of the asset for coreai-models on macOS.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.errors import UserError
from coreai_recipes.recipe.host_rules import host_problems
from coreai_recipes.recipe.importing.family import verified_families
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.recipe.schema.export import CoreAIExport

PAGE = Path(__file__).parents[1] / "docs/coreai.md"
MEASURED = Path(__file__).parent / "coreai_families.json"
BEGIN, END = "<!-- families: written by `make coreai-families` -->\n", "<!-- end of families -->\n"
DYNAMIC = "coreai-models-dynamic"
TOKENS = range(40)  # two calls of prefill and single tokens behind them


def measured() -> dict[str, dict[str, Any]]:
    """What was found of each family that was run."""
    found: dict[str, dict[str, Any]] = json.loads(MEASURED.read_text())
    return found


def as_coreai(recipe: Recipe) -> Recipe:
    """The same recipe with Core AI's format, without what only Core ML's has."""
    return Recipe.model_validate(saying(recipe))


def saying(recipe: Recipe, **export: Any) -> dict[str, Any]:
    """What such a recipe says, with these fields of its export."""
    said = recipe.model_dump(mode="json", exclude_unset=True)
    kept = {name: value for name, value in said["export"].items() if name in CoreAIExport.model_fields}
    return {**said, "export": {**kept, **export, "format": "coreai"}}


def measure(name: str) -> dict[str, Any]:
    """The figures of the family's unusual model, of which every weight is a random one, or the reasons against it."""
    from test_families import PACKAGED, read_recipe, save_model

    with TemporaryDirectory() as folder:
        checkpoint = save_model(PACKAGED[name], Path(folder) / "checkpoint")
        recipe = read_recipe(checkpoint.config)
        package = _figures(as_coreai(recipe), checkpoint, Path(folder) / "model.aimodel")
        said = saying(recipe, host=DYNAMIC, functions=recipe.export.functions.model_dump(exclude={"score"}))
        problem = next(host_problems(said), None)
        main = (
            problem.message
            if problem
            else _figures(Recipe.model_validate(said), checkpoint, Path(folder) / "main.aimodel")
        )
    found = {"reason": package} if isinstance(package, str) else {"package": package}
    return found | ({"no_main": main} if isinstance(main, str) else {"main": main})


def _figures(recipe: Recipe, checkpoint: Checkpoint, asset: Path) -> list[float] | str:
    """PSNR and SNR_min of stage `package`, or why there are none."""
    from coreai_recipes.decoder.filling import bind_stacks
    from coreai_recipes.decoder.model import exported_form
    from coreai_recipes.decoder.stacks import build_stacks
    from coreai_recipes.export.cache import FragmentCache
    from coreai_recipes.targets.coreai.exporter import export_package
    from coreai_recipes.verification.run import run_stages

    stacks, sources = build_stacks(recipe, exported_form(recipe)), {"model": checkpoint}
    try:
        export_package(stacks, bind_stacks(stacks, sources), asset, FragmentCache(None))
        (stage,) = run_stages(recipe, sources, asset, stages=["package"], runtime="coreai", tokens=TOKENS).stages
    except UserError as error:
        return str(error)
    if not stage.passed:
        return f"`package` fails: {json.dumps(stage.detail)}"
    return [round(figure, 2) for figure in (stage.psnr_db, stage.snr_min_db)]


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table in Markdown, between its marks."""
    passed, mains = (sum(key in entry for entry in found.values()) for key in ("package", "main"))
    said = (
        f"{passed} of the {len(found)} families that were run pass, and {mains} as `main` of coreai-models. A family "
        "that is not in the table was not run."
    )
    lines = ["| `model_type` | `package` | of `main` | why not |", "|---|---:|---:|---|"]
    lines += [f"| `{name}` | {' | '.join(_cells(found[name]))} |" for name in sorted(found)]
    return BEGIN + said + "\n\n" + "\n".join(lines) + "\n" + END


def _cells(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    why = " ".join(entry.get("reason", entry.get("no_main", "")).replace("|", r"\|").split())
    package, main = (
        " / ".join(f"{figure:.0f}" for figure in entry[key]) if key in entry else "-" for key in ("package", "main")
    )
    return package, main, why


def page_with(text: str, written: str) -> str:
    """The page's text with another table between the marks."""
    before, _, rest = text.partition(BEGIN)
    return before + written + rest.partition(END)[2]


def main(names: Sequence[str]) -> None:
    known, found = verified_families(), measured() if MEASURED.exists() else {}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"no family of its own: {', '.join(unknown)}")
    for name in names or known:
        found[name] = measure(name)
        print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(found[key])}" for key in sorted(found))
        MEASURED.write_text(f"{{\n{lines}\n}}\n")
    PAGE.write_text(page_with(PAGE.read_text(), table(found)))


if __name__ == "__main__":
    main(sys.argv[1:])
