"""The table of docs/families.md, from what the family test's own models measure, and the README's list of models: `make
families`.

    python tests/family_table.py              measure every family, and write the table
    python tests/family_table.py qwen3 phi    measure these anew, and keep the figures of the others

The figures stand in recipe/families/verified.json, from which `recipe families` says what each was verified with.
"""

import json
import re
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coreai_recipes.recipe.importing.family import Family, family_names, load_family, verified_families

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs/families.md"
README = REPOSITORY / "README.md"
PACKAGE = REPOSITORY / "coreai_recipes"
VERIFIED = PACKAGE / "recipe/families/verified.json"
BEGIN, END = "<!-- families: written by `make families` -->\n", "<!-- end of families -->\n"
WIDTH = 120
COLUMNS = ("models", "`model_type`", "what sets it apart", "rotary", "torch", "package", "float16")
RIGHT = COLUMNS.index("torch")


def measure(name: str) -> dict[str, Any]:
    """What the stages find on the family's unusual model, built as tests/test_families.py builds it."""
    from family_configs import save_tokenizer
    from test_families import PACKAGED, read_recipe, save_model

    from coreai_recipes import build

    with TemporaryDirectory() as folder:
        checkpoint = save_model(PACKAGED[name], Path(folder) / "checkpoint")
        save_tokenizer(checkpoint.path)
        recipe = read_recipe(checkpoint.config)
        report = build(recipe, checkpoint, Path(folder) / "dist").report
    stages = {stage["name"]: stage for stage in report["stages"] if stage["passed"] and stage["psnr_db"] is not None}
    rotaries = dict.fromkeys(kind.rotary.kind for kind in recipe.model.kinds.values())
    figures = {stage: [stages[stage]["psnr_db"], stages[stage]["snr_min_db"]] for stage in stages if stage != "rotary"}
    return {"transformers": version("transformers"), "rotary": list(rotaries), **figures}


def table() -> str:
    """The table in Markdown, between its marks."""
    rows = [_row(load_family(name), verified_families()) for name in family_names()]
    marks = ["---" if index < RIGHT else "---:" for index in range(len(COLUMNS))]
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, marks, *rows)]
    return BEGIN + count() + "\n\n" + "\n".join(lines) + "\n" + END


def count() -> str:
    """How many decoders there are, and beside them model types with no stack of layers of their own."""
    decoders = len(verified_families())
    others = f"{len(family_names()) - decoders} names that wrap or rename one, or draft for it"
    return f"{decoders} decoders, each compared with transformers, and {others}."


def models() -> str:
    """The names of the models that there are families for, between the same marks, as the README lists them."""
    said = [load_family(name).about.partition(":")[0] for name in family_names()]
    alone = {name for names in said for name in re.sub(r" \([^)]*\)", "", names).split(", ")}
    drawn = sorted((name for name in alone if "assistant" not in name), key=str.casefold)
    listed = textwrap.fill(", ".join(drawn) + ".", WIDTH, break_on_hyphens=False)
    return BEGIN + count() + "\n\n" + listed + "\n" + END


def _row(family: Family, verified: dict[str, Any]) -> Sequence[str]:
    models, _, about = family.about.partition(": ")
    rotary = ", ".join(verified.get(family.name, {}).get("rotary", ()))
    figures = [_figures(verified.get(family.name), stage) for stage in ("torch", "package", "package_float16")]
    same_as = family.reference or family.family
    if same_as is not None and family.name not in verified:
        figures = [f"as `{same_as}`", "", ""]
    return models, f"`{family.name}`", about, rotary, *figures


def _figures(found: dict[str, Any] | None, stage: str) -> str:
    return "-" if found is None else " / ".join(f"{figure:.0f}" for figure in found[stage])


def split_page(text: str) -> tuple[str, str, str]:
    """What stands before the table, the table with its marks, and what stands behind."""
    before, begin, rest = text.partition(BEGIN)
    inside, end, after = rest.partition(END)
    return before, begin + inside + end, after


def write_table() -> None:
    """The table with the figures that there are, and the list."""
    for page, written in ((PAGE, table()), (README, models())):
        before, _, after = split_page(page.read_text())
        page.write_text(before + written + after)


def main(names: Sequence[str]) -> None:
    from family_configs import decoders

    known = decoders()
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"no family of its own: {', '.join(unknown)}")
    found = {name: entry for name, entry in verified_families().items() if name in known}
    for name in names or known:
        found[name] = measure(name)
        print(f"{name}: {found[name]}", file=sys.stderr)
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(found[key])}" for key in sorted(found))
        VERIFIED.write_text(f"{{\n{lines}\n}}\n")
    verified_families.cache_clear()
    write_table()


if __name__ == "__main__":
    main(sys.argv[1:])
