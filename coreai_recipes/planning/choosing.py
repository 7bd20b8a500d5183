"""What `--device` chooses of a recipe, and why: the form of its weights, the layouts and states, a prefill's tokens.

The rules choose. Each field is tried with every value that it can have, on the recipe's outline, and the value that
breaks least is taken; the recipe's own where that is no better. What `--set` names is left as it is.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coreai_recipes.decoder.model import Decoder, exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.lint.devices import Device
from coreai_recipes.lint.findings import Lint
from coreai_recipes.planning.bounds import PROMPTS, file_limit, first_token_seconds, prefill_weights
from coreai_recipes.planning.settings import broken, rules_of, with_setting
from coreai_recipes.planning.workload import count_workloads
from coreai_recipes.recipe import Recipe
from coreai_recipes.storage.parameters import raw_tables, stored_parameters
from coreai_recipes.storage.shorthand import with_bits

BITS = (None, 8, 6, 4)  # forms, the least lossy first: float16, int8, palettes
SHARE = (
    0.5  # of a device's largest memory that a model may take: our own choice, the rest is the system's and the app's
)
LAYOUTS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("states", ("packed", "per_kind")),
    ("attention_layout", ("auto", "last", "channels")),
    ("mlp_layout", ("row", "8x8")),
)
WIDTHS = (16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Choice:
    """A field of the recipe, what was chosen for it, and why."""

    field: str
    value: str
    why: str

    @property
    def words(self) -> str:
        return f"{self.field}: {self.value}: {self.why}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def choose(recipe: Recipe, device: Device, overrides: Sequence[str] = ()) -> tuple[Recipe, tuple[Choice, ...]]:
    """The recipe as `device` wants it, but for the fields that `overrides` of `--set` name."""
    kept = {word.partition("=")[0] for word in overrides}
    recipe = with_setting(recipe, ("device", device.id))
    choices = [Choice("export.device", device.id, f"the rules of {device.chip.id} hold, and an error fails the build")]
    recipe, form = _choose_form(recipe, device, kept)
    choices.append(form)
    recipe, width = _choose_width(recipe, device, kept)
    choices.append(width)
    for field, values in LAYOUTS:  # of which some are for a width of prefill alone
        recipe, choice = _choose_layout(recipe, device, field, values, kept)
        choices += choice
    if recipe.export.residual_scale == 1.0 and not _is_kept("export.residual_scale", kept):
        recipe = with_setting(recipe, ("residual_scale", "auto"))
        choices.append(
            Choice("export.residual_scale", "auto", "the build measures what the engine can hold (mac-32768)")
        )
    return recipe, tuple(choices)


def _is_kept(field: str, kept: Collection[str]) -> bool:
    return any(field == name or field.startswith(f"{name}.") or name.startswith(f"{field}.") for name in kept)


def _choose_form(recipe: Recipe, device: Device, kept: Collection[str]) -> tuple[Recipe, Choice]:
    """The least lossy form in which the weights fit: into the file that the device loads, and into its memory."""
    if recipe.compress is not None or _is_kept("compress", kept):
        return recipe, Choice(
            "compress", stored_parameters(build_stacks(recipe)).forms, "kept, as the recipe or --bits says"
        )
    limit, fitting = file_limit(device), recipe
    too_large: list[str] = []
    for bits in BITS:
        fitting = recipe if bits is None else with_bits(recipe, bits)
        stored, why_not = _bytes_of(fitting), ""
        taken = f"{_size(stored[0])} of weights"
        if limit is not None and stored[0] > limit:
            why_not = f"above the {limit / 1e9:.2f} GB that a file may have (pkg-size)"
        elif device.memory and sum(stored) > SHARE * device.memory[-1] * 1e9:
            why_not = f"above {SHARE:.0%} of {device.memory[-1]} GB of memory"
        name = "float16" if bits is None else f"--bits {bits}"
        if not why_not:
            fits = f"{taken} fit" if limit or device.memory else f"{taken}; no limit of the device is known"
            return fitting, Choice("compress", name, "; ".join([fits, *too_large]))
        too_large.append(f"{name} would take {_size(stored[0])}, {why_not}")
    return fitting, Choice("compress", f"--bits {BITS[-1]}", f"the smallest form; {'; '.join(too_large)}")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _bytes_of(recipe: Recipe) -> tuple[int, int, int]:
    """Of weights, of the tables that a host reads, of states."""
    stacks = build_stacks(recipe, exported_form(recipe))
    (decoder,) = (stack for stack in stacks if isinstance(stack, Decoder))
    states = sum(4 * s.layers * s.num_kv_heads * s.rows * s.head_dim for s in decoder.front.states.values())
    return stored_parameters(stacks).bytes, raw_tables(stacks).bytes, states


def _choose_layout(
    recipe: Recipe, device: Device, field: str, values: tuple[Any, ...], kept: Collection[str]
) -> tuple[Recipe, list[Choice]]:
    """The value that breaks least; nothing is said where the recipe's own is it."""
    if _is_kept(f"export.{field}", kept):
        return recipe, []
    own = getattr(recipe.export, field)
    tried = {value: rules_of(with_setting(recipe, (field, value)), device) for value in (own, *values)}
    best = min(tried, key=lambda value: broken(tried[value]))  # the recipe's own is the first
    if best == own:
        return recipe, []
    why = f"no longer {', '.join(sorted(_ids(tried[own]) - _ids(tried[best])))}"
    return with_setting(recipe, (field, best)), [Choice(f"export.{field}", str(best), why)]


def _ids(found: Lint, without: str = "") -> set[str]:
    return {finding.id for finding in found.findings if finding.level != without}


def _choose_width(recipe: Recipe, device: Device, kept: Collection[str]) -> tuple[Recipe, Choice]:
    """Tokens of a prefill: as many as break no rule where a call's time follows its real tokens, and where it follows
    its padded length, as many as answer prompts of several lengths soonest."""
    field, own = "export.functions.prefill", recipe.export.functions.prefill
    if _is_kept(field, kept):
        return recipe, Choice(field, str(own), "kept, as --set says")
    widths = [width for width in WIDTHS if width <= recipe.export.context]
    found = {width: rules_of(with_setting(recipe, ("functions.prefill", width)), device) for width in widths}
    harm = {width: _harm(each) for width, each in found.items()}
    allowed = [width for width in widths if harm[width] == min(harm.values())]
    beyond = next((width for width in widths if width > allowed[-1]), None)
    why = f"the widest that breaks no further rule, where {own} is the recipe's"
    if beyond is not None:
        worse = sorted(_ids(found[beyond], "note") - _ids(found[allowed[-1]], "note"))
        why = (
            f"{beyond} would break {', '.join(worse)}"
            if worse
            else f"{beyond} would break the same rules in more places"
        )
    if device.chip.prefill == "padded":
        soonest = dict(_mean_seconds(recipe, device, allowed))
        if not soonest:
            best = own if own in allowed else allowed[-1]
            return _at_width(recipe, best), Choice(field, str(best), f"no rate of {device.words} was measured; {why}")
        best = min(soonest, key=lambda width: (soonest[width], width))
        why = (
            f"a call costs its padded length, and prompts of {', '.join(map(str, PROMPTS))} tokens take least: "
            f"{1000 * soonest[best]:.1f} ms on average at best; {why}"
        )
        return _at_width(recipe, best), Choice(field, str(best), why)
    if device.chip.prefill == "real":
        why = f"a call costs its real tokens, so the widest is best; {why}"
    return _at_width(recipe, allowed[-1]), Choice(field, str(allowed[-1]), why)


def _harm(found: Lint) -> tuple[int, int, int]:
    """What is broken, notes aside: a layout may mend these."""
    errors, warnings, _, places = broken(found)
    return errors, warnings, places


def _at_width(recipe: Recipe, width: int) -> Recipe:
    return with_setting(recipe, ("functions.prefill", width))


def _mean_seconds(recipe: Recipe, device: Device, widths: Collection[int]) -> Iterator[tuple[int, float]]:
    """The bound on the time to the first token by width, over all prompts; nothing where no rate is known."""
    for width in widths:
        at = _at_width(recipe, width)
        stacks = build_stacks(at, exported_form(at))
        (decoder,) = (stack for stack in stacks if isinstance(stack, Decoder))
        flops = sum(work.flops.get("prefill", 0) for work in count_workloads([decoder]))
        found = [first_token_seconds(prefill_weights(decoder), flops, width, prompt, device) for prompt in PROMPTS]
        seconds = [each[0] for each in found if each is not None]
        if seconds:
            yield width, sum(seconds) / len(seconds)
