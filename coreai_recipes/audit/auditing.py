"""An audit: a package on several prompts, and what its ranges say."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from coreai_recipes.audit.inside import InsideFound
from coreai_recipes.audit.prompts import BUILT_IN, Prompt, TokenSequence, encode
from coreai_recipes.audit.ranges import Range, Ranges
from coreai_recipes.bundle import Bundle, build
from coreai_recipes.errors import UserError
from coreai_recipes.evaluate.graph import read_whole_graph
from coreai_recipes.evaluate.habits import habits_without
from coreai_recipes.evaluate.opset import Node
from coreai_recipes.evaluate.package_reader import Package
from coreai_recipes.evaluate.precision import Precision
from coreai_recipes.manifest.audit import Audit
from coreai_recipes.manifest.staging import temporary_folder
from coreai_recipes.recipe import Recipe
from coreai_recipes.recipe.export_rules import scale_problems
from coreai_recipes.tokenizer.bundle_tokenizer import BundleTokenizer
from coreai_recipes.verification.calls import LAYER, Note, plan_calls, run_call
from coreai_recipes.verification.report import number
from coreai_recipes.verification.runtime import open_program
from coreai_recipes.verification.scale import DIVISIONS, INSIDE, PRODUCTS, Peaks, choose_scale, peaks_of
from coreai_recipes.verification.stages.draft import NAME as DRAFT
from coreai_recipes.verification.stages.draft import call_draft, draft_windows
from coreai_recipes.verification.subject import Subject

if TYPE_CHECKING:
    from coreai_recipes.bundle.sources import Given

DECODE_STEPS = 2  # of each prompt; the others are taken by prefill
SHOWN = 5  # places of each kind
NEGLIGIBLE_DB = 90.0  # what subnormals that are flushed may cost without being named

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Limit:
    """What a kind of value is held against: `at` and beyond it the engine, or float16, has something else."""

    what: str
    at: float
    rule: str


LIMITS = {
    "product": Limit("results of products", 32_768, "mac-32768"),
    "divisor": Limit("divisors", 16_384, "div-sub"),
    "value": Limit("values", 65_504, "float16"),
}


@dataclass(frozen=True)
class Place:
    """A value of the program: where it is, and its range. `weight` is that of the product that gives it."""

    kind: str
    function: str
    name: str
    weight: str | None
    range: Range

    @property
    def limit(self) -> Limit:
        return LIMITS[self.kind]

    @property
    def layer(self) -> int | None:
        found = LAYER.match(self.name)
        return int(found[1]) if found else None

    def __str__(self) -> str:
        where = f"{self.weight}: " if self.weight else ""
        return f"{where}{self.range.operation} {self.name} of {self.function}"

    def to_json(self) -> dict[str, Any]:
        return {
            "function": self.function,
            "name": self.name,
            "operation": self.range.operation,
            "layer": self.layer,
            "weight": self.weight,
            "largest": float(f"{self.range.largest:.6g}"),
            "subnormal": float(f"{self.range.subnormal_share:.4g}"),
            "flushed_psnr_db": number(self.range.flushed_psnr_db),
        }


@dataclass(frozen=True)
class Audited:
    """What was found. `nans` and `infinities` are those of precision `engine` without the habits `without`."""

    place: str
    recipe: Recipe
    prompts: tuple[str, ...]
    left_out: tuple[str, ...]
    positions: int
    ranges: Ranges
    peaks: Peaks
    without: tuple[str, ...]
    nans: tuple[str, ...]
    infinities: tuple[str, ...]

    @cached_property
    def places(self) -> list[Place]:
        """Every value with its range, under each kind that it is of."""
        return list(self._places())

    def _places(self) -> Iterator[Place]:
        for function, graph in self.ranges.graphs.items():
            found = self.ranges.found[function]
            divisors = {
                source
                for node in graph.nodes
                for source in node.operands.get(DIVISIONS.get(node.type, ""), ())
                if isinstance(source, str)
            }
            for node in graph.nodes:
                for result in node.results:
                    if result.name in found and found[result.name].count:
                        is_of = {"value": True, "product": node.type in PRODUCTS, "divisor": result.name in divisors}
                        for kind in (kind for kind, holds in is_of.items() if holds):
                            yield Place(kind, function, result.name, _weight_of(node), found[result.name])

    def worst(self, kind: str) -> list[Place]:
        """The largest of a kind: in each layer the largest of one function."""
        ordered = sorted((p for p in self.places if p.kind == kind), key=lambda p: -p.range.largest)
        return _first_of(ordered, lambda place: place.layer if place.layer is not None else place.name)

    def subnormal_places(self) -> list[Place]:
        """Where subnormals that are taken for 0 cost the most, one place an operation."""
        there = [p for p in self.places if p.kind == "value" and p.range.flushed_psnr_db < NEGLIGIBLE_DB]
        return _first_of(sorted(there, key=lambda p: p.range.flushed_psnr_db), lambda place: place.range.operation)

    @cached_property
    def why_not_scaled(self) -> str | None:
        return "; ".join(p.message for p in scale_problems(self.recipe.model_dump())) or None

    @property
    def scale(self) -> float:
        """The residual scale that the ranges ask for; 1 where none is possible."""
        return 1.0 if self.why_not_scaled else choose_scale(self.peaks.peak)

    @cached_property
    def inside(self) -> list[InsideFound]:
        """What the ranges ask for of the scales inside parts."""
        return [InsideFound.of(inside, self.recipe, self.ranges) for inside in INSIDE]

    @property
    def scales(self) -> dict[str, float]:
        """Every scale of the recipe's `export` that the ranges ask for."""
        return {"residual_scale": self.scale, **{each.inside.field: each.wanted for each in self.inside}}

    def beyond(self) -> list[Place]:
        """What passes its limit at those scales: no recipe can have it computed otherwise."""
        return [p for p in self.places if p.range.largest * self._factor(p) >= p.limit.at]

    def _factor(self, place: Place) -> float:
        factor = self.scale / self.peaks.scale if place.name in self.peaks.values.get(place.function, {}) else 1.0
        for each in self.inside:
            if place.name in each.names[place.function]:
                factor *= each.wanted / each.now
        return factor

    def title(self) -> str:
        return f"{self.place}: {len(self.prompts)} prompts, {self.positions} tokens, in float32"

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """The worst places of each kind: what, where, the largest, the limit, how many times it fits."""
        return [
            (
                place.limit.what,
                str(place),
                f"{place.range.largest:,.6g}",
                f"{place.limit.at:,}",
                f"{place.limit.at / place.range.largest:.3g}" if place.range.largest else "-",
            )
            for kind in LIMITS
            for place in self.worst(kind)
        ]

    def lines(self) -> list[str]:
        """What the ranges say, a sentence each."""
        small = [
            f"subnormals: {place}: {100 * place.range.subnormal_share:.3g} % of it; taken for 0 they leave "
            f"{place.range.flushed_psnr_db:.1f} dB"
            for place in self.subnormal_places()
        ]
        habits = f" without {', '.join(self.without)}" if self.without else ""
        noted = (("NaN", self.nans), ("infinity", self.infinities))
        words = ", ".join(f"{what} in {found[0]}" for what, found in noted if found)
        unread = (
            [f"left out, because the tokenizer cannot encode them: {', '.join(self.left_out)}"] if self.left_out else []
        )
        return [*unread, *small, f"engine{habits}: {words or 'every value is finite'}", *self.decisions()]

    def decisions(self) -> list[str]:
        """What the recipe should say, and what no scale of it reaches."""
        largest, now = self.peaks.largest, self.peaks.scale
        found = (
            f"of the stream, the largest product is {largest['product']:,.0f} and the largest divisor "
            f"{largest['divisor']:,.0f} without a scale"
        )
        how = "as it is" if self.scale == now else f"in place of {now:g}"
        beyond = [
            f"{place} reaches {place.range.largest:,.6g} of {place.limit.at:,}, and no scale of a recipe reaches it: "
            "it would have to be float32, which leaves the engine"
            for place in self.beyond()
        ]
        inside = [str(each) for each in self.inside if each.is_asked_for]
        return [f"export.residual_scale: {self.scale:g}, {how}: {self.why_not_scaled or found}", *inside, *beyond]

    def to_audit(self) -> Audit:
        """audit.json's content."""
        functions = {function: self.ranges.values(function) for function in self.ranges.graphs}
        return Audit(format=1, prompts=len(self.prompts), positions=self.positions, functions=functions)

    def to_json(self) -> dict[str, Any]:
        return {
            "place": self.place,
            "prompts": list(self.prompts),
            "left_out": list(self.left_out),
            "positions": self.positions,
            "residual_scale": {"now": self.peaks.scale, "wanted": self.scale, "why_not": self.why_not_scaled},
            **{each.inside.field: each.to_json() for each in self.inside},
            "limits": {
                kind: {"at": limit.at, "rule": limit.rule, "worst": [place.to_json() for place in self.worst(kind)]}
                for kind, limit in LIMITS.items()
            },
            "subnormals": [place.to_json() for place in self.subnormal_places()],
            "engine": {"without": list(self.without), "nans": list(self.nans), "infinities": list(self.infinities)},
            "float32": [place.to_json() | {"limit": place.limit.at} for place in self.beyond()],
        }


def _first_of(places: Sequence[Place], key: Callable[[Place], object]) -> list[Place]:
    """The first SHOWN of those that are the first with their key."""
    firsts: dict[object, Place] = {}
    for place in places:
        firsts.setdefault(key(place), place)
    return list(firsts.values())[:SHOWN]


def audit_bundle(
    bundle: Bundle,
    prompts: Sequence[Prompt] = BUILT_IN,
    without: Collection[str] = (),
    progress: Progress | None = None,
) -> Audited:
    """Run a bundle's package on `prompts`. Raises UserError where the bundle was modified since it was built."""
    habits_without(without)
    bundle.check_files()
    bundle.check_package()
    return _audit(bundle, str(bundle.path), prompts, without, progress)


def audit_recipe(
    recipe: Recipe,
    checkpoint: "Given" = None,
    prompts: Sequence[Prompt] = BUILT_IN,
    without: Collection[str] = (),
    progress: Progress | None = None,
) -> Audited:
    """The same of a recipe, whose package is built for it and not kept."""
    habits_without(without)
    # rules of the device that it is for must not keep it from being measured
    fields = type(recipe.export).model_fields
    names: tuple[str, ...] = ("device", "allow")
    asked = {name: getattr(recipe.export, name) for name in names if name in fields}
    usual = {name: fields[name].get_default(call_default_factory=True) for name in asked}
    plain = recipe.model_copy(update={"export": recipe.export.model_copy(update=usual)})
    with temporary_folder() as folder:
        bundle = build(plain, checkpoint, folder, verified=False, progress=progress)
        audited = _audit(bundle, recipe.name, prompts, without, progress)
    export = audited.recipe.export.model_copy(update=asked)
    return replace(audited, recipe=audited.recipe.model_copy(update={"export": export}))


def _audit(
    bundle: Bundle, place: str, prompts: Sequence[Prompt], without: Collection[str], progress: Progress | None
) -> Audited:
    recipe = bundle.recipe
    texts, left_out = encode(prompts, _tokenizer_of(bundle), recipe.model.vocab_size, recipe.export.context)
    if not texts:
        raise UserError(f"{place}: its tokenizer cannot encode any of the prompts: {', '.join(left_out)}")
    subject = Subject(recipe, {}, bundle.package)
    packages = [Package(each, checked=False) for each in subject.packages]
    queries = map(recipe.export.name_of, recipe.export.functions.queries)
    functions = (*queries, *([DRAFT] if recipe.draft is not None else []))
    ranges = Ranges({name: read_whole_graph(packages, name) for name in functions})
    peaks = peaks_of(recipe, bundle.package)

    def note(function: str, name: str, value: torch.Tensor) -> None:
        ranges.note(function, name, value)
        if function != DRAFT:  # its stream is never scaled
            peaks.note(function, name, value)

    _run(subject, "float32", (), texts, note, progress)
    nans, infinities = _run(subject, "engine", tuple(without), texts, None, progress)
    positions = sum(len(text.token_ids) for text in texts)
    names = tuple(text.name for text in texts)
    return Audited(place, recipe, names, tuple(left_out), positions, ranges, peaks, tuple(without), nans, infinities)


def _tokenizer_of(bundle: Bundle) -> BundleTokenizer | None:
    there = (bundle.path / "tokenizer.json").is_file()
    return BundleTokenizer(bundle.path) if there else None


def _run(
    subject: Subject,
    precision: Precision,
    without: Sequence[str],
    texts: Sequence[TokenSequence],
    note: Note | None,
    progress: Progress | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Run every text from empty states; where NaN began and where infinity did, in precision `engine`."""
    program, recipe = open_program(subject, precision, without), subject.recipe
    export = recipe.export
    nans: dict[str, None] = {}
    infinities: dict[str, None] = {}
    windows = draft_windows(recipe) if recipe.export.outputs != "ids" else {}
    hidden: list[torch.Tensor] = []

    def look(function: str, name: str, value: torch.Tensor) -> None:
        if name == "hidden" and function != DRAFT:
            hidden[:] = [value[:, -1:].clone()]
        if note is not None:
            note(function, name, value)

    for done, text in enumerate(texts, 1):
        program.reset()
        for call in plan_calls(export.functions.queries, len(text.token_ids), DECODE_STEPS, export.fills_calls):
            run_call(program, text.token_ids, call, set(), recipe, look if windows else note)
            called = [call.function]
            if windows and call.function != "score":
                end = call.position + call.count
                token = text.token_ids[min(end, len(text.token_ids) - 1)]
                call_draft(program, windows, token, end, hidden[0], note)
                called.append(DRAFT)
            for function in called:
                overflowed, found = program.faults(function)
                nans |= dict.fromkeys(found)
                infinities |= dict.fromkeys(overflowed)
        if progress is not None:
            progress(f"audit: {precision}", done, len(texts))
    return tuple(nans), tuple(infinities)


def _weight_of(node: Node) -> str | None:
    """The weight that a product multiplies by, as the program names it."""
    weights = [name for key in ("weight", "x", "y") for name in node.operands.get(key, ()) if isinstance(name, str)]
    return next((name for name in weights if name.endswith("_weight")), None) if node.type in PRODUCTS else None
