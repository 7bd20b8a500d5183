"""What a device makes of a recipe: the bytes and operations of a call, what must fit where, and the bounds on its time
that follow from what was measured of the device. Where nothing was measured there is no bound."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coreai_recipes.decoder.model import Decoder, exported_form
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.decoder.states import states_of
from coreai_recipes.lint.devices import Device
from coreai_recipes.lint.program import Program
from coreai_recipes.lint.reading import LintInput
from coreai_recipes.lint.rule import rules
from coreai_recipes.planning.footprint import EXPERT_STACKS
from coreai_recipes.planning.outline import outline_of
from coreai_recipes.planning.workload import Workload, count_workloads
from coreai_recipes.primitives.experts import Mixture
from coreai_recipes.recipe import Recipe
from coreai_recipes.storage.parameters import EMBEDDING, raw_tables, stored_parameters

PROMPTS = (16, 64, 256, 1024)  # tokens of the prompts whose first answer is bounded
SIZE_RULE, OVER = "pkg-size", "bytes_over"
TABLE_RULE, TABLE_OVER = "embed-in", "table_over"


@dataclass(frozen=True)
class Bound:
    """The least seconds until the first token of an answer to a prompt; `by` is what takes them."""

    prompt: int
    seconds: float
    by: str


@dataclass(frozen=True)
class Fit:
    """A recipe on a device.

    Attributes:
        token_weights: bytes of weights that a call of `decode` reads: of experts the chosen ones, of a table one row.
        token_states: bytes of states that it reads.
        token_flops: what it multiplies, a multiply-add being two.
        largest: the largest operand or result of an operation, in bytes as the engine pads them, and its place.
        states: how many a function declares, and the bytes of a session.
        packages: bytes of weights by file, and what a file may have, None where no limit is known.
        resident: bytes of weights, host's tables and states together.
        most_tokens_per_second, first_token: bounds; None and empty without a measured rate.
        unmeasured: what nobody has measured of the device.
    """

    device: str
    name: str
    chip: str
    token_weights: int
    token_states: int
    token_flops: int
    largest: dict[str, Any]
    working_set: int | None
    states: dict[str, int]
    packages: dict[str, int]
    file_limit: int | None
    resident: int
    memory: tuple[int, ...]
    streaming: tuple[float, float] | None
    teraflops: tuple[float, float] | None
    prefill: str | None
    most_tokens_per_second: float | None
    first_token: tuple[Bound, ...]
    unmeasured: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fit(stacks: Sequence[StackModule], workloads: Sequence[Workload], outline: LintInput, device: Device) -> Fit:
    """How `stacks` fit on a device.

    A token reads the weights once, so that it takes at least bytes / rate; so does each call of prefill, which takes
    besides at least flops / rate. Both rates are the highest that was seen.
    """
    (decoder,) = (stack for stack in stacks if isinstance(stack, Decoder))
    stored, programs = stored_parameters(stacks), outline.programs
    flops = {name: sum(w.flops.get(name, 0) for w in workloads) for name in ("decode", "prefill")}
    read = decode_weights(decoder)
    states, kept = decoder.front.state_bytes, sum(spec.bytes for spec in decoder.front.states.values())
    streaming, teraflops = device.streaming, device.teraflops
    return Fit(
        device=device.id,
        name=device.name,
        chip=device.chip.id,
        token_weights=read,
        token_states=states,
        token_flops=flops["decode"],
        largest=_largest(programs),
        working_set=device.chip.working_set,
        states={"count": len(states_of(decoder.front.states)), "bytes": kept},
        packages=dict(outline.files),
        file_limit=file_limit(device),
        resident=stored.bytes + raw_tables(stacks).bytes + kept,
        memory=device.memory,
        streaming=streaming,
        teraflops=teraflops,
        prefill=device.chip.prefill,
        most_tokens_per_second=most_tokens_per_second(read, device),
        first_token=tuple(_first_tokens(decoder, device, flops["prefill"])),
        unmeasured=tuple(_unmeasured(device)),
    )


def fit_of(recipe: Recipe, device: Device) -> Fit:
    """As `fit`, of a recipe. Raises RecipeError for what cannot be built."""
    stacks = build_stacks(recipe, exported_form(recipe))
    return fit(stacks, count_workloads(stacks), outline_of(stacks), device)


def file_limit(device: Device) -> int | None:
    """The bytes that a file of weights may have by the rule about them, None where it does not hold."""
    return _least(SIZE_RULE, OVER, device)


def table_limit(device: Device) -> int | None:
    """The bytes from which a host should keep an embedding table, None where no rule says so."""
    return _least(TABLE_RULE, TABLE_OVER, device)


def _least(rule: str, predicate: str, device: Device) -> int | None:
    cases = [case for case, held in rules()[rule].settled() if held is None or device.chip.id in held]
    return min((limit for case in cases if (limit := int(case.when[predicate])) > 0), default=None)


def most_tokens_per_second(read: int, device: Device) -> float | None:
    """What the highest rate that was seen allows where a token reads so many bytes; None where no rate was measured."""
    return None if device.streaming is None else device.streaming[1] * 1e9 / read


def weights_read(decoder: Decoder, tokens: int) -> int:
    """Bytes of weights that a call for so many tokens reads: of a table its rows, of experts the chosen ones."""
    stored, vocab_size = stored_parameters([decoder]), decoder.recipe.model.vocab_size
    left = 0
    if not decoder.recipe.model.head.tied:
        table = stored.below(EMBEDDING)
        left += table.bytes - table.bytes * min(tokens, vocab_size) // vocab_size
    for index, layer in enumerate(decoder.stack):
        for experts in (part for part in layer.modules() if isinstance(part, Mixture)):
            if experts.gathers(tokens):
                of_all = stored.below(*(f"layers.{index}.experts.{leaf}" for leaf in EXPERT_STACKS))
                unread = max(0, experts.num_experts - experts.top * tokens)
                left += of_all.bytes * unread // experts.num_experts
    return stored.bytes - left


def decode_weights(decoder: Decoder) -> int:
    """Bytes of weights that a call for one token reads."""
    return weights_read(decoder, 1)


def prefill_weights(decoder: Decoder) -> int:
    """Bytes of weights that a call for several tokens reads: all, but for a table's rows."""
    stored = stored_parameters([decoder])
    return stored.bytes - (0 if decoder.recipe.model.head.tied else stored.below(EMBEDDING).bytes)


def first_token_seconds(weights: int, flops: int, width: int, prompt: int, device: Device) -> tuple[float, str] | None:
    """The least seconds of the calls that a prompt takes, and what takes them; None where no rate was measured."""
    if device.streaming is None:
        return None
    calls = -(-prompt // width)
    streamed = weights / (device.streaming[1] * 1e9)
    multiplied = 0.0 if device.teraflops is None else flops / (device.teraflops[1] * 1e12)
    by = "weights read" if streamed >= multiplied else "products"
    return calls * max(streamed, multiplied), f"{calls} {'call' if calls == 1 else 'calls'} of {width}, {by}"


def _first_tokens(decoder: Decoder, device: Device, flops: int) -> Iterator[Bound]:
    width, weights = decoder.recipe.export.functions.prefill, prefill_weights(decoder)
    for prompt in PROMPTS:
        found = first_token_seconds(weights, flops, width, prompt, device)
        if found is not None and prompt <= decoder.recipe.export.context:
            yield Bound(prompt, *found)


def _largest(programs: Sequence[Program]) -> dict[str, Any]:
    """Of what a call computes or is given, weights and states aside, which are streamed."""
    found = (
        (value.padded_bytes, function.name, operation.name, value.shape)
        for program in programs
        for function in program.functions
        for operation in function.operations
        for value in (*operation.values(), *operation.results)
        if not value.constant and not value.is_state and operation.type != "slice_update"
    )
    size, function, place, shape = max(found, key=lambda each: each[0])
    return {"bytes": size, "function": function, "place": place, "shape": list(shape)}


def _unmeasured(device: Device) -> Iterator[str]:
    if device.streaming is None:
        yield "the rate at which its engine reads weights: no bound on tokens/s"
    if device.teraflops is None:
        yield "how fast its engine multiplies: time to first token is bounded by the weights alone"
    if device.chip.working_set is None:
        yield "its working set"
    if not device.memory:
        yield "its memory"
