"""What a cell will cost, from its recipe alone: bytes, memory, time, and the bound on its tokens a second."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coreai_recipes.decoder.model import Decoder, count_parameters, exported_form
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.lint.devices import Device, find_device
from coreai_recipes.planning.bounds import decode_weights, most_tokens_per_second
from coreai_recipes.planning.choosing import choose
from coreai_recipes.recipe import Recipe
from coreai_recipes.storage.matching import load_held
from coreai_recipes.storage.parameters import raw_tables, stored_parameters
from coreai_recipes.storage.source import without_source
from coreai_recipes.verification.memory import machine_bytes
from coreai_recipes.verification.random_checkpoint import AFFORDABLE_VOCABULARY, make_affordable
from coreai_recipes.verification.subject import Subject
from coreai_recipes.zoo.cells import Cell
from coreai_recipes.zoo.rows import PLAN, Row, row
from coreai_recipes.zoo.schema import RANDOM

PROCESS = 550 << 20  # with torch, transformers and coremltools: 0.50 GB for tiny-llama, of which it takes little
WHOLE_MODELS = 3  # ours, transformers' and what they compute: as `verification.memory.fits` has it
START_SECONDS = 8.0  # of a first build in a process: imports, conversion, stages of a tiny model
SECONDS_PER_WEIGHT = {False: 4.5e-7, True: 6.5e-7}  # by whether it is compressed: smollm2-135m on one slow core


@dataclass(frozen=True)
class Estimate:
    """`weights` in number and `bytes` of the whole recipe; `written` those of its bundle, a part of it where weights
    are random and many. `memory` in bytes and `seconds` of a build with its proof are rough.

    `tokens_per_second` is a bound: what the rate allows at which the device reads weights, None where nobody has
    measured that or no device is named.
    """

    weights: int
    bytes: int
    written: int
    bits_per_weight: float
    tokens_per_second: float | None
    memory: int
    seconds: float


def estimate(cell: Cell, total_memory: int | None = None) -> Estimate:
    """What a cell costs where builds have `total_memory` bytes; by default all of this machine's.

    Raises UserError for what cannot be built.
    """
    recipe = _recipe(cell)
    stacks = build_stacks(recipe, exported_form(recipe))
    (decoder,) = (stack for stack in stacks if isinstance(stack, Decoder))
    stored = stored_parameters(stacks)
    device = None if cell.device is None else find_device(cell.device)
    built = make_affordable(recipe, AFFORDABLE_VOCABULARY)[0] if cell.checkpoint == RANDOM else recipe
    rate = SECONDS_PER_WEIGHT[stored.bits_per_weight < 15]
    return Estimate(
        weights=stored.weights,
        bytes=_bytes_of(stacks),
        written=_bytes_of(stacks if built is recipe else build_stacks(built, exported_form(built))),
        bits_per_weight=round(stored.bits_per_weight, 4),
        tokens_per_second=None if device is None else _tokens_per_second(decoder, device),
        memory=memory_of(built, machine_bytes() if total_memory is None else total_memory),
        seconds=START_SECONDS + rate * count_parameters(built),
    )


def _bytes_of(stacks: Sequence[StackModule]) -> int:
    """Of all weights, those of a host's tables among them."""
    return stored_parameters(stacks).bytes + raw_tables(stacks).bytes


def _recipe(cell: Cell) -> Recipe:
    """As it is built, but for what a checkpoint decides, and layouts: they take no bytes, and time to be chosen."""
    recipe = without_source(load_held(cell.source, cell.overrides, cell.build_bits))
    if cell.device is None or cell.bits is not None or recipe.compress is not None:
        return recipe
    return choose(recipe, find_device(cell.device), cell.overrides)[0]


def _tokens_per_second(decoder: Decoder, device: Device) -> float | None:
    found = most_tokens_per_second(decode_weights(decoder), device)
    return None if found is None else round(found, 2)


def memory_of(recipe: Recipe, total: int) -> int:
    """Bytes that a build and its proof may take: the whole model in float32 where a proof holds it, which is in a third
    of the memory that there is; else the largest layer, the table and the logits, ours beside transformers'."""
    whole = 4 * count_parameters(recipe)
    streamed = Subject(recipe, {}, None).streamed_bytes
    if WHOLE_MODELS * whole <= total:
        return PROCESS + streamed + WHOLE_MODELS * whole
    return PROCESS + 2 * streamed + 4 * recipe.model.vocab_size * recipe.model.hidden_size


def plan_row(cell: Cell, key: str) -> Row:
    """The row of what is known before anything is built."""
    found = estimate(cell)
    return row(
        cell,
        key,
        PLAN,
        weights=found.weights,
        bytes=found.bytes,
        bits_per_weight=found.bits_per_weight,
        tokens_per_second=found.tokens_per_second,
    )


def total_seconds(estimates: Mapping[Cell, Estimate], workers: int) -> float:
    """Of all cells on so many workers, the longest first: each is given to the worker that is free first."""
    busy = [0.0] * max(1, workers)
    for seconds in sorted((each.seconds for each in estimates.values()), reverse=True):
        busy[busy.index(min(busy))] += seconds
    return max(busy)
