"""The commands: what each takes and prints. The work is done elsewhere, and imported when it is needed."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup

from coreai_recipes.errors import UserError
from coreai_recipes.signals import signals
from coreai_recipes.terminal import StreamError, check_text, drawing, read_input, read_line

# typer carries click with it since 0.20, so that click's own class is not what is raised
ClickException: type[Exception] = next(each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException")


class Command(TyperCommand):
    """A command whose help is drawn in colour."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with redirect_stdout(drawing(sys.stdout)):
            super().format_help(ctx, formatter)


class Commands(TyperGroup):
    """All of them; `--plugin` may stand before a command or behind it."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        return super().parse_args(ctx, plugins_first(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (EOFError, OSError) as error:
            raise _Escaped from error

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with redirect_stdout(drawing(sys.stdout)):
            super().format_help(ctx, formatter)


class _Escaped(Exception):
    """Caused by what a command raised and typer would answer in its own way: any EOFError, any pipe that broke."""


def execute(arguments: list[str]) -> int:
    """Run one command line; its exit status. What is wrong with the words themselves is said here, all else raised."""
    # it warns of what it cannot load on this system, which nothing here needs
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        os.getcwd()
    except OSError as error:  # torch ends the process for it, with a message about its own files
        raise UserError(
            f"the working folder is gone ({(error.strerror or str(error)).lower()}): change to another"
        ) from None
    command = typer.main.get_command(app)
    try:
        return command.main(arguments, prog_name="recipe", standalone_mode=False) or 0
    except _Escaped as escaped:
        raise escaped.__cause__ or escaped from None
    except ClickException as error:
        ctx: Any = getattr(error, "ctx", None)
        said = error.format_message()  # type: ignore[attr-defined]
        if said:  # not the help that stands for a command
            path = ctx.command_path if ctx else "recipe"
            print(f"{path}: {said}\n`{path} --help` says what it takes", file=sys.stderr)
        return 2


def plugins_first(arguments: list[str]) -> list[str]:
    """The arguments of a command line, every `--plugin FILE` before the command."""
    plugins: list[str] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            others += [word, *words]
        elif word == "--plugin":
            plugins += [word, *(file for file in (next(words, None),) if file is not None)]
        else:
            (plugins if word.startswith("--plugin=") else others).append(word)
    return [*plugins, *others]


app = typer.Typer(
    name="recipe",
    cls=Commands,
    help="Language models as data: build them for the Apple Neural Engine, proven equal to transformers.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a built-in recipe's name.")]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder that `recipe build` wrote.")]
CheckpointOption = Annotated[
    str | None,
    typer.Option("--checkpoint", metavar="SRC", help="A folder, a GGUF file, or a hub id (ORG/NAME@REVISION)."),
]
DraftOption = Annotated[
    str | None, typer.Option("--draft", metavar="SRC", help="The draft's weights; a recipe may name its own.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a field: export.context=512.")
]
RuntimeOption = Annotated[
    Literal["auto", "evaluator", "coreml"], typer.Option(help="What runs the package: Core ML where it is, else ours.")
]
TemplateOption = Annotated[
    str | None,
    typer.Option("--template", metavar="NAME", help="The chat template of that name, where there are several."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


@app.command("list", cls=Command)
def list_(as_json: JsonOption = False) -> None:
    """The built-in recipes."""
    from coreai_recipes import console
    from coreai_recipes.recipe import list_recipes

    entries = list_recipes()
    if as_json:
        fields = ("name", "family", "parameters", "kinds", "rotary")
        console.print_json([{field: getattr(entry, field) for field in fields} for entry in entries])
        return
    rows = [
        (
            e.name,
            e.family or "-",
            f"{e.parameters / 1e6:,.1f} M" if e.parameters else "-",
            ", ".join(f"{n} {k}" for k, n in e.kinds.items()),
            e.rotary,
        )
        for e in entries
    ]
    console.print_table(("name", "family", ">parameters", "layers", "rotary"), rows)


@app.command(cls=Command)
def show(recipe: RecipeArgument, overrides: SetOption = None) -> None:
    """The recipe after `extends` and `like`, as YAML."""
    from coreai_recipes.recipe import load_resolved
    from coreai_recipes.recipe.yaml_writer import write_yaml

    resolved = load_resolved(recipe, overrides or ())
    for note in resolved.notes:
        print(f"# {note}")
    print(write_yaml(resolved.data), end="")


@app.command(cls=Command)
def validate(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipe files or built-in names.")],
    checkpoint: CheckpointOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every problem of a recipe at once; with a checkpoint its tensors' names and shapes too, without reading a weight,
    and a local one's tokenizer files."""
    from coreai_recipes import console
    from coreai_recipes.recipe import load_resolved
    from coreai_recipes.recipe.importing import check_reference

    results: list[dict[str, Any]] = []
    for source in recipes:
        problems: list[dict[str, str]] = []
        notes: list[str] = []
        try:
            resolved = load_resolved(source)
            check_reference(resolved)
            if checkpoint is not None:
                notes += _check_tensors(resolved.recipe, checkpoint)
        except UserError as error:
            problems += [{"code": c, "message": p} for c, p in zip(error.codes, error.problems, strict=True)]
        results.append({"recipe": source, "valid": not problems, "problems": problems, "notes": notes})
    if as_json:
        console.print_json({"valid": all(result["valid"] for result in results), "recipes": results})
    else:
        for result in results:
            for problem in result["problems"]:
                print(problem["message"], file=sys.stderr)
            if result["valid"]:
                print(f"{result['recipe']}: valid")
            for note in result["notes"]:
                print(f"{result['recipe']}: {note}")
    raise typer.Exit(0 if all(result["valid"] for result in results) else 2)


def _check_tensors(recipe: Any, checkpoint: str) -> list[str]:
    """What `build` would decide against the recipe's word; UserError where a tensor does not fit."""
    from coreai_recipes.checkpoint.open import open_headers
    from coreai_recipes.filling import bind_decoder, settle_head
    from coreai_recipes.model import build_decoder
    from coreai_recipes.recipe.importing.assembling import left_out

    source = open_headers(checkpoint)
    recipe, note = settle_head(recipe, source)
    bind_decoder(build_decoder(recipe), source)
    source.check_tokenizer(recipe.model.vocab_size)
    return [*left_out(source.config), *((note,) if note else ())]


@app.command(cls=Command)
def new(
    src: Annotated[
        str,
        typer.Argument(metavar="SRC", help="A folder, a config.json, a GGUF file, or a hub id (ORG/NAME@REVISION)."),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", metavar="FILE", help="Write it there; else to standard output.")
    ] = None,
    family: Annotated[
        str | None, typer.Option("--as", metavar="FAMILY", help="Read config.json as that family's, whatever it says.")
    ] = None,
    draft: DraftOption = None,
) -> None:
    """A recipe from a checkpoint's config.json and tensor headers; what it cannot express is refused by field name."""
    from coreai_recipes.authoring import new_recipe, write_new

    made = new_recipe(src, family, draft)
    if out is None:
        print(made.text, end="")
    else:
        write_new(out, made)
    for decision in made.decisions:
        print(decision, file=sys.stderr)


@app.command(cls=Command)
def families(as_json: JsonOption = False) -> None:
    """The families of models that `recipe new` reads."""
    from coreai_recipes import console
    from coreai_recipes.authoring import family_rows

    rows = family_rows()
    if as_json:
        console.print_json(rows)
        return
    cells = [
        (row["family"], row["about"], _verified(row["verified"]), ", ".join(row["recipes"]) or "-") for row in rows
    ]
    console.print_table(("family", "what it is", "verified with", "built-in recipes"), cells)
    print("verified: PSNR / SNR_min in dB of a small random model of every mechanism, by its torch and package stages")


def _verified(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    torch, package = (" / ".join(f"{figure:.0f}" for figure in found[stage]) for stage in ("torch", "package"))
    return f"transformers {found['transformers']}: torch {torch}, package {package}"


@app.command(cls=Command)
def diff(
    one: Annotated[str, typer.Argument(metavar="A", help="A recipe, or a checkpoint.")],
    other: Annotated[str, typer.Argument(metavar="B", help="A recipe, or a checkpoint.")],
    as_json: JsonOption = False,
) -> None:
    """Every field in which two recipes, or a recipe and a checkpoint's config.json, describe different models."""
    from coreai_recipes import console
    from coreai_recipes.authoring import compare

    found = compare(one, other, lambda note: print(note, file=sys.stderr))
    if as_json:
        console.print_json([{"field": f.path, "layers": list(f.layers), "a": f.one, "b": f.other} for f in found])
    elif found:
        console.print_table(
            ("field", one, other), [(f.where, console.word(f.one), console.word(f.other)) for f in found]
        )
    else:
        print("the same model")
    raise typer.Exit(1 if found else 0)


@app.command(cls=Command)
def plan(recipe: RecipeArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Bytes, memory, functions and the engine's rules, before any weight is read."""
    from coreai_recipes import console
    from coreai_recipes.plan import make_plan
    from coreai_recipes.recipe import load_recipe

    planned = make_plan(load_recipe(recipe, overrides or ()))
    if as_json:
        console.print_json(planned.to_json())
    else:
        console.print_table(("what", ">bytes", "how"), planned.rows())
        print(f"weight.bin: {console.weights_in_words(planned.weights)}")
        console.print_table(planned.workload_columns(), planned.workload_rows(), title="What a call multiplies")
        console.print_lint(planned.lint)
        console.print_notes(planned.notes)


@app.command("lint", cls=Command)
def lint_(
    target: Annotated[
        str | None,
        typer.Argument(metavar="PACKAGE_BUNDLE_OR_RECIPE", help="An .mlpackage of anyone's, a bundle, or a recipe."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="CHIP", help="Rules that hold for this chip: M1, A19.")
    ] = None,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="ID", help="What a rule wants, who says so, what to do.")
    ] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """The rules of the Neural Engine that a program breaks: place, source, remedy. No weight is read."""
    from coreai_recipes import console
    from coreai_recipes.lint.chips import find_chip
    from coreai_recipes.lint.findings import lint
    from coreai_recipes.lint.rule import find_rule

    chip = None if device is None else find_chip(device)
    rule = None if explain is None else find_rule(explain)
    if target is None:
        if rule is None:
            raise UserError("recipe lint: name a package, a bundle or a recipe, or a rule to --explain")
        if as_json:
            console.print_json(rule.model_dump(mode="json"))
        else:
            console.print_rule(rule)
        return
    subject = _open_subject(target, overrides or ())
    if chip is None and subject.device is not None:
        chip = find_chip(subject.device)
    found = lint(subject, chip, () if rule is None else (rule.id,), subject.allow)
    if as_json:
        console.print_json(found.to_json())
    else:
        if rule is not None:
            console.print_rule(rule)
        console.print_lint(found)
    raise typer.Exit(1 if found.has_errors else 0)


def _open_subject(target: str, overrides: Sequence[str]) -> Any:
    """A saved program or bundle as it lies there, a recipe by its sizes."""
    from coreai_recipes.lint.reading import is_saved, open_subject

    path = Path(check_text(target, "PACKAGE_BUNDLE_OR_RECIPE"))
    if is_saved(path):
        if overrides:
            raise UserError(f"{path}: is saved already: --set changes a recipe")
        subject = open_subject(path)
        if subject.manifest is not None:
            from coreai_recipes.bundle.opened import recipe_of

            export = recipe_of(path).export
            subject.units, subject.device, subject.allow = export.compute_units, export.device, export.allowed
        return subject
    from coreai_recipes.outline import outline
    from coreai_recipes.recipe import load_recipe

    return outline(load_recipe(target, overrides))


@app.command(cls=Command)
def build(
    recipe: RecipeArgument,
    checkpoint: CheckpointOption = None,
    draft: DraftOption = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The bundle is written to DIR/NAME.")] = Path("dist"),
    overrides: SetOption = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Do not prove the package.")] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Convert every fragment anew.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a bundle, and prove it."""
    from coreai_recipes import bundle, console

    try:
        with console.progress_bar() as progress:
            built = bundle.build(
                recipe,
                checkpoint,
                out,
                draft=draft,
                overrides=overrides or (),
                verified=not no_verify,
                cached=not no_cache,
                progress=progress,
            )
    except bundle.VerificationError as failure:
        report = failure.report.to_json()
        if as_json:
            console.print_json({"path": None, "report": report, "notes": list(failure.notes)})
        else:
            console.print_report(report)
            console.print_notes(failure.notes)
        print("the package is not equal to its reference: no bundle was written", file=sys.stderr)
        raise typer.Exit(1) from None
    except bundle.RuleError as failure:
        if as_json:
            console.print_json({"path": None, "notes": list(failure.notes), **failure.lint.to_json()})
        else:
            console.print_lint(failure.lint, ("error",))
            console.print_notes(failure.notes)
        print("rules of the device are broken: no bundle was written (export.allow lets one pass)", file=sys.stderr)
        raise typer.Exit(1) from None
    if as_json:
        facts = {
            "path": str(built.path),
            "bytes": built.bytes,
            "weights": built.weights,
            "seconds": built.seconds,
            "notes": list(built.notes),
        }
        lint = {} if built.lint is None else built.lint.to_json()
        console.print_json({**facts, "manifest": built.manifest, "report": built.report, **lint})
        return
    if not no_verify:
        console.print_report(built.report)
    if built.lint is not None:
        console.print_lint(built.lint, ("error", "warning"))
    console.print_built(built)


@app.command(cls=Command)
def verify(
    target: Annotated[str, typer.Argument(metavar="BUNDLE_OR_RECIPE")],
    checkpoint: CheckpointOption = None,
    draft: DraftOption = None,
    stage: Annotated[list[str] | None, typer.Option(help="Run this stage only; may be given again.")] = None,
    require: Annotated[list[str] | None, typer.Option(help="Fail when this stage is skipped.")] = None,
    runtime: Annotated[
        Literal["evaluator", "coreml"], typer.Option(help="What runs the package: coreml on macOS.")
    ] = "evaluator",
    random: Annotated[
        bool,
        typer.Option("--random", help="Of a recipe: with random weights, one layer of each kind where all are many."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Prove a bundle, or a recipe before it is built, against transformers."""
    from coreai_recipes import bundle, console

    with console.progress_bar() as progress:
        report = bundle.verify(
            target,
            checkpoint,
            draft=draft,
            stages=stage or None,
            require=require or (),
            runtime=runtime,
            random=random,
            progress=progress,
        )
    if as_json:
        console.print_json(report.to_json())
    else:
        console.print_report(report.to_json())
    raise typer.Exit(0 if report.passed else 1)


@app.command(cls=Command)
def audit(
    targets: Annotated[list[str], typer.Argument(metavar="BUNDLE|RECIPE...")],
    checkpoint: CheckpointOption = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A prompt a line, or .json: texts and conversations.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="HABIT", help="Leave out a habit of the engine; may be given again.")
    ] = None,
    apply: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the recipe there, with the scale that was found.")
    ] = None,
    no_save: Annotated[bool, typer.Option("--no-save", help="Leave a bundle as it is: no audit.json.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The range of every value of a program over several prompts, against what float16 and the engine can hold."""
    from coreai_recipes import console
    from coreai_recipes.audit.command import run_audits

    with console.progress_bar() as progress:
        audits = run_audits(targets, checkpoint, prompts, without or (), apply, not no_save, progress)
    if as_json:
        console.print_json({"audits": [audited.to_json() for audited in audits]})
        return
    for audited in audits:
        console.print_table(("what", "where", ">largest", ">limit", ">margin"), audited.rows(), title=audited.title())
        console.print_notes(audited.lines())


@app.command(cls=Command)
def run(
    bundle: BundleArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="`-` reads it from standard input.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="End after this many tokens.")] = 256,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system message.")] = None,
    draft: Annotated[
        bool, typer.Option("--draft", help="Let the bundle's draft guess ahead: faster, same text.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template.")] = False,
    template: TemplateOption = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    seed: Annotated[int | None, typer.Option()] = None,
    runtime: RuntimeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Answer a prompt, streaming."""
    from coreai_recipes import console
    from coreai_recipes.bundle import Bundle
    from coreai_recipes.generate import Sampler, answer, open_model

    text = read_input() if prompt == "-" else check_text(prompt, "PROMPT")
    system = system and check_text(system, "--system")
    sampler = Sampler(temperature, top_p, seed)
    opened = Bundle.open(bundle)
    model = open_model(opened.path, opened.manifest, runtime)
    _say_unverified(opened)
    result = answer(
        model,
        text,
        system=system,
        raw=raw,
        template=template,
        max_tokens=max_tokens,
        sampler=sampler,
        draft=draft,
    )
    for piece in result:
        if not as_json:
            print(piece, end="", flush=True)
    if as_json:
        console.print_json(result.to_json())
        return
    print()
    print(result.summary(), file=sys.stderr)


@app.command(cls=Command)
def chat(
    bundle: BundleArgument,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system message.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="End an answer after this many tokens.")] = 512,
    template: TemplateOption = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    seed: Annotated[int | None, typer.Option()] = None,
    runtime: RuntimeOption = "auto",
) -> None:
    """Talk with the model; the cached conversation is read once. `/quit` ends it."""
    from coreai_recipes.bundle import Bundle
    from coreai_recipes.generate import Chat, Sampler, open_model

    system = system and check_text(system, "--system")
    sampler = Sampler(temperature, top_p, seed)
    opened = Bundle.open(bundle)
    model = open_model(opened.path, opened.manifest, runtime)
    _say_unverified(opened)
    talk = Chat(model, system=system, sampler=sampler, max_tokens=max_tokens, template=template)
    while True:
        try:
            line = read_line("> ")
        except StreamError:
            raise
        except UserError as error:  # a line that is not text
            print(error, file=sys.stderr)
            continue
        if not line or line.strip() == "/quit":
            return
        if line.strip():
            _reply(talk, line.removesuffix("\n"))


def _reply(talk: Any, line: str) -> None:
    """One turn; what is wrong with it, or Ctrl-C, ends the turn and not the chat."""
    try:
        result = talk.reply(line)
    except UserError as error:
        print(error, file=sys.stderr)
        return
    try:
        for piece in result:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        signals.forgive()
        result.close()
    print()
    print(result.summary(), file=sys.stderr)


@app.command(cls=Command)
def schema() -> None:
    """The JSON Schema of recipes, for editors."""
    from coreai_recipes.recipe.editor_schema import schema_text

    print(schema_text(), end="")


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    plugins: Annotated[
        list[Path] | None,
        typer.Option("--plugin", metavar="FILE", help="Kinds of your own; may be given again, also after a command."),
    ] = None,
) -> None:
    for file in plugins or ():
        from coreai_recipes.recipe.plugins import load_plugin

        load_plugin(file)
    if version:
        from importlib.metadata import version as installed_version

        print(installed_version("coreai-recipes"))
        raise typer.Exit


def _say_unverified(bundle: Any) -> None:
    if not bundle.report["stages"]:
        print("not verified", file=sys.stderr)
