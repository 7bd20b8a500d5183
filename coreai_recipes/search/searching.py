"""`recipe compress`: the rules that lose least within a budget, as a recipe."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from coreai_recipes.calibration.passing import folded_decoder
from coreai_recipes.calibration.threads import threads
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.decoder.filling import bind_weights
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.errors import UserError
from coreai_recipes.manifest.staging import temporary_folder
from coreai_recipes.recipe.schema import Compress, Recipe
from coreai_recipes.search.candidates import CANDIDATES, rule_of
from coreai_recipes.search.choosing import (
    Choice,
    Matrix,
    bits_of,
    in_rules,
    kl_of,
    lowest,
    within_bits,
    within_kl,
)
from coreai_recipes.search.predicting import Kept, Measuring, predict
from coreai_recipes.storage.base import Storage
from coreai_recipes.storage.compression import FLOAT16, Parameters, is_compressible, shown_name
from coreai_recipes.storage.parameters import stored_parameters
from coreai_recipes.verification.loss import logits_of_decoder, measure_loss

Progress = Callable[[str, int, int], None]
Windows = Sequence[Sequence[int]]
DRAFT = "draft."
TABLE = "embedding"


@dataclass(frozen=True)
class Budget:
    """`bits` a weight of weight.bin, or `kl` nats; the other is None."""

    bits: float | None = None
    kl: float | None = None

    @property
    def words(self) -> str:
        """As it is asked for."""
        return f"{self.bits:g}" if self.bits is not None else f"kl={self.kl:g}"


@dataclass(frozen=True)
class Candidate:
    """A choice for the whole model, predicted, and measured on text that no figure of the search was made of."""

    words: str
    choice: Choice
    bits_per_weight: float
    predicted: float
    measured: float

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.words,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "predicted_kl": _digits(self.predicted),
            "measured_kl": _digits(self.measured),
        }


@dataclass(frozen=True)
class Searched:
    """The recipe, what was tried, and every matrix with the form that it gets."""

    recipe: Recipe
    budget: Budget
    matrices: tuple[Matrix, ...]
    taken: Candidate
    tried: tuple[Candidate, ...]
    positions: int
    held_out: int

    def rows(self) -> list[tuple[str, ...]]:
        """A matrix a line: its form and what it is predicted to cost, and what it would with others."""
        found = []
        for each in self.matrices:
            option = self.taken.choice[each.name]
            others = [f"{o.kl:.2g}" if (o := each.option(n)) is not None else "-" for n in range(len(CANDIDATES) - 1)]
            bits = option.bits / each.weights
            found.append((each.name, CANDIDATES[option.form].words, f"{bits:.2f}", f"{option.kl:.2g}", *others))
        return found

    def columns(self) -> tuple[str, ...]:
        return ("matrix", "form", ">bits", ">predicted KL", *(f">at {form.words}" for form in CANDIDATES[:-1]))

    def lines(self) -> list[str]:
        """What was tried, a line each, and which was taken."""
        lines = [
            f"{each.words}: {each.bits_per_weight:.3f} bits per weight, KL predicted {each.predicted:.4g}, measured "
            f"{each.measured:.4g}{' (taken)' if each is self.taken else ''}"
            for each in self.tried
        ]
        return [
            *lines,
            f"predicted from {self.positions:,} tokens, measured on {self.held_out:,} others of the calibration text",
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "budget": {"bits_per_weight": self.budget.bits, "kl": self.budget.kl},
            "taken": self.taken.words,
            "tried": [each.to_json() for each in self.tried],
            "positions": self.positions,
            "held_out": self.held_out,
            "compress": None if self.recipe.compress is None else self.recipe.compress.model_dump(exclude_none=True),
            "matrices": [
                {
                    "name": each.name,
                    "form": CANDIDATES[self.taken.choice[each.name].form].words,
                    "bits_per_weight": round(self.taken.choice[each.name].bits / each.weights, 4),
                    "predicted_kl": _digits(self.taken.choice[each.name].kl),
                    "options": {CANDIDATES[o.form].words: _digits(o.kl) for o in each.options},
                }
                for each in self.matrices
            ],
        }


def search(
    recipe: Recipe,
    checkpoint: Checkpoint,
    windows: Windows,
    budget: Budget,
    progress: Progress | None = None,
    measuring: Measuring | None = None,
) -> Searched:
    """The rules for `recipe` within `budget`. Of the windows of token ids the last fifth, at least one, is held out: on
    it the choice is compared with the uniform one that fits, and the better is taken. `measuring` is `predict`'s.

    Raises UserError for a budget that cannot be met, with the lowest figure that can.
    """
    held = max(1, len(windows) // 5)
    seen, unseen = list(windows[:-held]), list(windows[-held:])
    with temporary_folder() as folder, threads() as own:
        kept = Kept(folder)
        matrices = predict(recipe, checkpoint, seen, kept, own, progress, measuring)
        whole = stored_parameters(build_stacks(recipe))
        draft = _draft_form(budget) if recipe.draft else None
        others = _others(whole, {each.name for each in matrices}, draft)
        chosen = _choose(matrices, budget, others, whole.weights)
        decoder = folded_decoder(recipe)
        originals = bind_weights(decoder, checkpoint)
        theirs = logits_of_decoder(recipe, originals, decoder.form)
        references = [theirs(window) for window in unseen]
        del theirs
        choices = {"by predicted loss": chosen} | _uniform(matrices, bits_of(chosen))
        tried = []
        for done, (words, choice) in enumerate(choices.items(), 1):
            numbers = {
                name: option.form
                for name, option in _parameters(originals, choice).items()
                if CANDIDATES[option.form].storage is not None
            }
            ours = logits_of_decoder(recipe, kept.weights(originals, numbers), decoder.form)
            given = iter(references)
            measured = measure_loss(unseen, ours, lambda _, given=given: next(given)).kl or 0.0  # type: ignore[misc]
            bits = (bits_of(choice) + others) / whole.weights
            tried.append(Candidate(words, choice, bits, kl_of(choice), measured))
            if progress is not None:
                progress("choices measured", done, len(choices))
    taken = min(tried, key=lambda each: each.measured)
    return Searched(
        _with_rules(recipe, matrices, taken.choice, draft),
        budget,
        tuple(matrices),
        taken,
        tuple(tried),
        sum(map(len, seen)),
        sum(map(len, unseen)),
    )


def check_bits(recipe: Recipe, budget: Budget) -> None:
    """Raise UserError for fewer bits than the narrowest form takes, which shapes alone say."""
    if budget.bits is None:
        return
    whole = stored_parameters(build_stacks(recipe))
    narrowest = CANDIDATES[0].storage or FLOAT16
    forms = ((narrowest.fitted(s) if is_compressible(n, s) else FLOAT16, s) for n, s in whole.shapes.items())
    fewest = sum(8 * storage.bytes(shape) for storage, shape in forms) / whole.weights
    if fewest > budget.bits:
        raise UserError(f"--budget {budget.words}: the lowest is {_up(fewest)} bits per weight")


def _choose(matrices: Sequence[Matrix], budget: Budget, others: int, weights: int) -> Choice:
    if budget.bits is not None:
        return within_bits(matrices, budget.bits * weights - others)
    least = kl_of(lowest(matrices, lambda o: o.kl))
    if budget.kl is None or least > budget.kl:
        raise UserError(f"--budget {budget.words}: the lowest that is predicted is kl={least:.2g}, with int8 for all")
    return within_kl(matrices, budget.kl)


def _uniform(matrices: Sequence[Matrix], bits: int) -> dict[str, Choice]:
    """What is said in a line and takes no more bits: a form for all, the table's own or a wider one, small matrices as
    they are or not. Of several the one that is predicted to lose least; none where the narrowest takes more."""
    asked = [number for number, form in enumerate(CANDIDATES) if form.storage is not None]
    float16 = len(CANDIDATES) - 1
    found: dict[str, Choice] = {}
    for number, of_table, keeps_small in product(asked, asked, (True, False)):
        choice: Choice = {}
        for each in matrices:
            small = each.option(float16) if keeps_small else None
            option = small or each.option(of_table if each.name == TABLE else number)
            if option is None:
                break
            choice[each.name] = option
        best = min((kl_of(other) for other in found.values()), default=math.inf)
        if len(choice) == len(matrices) and bits_of(choice) <= bits and kl_of(choice) < best:
            table = "" if of_table == number else f", the table {CANDIDATES[of_table].words}"
            found = {f"{CANDIDATES[number].words} for all{table}": choice}
    return found


def _parameters(names: Mapping[str, Any], choice: Choice) -> dict[str, Any]:
    """The choice by the names of parameters."""
    return {(name if name in names else f"{name}.weight"): option for name, option in choice.items()}


def _with_rules(recipe: Recipe, matrices: Sequence[Matrix], choice: Choice, draft: int | None) -> Recipe:
    default, rules = in_rules(matrices, choice)
    rules += [] if draft in (None, default) else [(f"{DRAFT}*", draft)]
    said = {
        "default": CANDIDATES[default].said,
        "rules": [rule_of(match, CANDIDATES[form], CANDIDATES[default]) for match, form in rules] or None,
    }
    checked = Compress.model_validate(said)
    before = recipe.compress
    update = {"default": checked.default, "rules": checked.rules}
    return recipe.model_copy(update={"compress": checked if before is None else before.model_copy(update=update)})


def _draft_form(budget: Budget) -> int:
    """A draft's matrices are in palettes of 4 bits, or fewer where the budget has: what they lose is tokens that are
    drafted in vain, never one that is given."""
    return max(
        (n for n, form in enumerate(CANDIDATES) if form.said.get("bits", 99) <= min(budget.bits or 4, 4)), default=0
    )


def _others(whole: Parameters, searched: set[str], draft: int | None) -> int:
    """The bits of everything that the search does not decide."""
    found = 0
    for name, shape in whole.shapes.items():
        if shown_name(name) not in searched:
            storage: Storage = FLOAT16
            form = None if draft is None or not name.startswith(DRAFT) else CANDIDATES[draft].storage
            if form is not None and is_compressible(name, shape):
                storage = form.fitted(shape)
            found += 8 * storage.bytes(shape)
    return found


def _up(value: float) -> str:
    """Three digits behind the point, rounded up: a figure that can be asked for."""
    return f"{-(-value * 1000 // 1) / 1000:g}"


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
