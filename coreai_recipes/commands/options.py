"""What several commands take, defined once: the same option has the same name and meaning everywhere."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from coreai_recipes.errors import UserError
from coreai_recipes.terminal import check_text


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
    typer.Option(
        "--runtime",
        metavar="NAME",
        help="auto, evaluator or coreml: auto takes Core ML where it is, else the evaluator.",
    ),
]
BitsOption = Annotated[
    int | None,
    typer.Option("--bits", metavar="N", help="Compress the weights: palettes of 1, 2, 3, 4 or 6 bits; 8 is int8."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]

BundleArgument = Annotated[
    str, typer.Argument(metavar="BUNDLE", help="The folder that `recipe build` wrote, or its name in dist/.")
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="NAME|KEY=VALUE",
        help="A chat template by its name, or what it is given: enable_thinking=false. May be given again.",
    ),
]
SystemOption = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system message.")]
TemperatureOption = Annotated[float, typer.Option("--temperature", metavar="T", min=0.0, help="0 is greedy.")]
TopPOption = Annotated[
    float, typer.Option("--top-p", metavar="P", min=0.0, max=1.0, help="Draw from the most probable tokens, up to P.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", metavar="N", help="The same seed draws the same tokens.")]
TopKOption = Annotated[int, typer.Option("--top-k", metavar="N", min=0, help="Draw from the N best; 0 is all.")]
MinPOption = Annotated[
    float,
    typer.Option("--min-p", metavar="P", min=0.0, max=1.0, help="Draw from those with P of the best one's share."),
]
PenaltyOption = Annotated[
    float,
    typer.Option("--repetition-penalty", metavar="R", help="Make tokens that were there less likely; 1 is none."),
]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before TEXT. May be given again.")
]


def read_template(words: Sequence[str] | None) -> tuple[str | None, dict[str, Any]]:
    """The name of a chat template, and what it is given: a YAML scalar each. Raises UserError for other words."""
    from coreai_recipes.recipe.yaml_reader import read_yaml

    name, variables, problems = None, {}, []
    for word in words or ():
        key, equals, text = check_text(word, "--template").partition("=")
        if not equals:
            if name is not None:
                problems.append(f"--template {word}: {name} is named already: an answer has one chat template")
            name = word
            continue
        root, wrong = read_yaml(text, "")
        if not key.isidentifier():
            problems.append(f"--template {word}: not KEY=VALUE, as in enable_thinking=false")
        elif wrong or (root is not None and isinstance(root.value, dict | list)):
            problems.append(f"--template {word}: the value is no word, number, true or false")
        else:
            variables[key] = "" if root is None else root.value
    UserError.collect(problems)
    return name, variables
