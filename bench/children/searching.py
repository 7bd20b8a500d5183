"""The search's matrices on a judge's texts: a form for all, and its choice for a number of bits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bench.children.judging import Judge
from coreai_recipes.search.candidates import CANDIDATES
from coreai_recipes.search.choosing import Choice, Matrix, bits_of, kl_of, within_bits
from coreai_recipes.search.predicting import Kept

TABLE = "embedding"


def of_layers(matrices: Sequence[Matrix], table: bool = False) -> list[Matrix]:
    """Those of the layers, and with `table` that one, to be compressed, small ones too."""
    return [
        replace(each, options=tuple(o for o in each.options if CANDIDATES[o.form].storage is not None))
        for each in matrices
        if each.name.startswith("layers.") or (table and each.name == TABLE)
    ]


def of_uniform(matrices: Sequence[Matrix], kept: Kept, judge: Judge) -> dict[str, Any]:
    """By form: what it takes and loses for all."""
    return {
        form.words: measured(uniform(matrices, number), matrices, kept, judge)
        for number, form in enumerate(CANDIDATES)
        if form.storage is not None
    }


def of_search(matrices: Sequence[Matrix], kept: Kept, judge: Judge, budgets: Sequence[float]) -> dict[str, Any]:
    """By budget, in bits a weight."""
    weights = sum(each.weights for each in matrices)
    return {f"{bits:g}": measured(within_bits(matrices, bits * weights), matrices, kept, judge) for bits in budgets}


def measured(choice: Choice, matrices: Sequence[Matrix], kept: Kept, judge: Judge) -> dict[str, Any]:
    """Bits a weight of these matrices, the loss and what it was predicted to be."""
    names = judge.originals
    forms = {name if name in names else f"{name}.weight": option.form for name, option in choice.items()}
    weights = sum(each.weights for each in matrices)
    return {"bits": bits_of(choice) / weights, **judge(kept.weights({}, forms)), "predicted": kl_of(choice)}


def uniform(matrices: Sequence[Matrix], number: int, table: int | None = None) -> Choice:
    """One form for all, and for the table another where one is given."""
    return {
        each.name: next(o for o in each.options if o.form == (table if table and each.name == TABLE else number))
        for each in matrices
    }
