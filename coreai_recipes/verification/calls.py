"""Calls of a package that together go through a sequence: prefill whole, prefill padded, decode, score."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from coreai_recipes.hosts.logits import choices
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.running.buffer import RowBuffer
from coreai_recipes.running.program import SavedProgram
from coreai_recipes.storage.chunks import buffers_of_packages

PADDING_SEED = 11
Note = Callable[[str, str, Tensor], None]
LAYER = re.compile(r"layer_(\d+)_")  # how the linker begins the names of a layer's values


@dataclass(frozen=True)
class FunctionCall:
    """`function` on the `count` tokens from `position` on; what is beyond them up to `queries` is padding."""

    function: str
    position: int
    count: int
    queries: int


@dataclass(frozen=True)
class CallResult:
    """What a call gave: logits (rows, V), the first of them that of position `first_row`, and watched values by name.

    `ids` (rows, 1) are the tokens that the package chose itself, where it does.

    A watched value is (rows, features): the call's real tokens, or the last of them where only that one was computed.
    `experts` are the numbers of those that each mixture's layer took, (rows, top), by layer.
    """

    call: FunctionCall
    first_row: int
    logits: Tensor
    watched: dict[str, Tensor]
    experts: dict[int, Tensor] = field(default_factory=dict)
    ids: Tensor | None = None

    @property
    def wrong_ids(self) -> int:
        """How many of the chosen tokens are not the lowest of the best."""
        return 0 if self.ids is None else int((self.ids[:, 0] != _lowest_best(self.logits)).sum())


def plan_calls(queries: Mapping[str, int], length: int, decode_steps: int, padded: bool = True) -> list[FunctionCall]:
    """Whole chunks of prefill, one with padding where there may be, then decode up to `length`, and a score that steps
    back.

    There are at least `decode_steps` decode steps, or a quarter of a short sequence.
    """
    size = queries["prefill"]
    steps = min(decode_steps, max(1, length // 4))
    rest = min(size // 2 + 1, length - steps) if padded else 0
    whole = (length - steps - rest) // size
    # what the whole chunks leave over is padded; a remainder as long as a chunk goes to decode
    rest = min(length - steps - whole * size, size - 1) if padded else 0
    calls = [FunctionCall("prefill", index * size, size, size) for index in range(whole)]
    if rest:
        calls.append(FunctionCall("prefill", whole * size, rest, size))
    calls += [FunctionCall("decode", position, 1, 1) for position in range(whole * size + rest, length)]
    if "score" in queries:
        # N - 1 positions back is as far as its contract goes, and a call before it began there
        begins = min(call.position for call in calls if call.position >= length - (queries["score"] - 1))
        calls.append(FunctionCall("score", begins, length - begins, queries["score"]))
    return calls


def in_turn(program: SavedProgram, calls: Sequence[FunctionCall]) -> Iterator[FunctionCall]:
    """The calls in their order, each when the program carries what was carried at its position. A program with a buffer
    goes back by itself."""
    carried: dict[int, Mapping[str, Tensor]] = {}
    for call in calls:
        if not program.buffered:
            program.restore(carried.setdefault(call.position, program.carried), call.position)
        yield call


def row_buffer(recipe: Recipe) -> RowBuffer | None:
    """An empty one of the recipe's packages, which leaves room for a `score`; None where they keep no rows."""
    rows = {name: spec.shape for name, spec in buffers_of_packages(recipe).items()}
    return RowBuffer(rows, (recipe.export.functions.score or 1) - 1) if rows else None


def describe_calls(calls: Sequence[FunctionCall]) -> str:
    """`prefill 64, prefill 37 of 64, 99 x decode, score 4 of 5 from position 196`."""
    words = [
        f"{c.function} {c.count}{f' of {c.queries}' if c.count < c.queries else ''}"
        f"{f' from position {c.position}' if c.function == 'score' else ''}"
        for c in calls
        if c.function != "decode"
    ]
    steps = sum(c.function == "decode" for c in calls)
    words.insert(sum(c.function == "prefill" for c in calls), f"{steps} x decode")
    return ", ".join(words)


def run_call(
    program: SavedProgram,
    tokens: Sequence[int],
    call: FunctionCall,
    watch_names: set[str],
    recipe: Recipe,
    note: Note | None = None,
) -> CallResult:
    """One call on `tokens`, the whole sequence. Padding is other tokens, never zeros: it must leave no trace.

    `note` is told each float value by the name that the function has in the package and its own, without the padding
    where it lies on the last axis.
    """
    generator = torch.Generator().manual_seed(PADDING_SEED + call.position)
    real = torch.tensor([tokens[call.position : call.position + call.count]], dtype=torch.int32)
    places = torch.randint(len(tokens), (1, call.queries - call.count), generator=generator)
    padding = torch.tensor(list(tokens), dtype=torch.int32)[places]
    inputs = {
        "input_ids": torch.cat((real, padding), 1),
        "position": torch.tensor([call.position], dtype=torch.int32),
    }
    if call.function != "decode":
        inputs["count"] = torch.tensor([call.count], dtype=torch.int32)
    watched: dict[str, Tensor] = {}
    experts: dict[int, Tensor] = {}
    called = recipe.export.name_of(call.function)

    def watch(name: str, value: Tensor, operation: str) -> None:
        if note is not None and value.is_floating_point():
            note(called, name, value[..., : call.count] if value.shape[-1:] == (call.queries,) else value)
        layer = LAYER.match(name) if operation == "topk" else None
        if layer and value.dim() == 4 and not value.is_floating_point():
            experts[int(layer[1])] = _by_position(value)[: call.count].long()
        if name in watch_names:
            watched[name] = _by_position(value.float())[: call.count].clone()

    is_watched = bool(watch_names) or note is not None
    outputs = run_and_show_logits(program, call.function, inputs, recipe, watch if is_watched else None)
    ids = choices(outputs, recipe.model.vocab_size) if "ids" in outputs else None
    logits = choices({"logits": outputs["logits"]}, recipe.model.vocab_size).float()  # (1 or N, V)
    if call.function == "score":
        ids = None if ids is None else ids[: call.count]
        return CallResult(call, call.position, logits[: call.count], watched, experts, ids)
    return CallResult(call, call.position + call.count - 1, logits, watched, experts, ids)


def run_and_show_logits(
    program: SavedProgram,
    function: str,
    inputs: Mapping[str, Tensor],
    recipe: Recipe,
    watch: Callable[[str, Tensor, str], None] | None = None,
) -> dict[str, Tensor]:
    """A call's outputs, and its logits, which are a value inside where the package chooses the token itself."""
    if recipe.export.outputs == "logits":
        return program.call(function, inputs, watch)
    inside: dict[str, Tensor] = {}

    def look(name: str, value: Tensor, operation: str) -> None:
        if name == "logits":
            inside[name] = value.clone()
        if watch is not None:
            watch(name, value, operation)

    return {**program.call(function, inputs, look), **inside}


def _lowest_best(logits: Tensor) -> Tensor:
    """Of each row (V,): torch does not say which of equal ones its argmax takes."""
    return (logits == logits.amax(1, keepdim=True)).to(torch.uint8).argmax(1)


def _by_position(value: Tensor) -> Tensor:
    """(N, C, 1, S) -> (S, N * C)."""
    return value.permute(3, 0, 1, 2).reshape(value.shape[3], -1)
