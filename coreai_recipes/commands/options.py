"""What several commands take, defined once: the same option has the same name and meaning everywhere."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from coreai_recipes.errors import UserError
from coreai_recipes.terminal.streams import check_text


def out_option(metavar: str, help: str) -> Any:
    """Where a command writes."""
    return typer.Option("-o", "--out", metavar=metavar, help=help)


RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file or the name of a built-in recipe.")
]
CheckpointOption = Annotated[
    str | None,
    typer.Option("--checkpoint", metavar="SRC", help="The weights: a folder, GGUF file or hub id (ORG/NAME@REVISION)."),
]
DraftOption = Annotated[
    str | None, typer.Option("--draft", metavar="SRC", help="The draft model's weights, unless the recipe names them.")
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field, as in export.context=512. Repeatable."),
]
RuntimeOption = Annotated[
    Literal["auto", "evaluator", "coreml", "coreai"],
    typer.Option(
        "--runtime",
        metavar="NAME",
        help="auto, evaluator or coreml; auto uses Core ML where it is available. An .aimodel is run by coreai.",
    ),
]
BitsOption = Annotated[
    int | None,
    typer.Option(
        "--bits", metavar="N", help="Compress the weights to N bits: palettes of 1, 2, 3, 4 or 6, or int8 for 8."
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="DEVICE", help="A device or a chip, such as iphone-17-pro or M1; docs/lint.md lists them."
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Dask's scheduler, such as tcp://host:8786; else this machine does it.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]

AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="NAME=SRC", help="Where an adapter of the recipe lies. Repeatable."),
]
WithAdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", metavar="NAME", help="Answer with this adapter of the bundle, one that is not merged."),
]
BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="A bundle's folder, or its name in dist/.")]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="NAME|KEY=VALUE",
        help="The chat template's name, or a variable for it, as in enable_thinking=false. Repeatable.",
    ),
]
GuessOption = Annotated[
    bool, typer.Option("--draft", help="Speed up answers with the bundle's draft model; the text stays the same.")
]
SystemOption = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system message.")]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", metavar="T", min=0.0, help="Sampling temperature; 0 is greedy.")
]
TopPOption = Annotated[
    float,
    typer.Option(
        "--top-p",
        metavar="P",
        min=0.0,
        max=1.0,
        help="Sample from the most probable tokens that together reach probability P.",
    ),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="N", help="Seed for sampling; the same seed gives the same answer.")
]
TopKOption = Annotated[
    int, typer.Option("--top-k", metavar="N", min=0, help="Sample from the N most probable tokens; 0 means all.")
]
MinPOption = Annotated[
    float,
    typer.Option(
        "--min-p",
        metavar="P",
        min=0.0,
        max=1.0,
        help="Sample from tokens at least P times as probable as the best one.",
    ),
]
PenaltyOption = Annotated[
    float,
    typer.Option(
        "--repetition-penalty", metavar="R", help="Make tokens that occurred before less likely; 1 changes nothing."
    ),
]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before TEXT. Repeatable.")
]


def read_adapters(words: Sequence[str] | None) -> dict[str, str]:
    """By name, where adapters lie. Raises UserError for other words."""
    pairs = [word.partition("=") for word in words or ()]
    UserError.collect(
        f"--adapter {''.join(pair)}: not NAME=SRC, as in style=adapters/style" for pair in pairs if "" in pair
    )
    return {name: src for name, _, src in pairs}


def read_template(words: Sequence[str] | None) -> tuple[str | None, dict[str, Any]]:
    """The name of a chat template, and what it is given: a YAML scalar each. Raises UserError for other words."""
    from coreai_recipes.recipe.yaml_reader import read_yaml

    name, variables, problems = None, {}, []
    for word in words or ():
        key, equals, text = check_text(word, "--template").partition("=")
        if not equals:
            if name is not None:
                problems.append(f"--template {word}: {name} was given too; name one chat template")
            name = word
            continue
        root, wrong = read_yaml(text, "")
        if not key.isidentifier():
            problems.append(f"--template {word}: not KEY=VALUE, as in enable_thinking=false")
        elif wrong or (root is not None and isinstance(root.value, dict | list)):
            problems.append(f"--template {word}: the value must be a word, a number, true or false")
        else:
            variables[key] = "" if root is None else root.value
    UserError.collect(problems)
    return name, variables
