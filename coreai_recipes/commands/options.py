"""What several commands take, defined once: the same option has the same name and meaning everywhere."""

from typing import Annotated, Any, Literal

import typer


def out_option(metavar: str, help: str) -> Any:
    """Where a command writes."""
    return typer.Option("-o", "--out", metavar=metavar, help=help)


RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a built-in recipe's name.")]
CheckpointOption = Annotated[
    str | None,
    typer.Option("--checkpoint", metavar="SRC", help="A folder, a GGUF file, or a hub id (ORG/NAME@REVISION)."),
]
DraftOption = Annotated[
    str | None, typer.Option("--draft", metavar="SRC", help="The draft's weights; a recipe may name its own.")
]
OverridesOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field: export.context=512.")
]
RuntimeOption = Annotated[
    Literal["auto", "evaluator", "coreml"],
    typer.Option("--runtime", help="What runs the package; auto takes Core ML where it is, else the evaluator."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]

BundleArgument = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="The folder that `recipe build` wrote, or its name in dist/.")
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", metavar="NAME", help="The chat template of that name, where there are several."),
]
SystemOption = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system message.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", metavar="T", min=0.0, help="0 is greedy.")]
TopPOption = Annotated[
    float, typer.Option("--top-p", metavar="P", min=0.0, max=1.0, help="Draw from the most probable tokens, up to P.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", metavar="N", help="The same seed draws the same tokens.")]
