"""The stages run in order, and how their verdicts become a report."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.errors import UserError
from coreai_recipes.recipe.importing.choosing import taken_as
from coreai_recipes.recipe.schema import MODEL, Recipe
from coreai_recipes.running.coreml import check_coreml
from coreai_recipes.verification.memory import GIGABYTE, free_bytes
from coreai_recipes.verification.report import Report, StageResult, skip
from coreai_recipes.verification.stages import STAGES, Stage, usual_stages
from coreai_recipes.verification.subject import Progress, Runtime, Subject

if TYPE_CHECKING:
    from coreai_recipes.checkpoint.adapted import Unmerged

SMALL_BYTES = 128 << 20


def run_stages(
    recipe: Recipe,
    sources: Mapping[str, Checkpoint] | Checkpoint | None,
    package: Path | None,
    *,
    stages: Sequence[str] | None = None,
    require: Sequence[str] = (),
    tokens: Sequence[int] | None = None,
    runtime: Runtime = "evaluator",
    on_progress: Progress | None = None,
    missing: Mapping[str, str] | None = None,
    all_lengths: bool = False,
    adapters: "Mapping[str, Unmerged] | None" = None,
    no_adapters: str | None = None,
) -> Report:
    """Run `stages` (the usual ones by default, and those in `require`) in their order; what cannot run is skipped and
    says why.

    `sources` are the checkpoints by the stack that they fill, and `missing` says why a stack has none; a checkpoint
    alone fills the model. `adapters` are those that are not merged, and `no_adapters` says why there are none. A stage
    in `require` that is skipped is a failure. `tokens` replaces the fixed English passage.
    `on_progress(stage, done, total)` is called as a stage goes on. With `all_lengths` what states of recurrences lose
    after 500 and 2,000 tokens is measured in models of any size.
    Raises UserError for a stage that there is not, and for a runtime that is not on this machine.
    """
    check_names((*(stages or ()), *require))
    named = usual_stages(recipe) if stages is None else stages
    wanted = [name for name in STAGES if name in named or name in require]
    if runtime == "coreml":
        check_coreml()
    given = None if tokens is None else check_tokens(tokens, recipe)
    if not isinstance(sources, Mapping):
        sources = {} if sources is None else {MODEL: sources}
    subject = Subject(
        recipe,
        sources,
        package,
        given,
        runtime,
        on_progress,
        missing or {},
        all_lengths=all_lengths,
        adapters=adapters or {},
        no_adapters=no_adapters,
    )
    return run_on(subject, wanted, require)


def run_on(subject: Subject, wanted: Sequence[str], require: Sequence[str] = ()) -> Report:
    """Run the stages `wanted` on what may have been through others already."""
    from coreai_recipes.verification.answers import Asked, asked_beside

    results = []

    def asks() -> list[Asked]:
        """What the package will be asked, where there is something to compute meanwhile."""
        computes = any(STAGES[name].needs_reference for name in wanted)
        return [each for name in wanted for each in STAGES[name].asks(subject)] if computes else []

    with threads_for(subject.float32_bytes), asked_beside(subject, asks):
        for name in wanted:
            result = run_stage(name, subject)
            if result.skipped and name in require:
                result = StageResult(name, False, detail=result.detail)
            results.append(result)
    return Report(tuple(results))


@contextmanager
def threads_for(float32_bytes: int) -> Iterator[None]:
    """One thread for a small model: its operations are too short to be shared, and waiting threads spin.

    On two busy cores gemma4-tiny's stages took ten times the processor seconds with two threads.
    """
    import torch

    threads = torch.get_num_threads()
    if float32_bytes < SMALL_BYTES:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_stage(name: str, subject: Subject) -> StageResult:
    """The stage of that name. It is skipped when it cannot run, or transformers' model is not as those that we know."""
    stage = STAGES[name]
    reason = stage.why_not(subject)
    if reason:
        return skip(name, reason)
    from coreai_recipes.verification.reference_rotary import UnknownStructure

    if stage.reads_layers:
        check_memory(subject)
    subject.progress(name, 0, 1)  # it is on from here, whatever it tells of its way
    try:
        result = stage.run(subject)
    except UnknownStructure as unknown:
        return skip(name, f"not compared: {unknown}")
    if result.skipped is not None:
        return result
    note = read_as(subject) if stage.needs_reference else None
    made_of = reference_of(stage, subject)
    judge = {"runtime": subject.runtime} if subject.runtime == "coreai" else {}
    detail = {**judge, **result.detail, "reference": made_of, **({"config": note} if note else {})}
    if result.passed is False:
        from coreai_recipes.verification.remedies import find_remedies

        detail["remedies"] = [remedy.to_json() for remedy in find_remedies(result, subject)]
    return replace(result, detail=detail)


def reference_of(stage: Stage, subject: Subject) -> dict[str, Any]:
    """What a stage compares with, and what that was made of."""
    from coreai_recipes.verification.reference_config import (
        BY_EVALUATOR,
        BY_PEFT,
        OF_DRAFT,
        OF_TOKENIZER,
        OUR_MODULE,
        describe_reference,
    )

    if stage.name == "tokenizer":
        return OF_TOKENIZER
    if stage.name == "decompressed":
        return BY_EVALUATOR
    if not stage.needs_reference and subject.recipe.reference is not None:
        return OUR_MODULE
    made_of = describe_reference(subject.recipe, subject.weights)
    if stage.needs_adapters:
        return {**made_of, "adapters": BY_PEFT}
    return {**made_of, "draft": OF_DRAFT} if stage.name == "draft" else made_of


def read_as(subject: Subject) -> str | None:
    """What config.json says of its model_type, where the recipe names another, by which it was read (`--as`)."""
    from coreai_recipes.checkpoint.adapted import without_adapters
    from coreai_recipes.checkpoint.gguf import GGUFCheckpoint

    reference, settings = subject.recipe.reference, subject.weights.config
    if reference is None:
        return None
    text = settings.get("text_config")
    said = {taken_as(settings), text.get("model_type") if isinstance(text, dict) else None}
    if reference.model_type in said or isinstance(without_adapters(subject.weights), GGUFCheckpoint):
        return None
    return f"config.json says model_type {settings.get('model_type')}, read as {reference.model_type}'s"


def check_memory(subject: Subject) -> None:
    """Raise UserError where a single layer is more than there is room for, before anything is read."""
    needed, free = subject.streamed_bytes, free_bytes()
    if needed > free:
        raise UserError(
            f"{subject.recipe.name}: its largest layer and its logits take {needed / GIGABYTE:.1f} GB in float32, ours "
            f"beside transformers'; {free / GIGABYTE:.1f} GB are free"
        )


def check_names(names: Sequence[str]) -> None:
    """Raise UserError for stages that there are not."""
    UserError.collect(
        f"there is no stage {name}; the stages are {', '.join(STAGES)}"
        for name in dict.fromkeys(names)
        if name not in STAGES
    )


def check_tokens(tokens: Sequence[int], recipe: Recipe) -> tuple[int, ...]:
    """The tokens as the stages take them. Raises UserError when there are none, too many, or one that is unknown."""
    context, vocab_size = recipe.export.context, recipe.model.vocab_size
    if not 0 < len(tokens) <= context:
        raise UserError(f"{len(tokens)} tokens were given; 1 to {context} are required, the recipe's context")
    wrong = [token for token in tokens if not 0 <= token < vocab_size]
    if wrong:
        raise UserError(f"the token {wrong[0]} is not in the vocabulary of {vocab_size}")
    return tuple(tokens)
