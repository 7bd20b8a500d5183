"""What `--device` chooses of a recipe, and why: the form of its weights, its packages and where its table is, the
layouts and states, a prefill's tokens.

The rules choose. Each field is tried with every value that it can have, on the recipe's outline, and the value that
breaks least is taken; the recipe's own where that is no better. What `--set` names is left as it is.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from coreai_recipes.decoder.model import Decoder, exported_form
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.errors import UserError
from coreai_recipes.lint.devices import Device
from coreai_recipes.lint.findings import Lint
from coreai_recipes.planning.bounds import PROMPTS, first_token_seconds, prefill_weights
from coreai_recipes.planning.placing import Choice, is_kept, place, problem_of, size_words
from coreai_recipes.planning.settings import broken, rules_of, with_setting
from coreai_recipes.planning.workload import count_workloads
from coreai_recipes.recipe import Recipe
from coreai_recipes.storage.parameters import stored_parameters
from coreai_recipes.storage.shorthand import with_bits

BITS = (None, 8, 6, 4)  # forms, the least lossy first: float16, int8, palettes
# Of a device's largest memory that a model may take: our own choice, the rest is the system's and the app's.
SHARE = 0.5
LAYOUTS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("states", ("packed", "per_kind")),
    ("attention_layout", ("auto", "last", "channels")),
    ("mlp_layout", ("row", "8x8")),
)
WIDTHS = (16, 32, 64, 128, 256, 512)


def choose(recipe: Recipe, device: Device, overrides: Sequence[str] = ()) -> tuple[Recipe, tuple[Choice, ...]]:
    """The recipe as `device` wants it, but for the fields that `overrides` of `--set` name, and for `chunks`
    and `table` where the recipe says them itself."""
    check_rules(recipe, device)
    own = recipe.export.model_fields_set & {"chunks", "table"}
    kept = {word.partition("=")[0] for word in overrides} | {f"export.{name}" for name in own}
    recipe = with_setting(recipe, ("device", device.id))
    choices = [Choice("export.device", device.id, f"the rules of {device.chip.id} hold, and an error fails the build")]
    recipe, of_weights = _choose_form(recipe, device, kept)
    choices += of_weights
    recipe, width = _choose_width(recipe, device, kept)
    choices.append(width)
    for field, values in LAYOUTS:  # of which some are for a width of prefill alone
        recipe, choice = _choose_layout(recipe, device, field, values, kept)
        choices += choice
    recipe, of_cache = _choose_cache(recipe, device, kept)
    choices += of_cache
    if recipe.export.residual_scale == 1.0 and not is_kept("export.residual_scale", kept):
        recipe = with_setting(recipe, ("residual_scale", "auto"))
        choices.append(
            Choice("export.residual_scale", "auto", "the build measures what the engine can hold (mac-32768)")
        )
    return recipe, tuple(choices)


def check_rules(recipe: Recipe, device: Device) -> None:
    """Raise UserError where nothing is known of a device for packages of the recipe's format."""
    if recipe.export.format != "coreml":
        raise UserError(f"--device {device.id}: the rules of a device are of Core ML's programs: leave it out")


def _choose_form(recipe: Recipe, device: Device, kept: Collection[str]) -> tuple[Recipe, list[Choice]]:
    """The least lossy form in which the weights fit: into files that the device loads, cut where one would be above
    that, and into its memory."""
    if recipe.compress is not None or is_kept("compress", kept):
        forms = stored_parameters(build_stacks(recipe)).forms
        placed = place(recipe, device, kept)
        why = "kept, as the recipe or --bits says"
        if placed.why_not:
            why = f"{why}; {size_words(max(placed.sizes))} in a package are {placed.why_not}"
        return placed.recipe, [Choice("compress", forms, why), *placed.choices]
    too_large: list[str] = []
    for bits in BITS:
        placed = place(recipe if bits is None else with_bits(recipe, bits), device, kept)
        why_not = placed.why_not
        if not why_not and device.memory and placed.resident > SHARE * device.memory[-1] * 1e9:
            why_not = f"above {SHARE:.0%} of {device.memory[-1]} GB of memory"
        name, taken = "float16" if bits is None else f"--bits {bits}", size_words(placed.weights)
        if not why_not:
            known = f"{taken} of weights fit" + ("" if len(placed.sizes) == 1 else f" in {len(placed.sizes)} packages")
            fits = known if placed.limit or device.memory else f"{taken} of weights; no limit of the device is known"
            return placed.recipe, [Choice("compress", name, "; ".join([fits, *too_large])), *placed.choices]
        too_large.append(f"{name} would take {taken}, {why_not}")
    smallest = Choice("compress", f"--bits {BITS[-1]}", f"the smallest form; {'; '.join(too_large)}")
    return placed.recipe, [smallest, *placed.choices]


def _choose_layout(
    recipe: Recipe, device: Device, field: str, values: tuple[Any, ...], kept: Collection[str]
) -> tuple[Recipe, list[Choice]]:
    """The value that breaks least; nothing is said where the recipe's own is it."""
    if is_kept(f"export.{field}", kept):
        return recipe, []
    own = getattr(recipe.export, field)
    tried = {value: rules_of(with_setting(recipe, (field, value)), device) for value in (own, *values)}
    best = min(tried, key=lambda value: broken(tried[value]))  # the recipe's own is the first
    if best == own:
        return recipe, []
    why = f"no longer {', '.join(sorted(_ids(tried[own]) - _ids(tried[best])))}"
    return with_setting(recipe, (field, best)), [Choice(f"export.{field}", str(best), why)]


def _choose_cache(recipe: Recipe, device: Device, kept: Collection[str]) -> tuple[Recipe, list[Choice]]:
    """The host's, where a chip was seen to refuse the states: they are no error anywhere else, and copied less."""
    functional = with_setting(recipe, ("cache", "functional"))
    if recipe.export.is_functional or is_kept("export.cache", kept) or problem_of(functional, "cache"):
        return recipe, []
    before, after = rules_of(recipe, device), rules_of(functional, device)
    spared = sorted(_ids(before, only="error") - _ids(after, only="error"))
    if not spared or broken(after)[0] >= broken(before)[0]:
        return recipe, []
    why = f"{device.chip.id} does not take the states ({', '.join(spared)}): the host keeps keys and values"
    return functional, [Choice("export.cache", "functional", why)]


def _ids(found: Lint, without: str = "", only: str = "") -> set[str]:
    """The rules that are broken: at any level, at any other than one, at one alone."""
    return {each.id for each in found.findings if each.level != without and only in ("", each.level)}


def _choose_width(recipe: Recipe, device: Device, kept: Collection[str]) -> tuple[Recipe, Choice]:
    """Tokens of a prefill: as many as break no rule where a call's time follows its real tokens, and where it follows
    its padded length, as many as answer prompts of several lengths soonest."""
    field, own = "export.functions.prefill", recipe.export.functions.prefill
    if is_kept(field, kept):
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
