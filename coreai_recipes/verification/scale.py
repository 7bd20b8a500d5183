"""The scale of the residual stream that leaves room: to the engine's ceilings, and to float16's end far above them.

Which values of a program grow with that scale is read off its graph: a value is of *degree* d when the scale s makes it
s^d of what it was. The stream and the weights that write to it have degree 1, a norm divides it away.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from coreai_recipes.decoder.model import build_decoder
from coreai_recipes.evaluate.graph import STATE_OPERATIONS, Graph, read_whole_graph
from coreai_recipes.evaluate.opset import Node
from coreai_recipes.evaluate.package_reader import Package
from coreai_recipes.primitives.layer import Form
from coreai_recipes.recipe.export_rules import head_scale_problems, mlp_scale_problems
from coreai_recipes.recipe.plain import Problem
from coreai_recipes.recipe.schema import Recipe
from coreai_recipes.storage.chunks import packages_of
from coreai_recipes.weights.folding import stored_as

# A quarter of what a product of the engine may not reach, half of what it can divide by: other texts go further than
# those that were measured. SmolLM2's stream peaks at 20,400 to 27,586 over eleven prompts.
ROOM = 8192.0
STREAM_HALVED = Form(residual_scale=0.5)
LOGITS = "logits"  # without the scale of the head again
STREAM = "hidden_0"  # how the linker names what goes into the first layer
PRODUCTS = frozenset({"conv", "linear", "matmul", "einsum", "scaled_dot_product_attention"})
DIVISIONS = {"real_div": "y", "inverse": "x"}
# Of these a result has the degree of the first operand; any other operation but the ones of `_degree` has none.
LINEAR = frozenset({
    "abs", "cast", "concat", "expand_dims", "gather", "gather_along_axis", "identity", "pad", "reduce_max",
    "reduce_mean", "reduce_min", "reduce_sum", "relu", "reshape", "slice_by_index", "slice_by_size", "split", "squeeze",
    "stack", "tile", "topk", "transpose",
})  # fmt: skip


@dataclass(frozen=True)
class Inside:
    """A scale of what lies inside a part, between the matrices that take it up and undo it. `form` has it at a half."""

    field: str
    where: str
    form: Form
    problems: Callable[[Mapping[str, Any]], Iterator[Problem]]

    @property
    def key(self) -> str:
        return f"export.{self.field}"

    def now(self, recipe: Recipe) -> float:
        found: float = getattr(recipe.export, self.field)
        return found

    def why_not(self, recipe: Recipe) -> str | None:
        return "; ".join(problem.message for problem in self.problems(recipe.model_dump())) or None

    def holds(self, recipe: Recipe, parameter: str) -> bool:
        """Whether a parameter of the decoder takes the scale up."""
        return stored_as(recipe, parameter, self.form).factor < 1

    def values(self, recipe: Recipe, graph: Graph) -> dict[str, float]:
        """What grows with the scale in a function, and how large it may be: room for other texts is left, as for the
        stream's."""
        degrees: dict[str, int] = dict(weight_degrees(recipe, self.form))
        found: dict[str, float] = {}
        for node in graph.nodes:
            degree = _degree(node, degrees)
            for result in node.results:
                degrees[result.name] = degree
                if degree == 1 and result.name != LOGITS:
                    found[result.name] = ROOM if node.type in PRODUCTS else 2 * ROOM
        return found

    def choose(self, recipe: Recipe, excess: float) -> float:
        """The scale by which what is `excess` times as large as it may be has room; the recipe's own where it has."""
        if not excess >= 1 or not math.isfinite(excess):
            return self.now(recipe)
        return self.now(recipe) * largest_power(1 / excess)


INSIDE = (
    Inside("mlp_scale", "inside an MLP", Form(mlp_scale=0.5), mlp_scale_problems),
    Inside("head_scale", "behind the norm of the head", Form(head_scale=0.5), head_scale_problems),
)


def choose_scale(peak: float) -> float:
    """The largest power of two, 1 at most, by which the largest value of a stream comes below ROOM."""
    if not peak > 0 or not math.isfinite(peak):
        return 1.0
    return min(1.0, largest_power(ROOM / peak))


def largest_power(below: float) -> float:
    """The largest power of two that is smaller than `below`."""
    return 2.0 ** (math.ceil(math.log2(below)) - 1)


@dataclass
class Peaks:
    """The largest values that grow with the scale, as they are without one: `product` of conv, matmul and their like,
    `divisor`, and `stream` of the stream itself, where no norm divides by it."""

    values: Mapping[str, Mapping[str, str]]  # by function and value: which of the three it is
    scale: float = 1.0
    largest: dict[str, float] = field(default_factory=lambda: {"product": 0.0, "divisor": 0.0, "stream": 0.0})

    def note(self, function: str, name: str, value: Tensor) -> None:
        """A value of a call, of its real tokens alone."""
        what = self.values[function].get(name)
        if what is not None and value.numel():
            self.largest[what] = max(self.largest[what], float(value.abs().max()) / self.scale)

    @property
    def peak(self) -> float:
        return max(self.largest.values())


def peaks_of(recipe: Recipe, package: Path) -> Peaks:
    """What is to be watched in the package of `recipe` to choose its scale. Of Core AI's that is the stream alone,
    which its twin shows (`aimodel.twin`)."""
    if recipe.export.format == "coreai":
        stream = {f"hidden_{index}": "stream" for index in range(len(recipe.model.layer_kinds) + 1)}
        return Peaks(dict.fromkeys(recipe.export.functions.queries, stream), recipe.export.scale)
    opened = [Package(each, checked=False) for each in packages_of(recipe, package)]
    degrees = weight_degrees(recipe)
    functions = dict.fromkeys(name for each in opened for name in each.functions if name != "draft")
    values = {name: growing_values(read_whole_graph(opened, name), degrees) for name in functions}
    return Peaks(values, recipe.export.scale)


def weight_degrees(recipe: Recipe, form: Form = STREAM_HALVED) -> dict[str, int]:
    """By a weight's name in the program, the power of the scale that it takes up, where it takes up any; of the scale
    that is a half in `form`."""
    names = [name for name, _ in build_decoder(recipe).named_parameters()]
    factors = {name.replace(".", "_"): stored_as(recipe, name, form).factor for name in names}
    return {name: round(-math.log2(factor)) for name, factor in factors.items() if factor != 1.0}


def growing_values(graph: Graph, weights: Mapping[str, int]) -> dict[str, str]:
    """The values of a function whose largest decides about the scale, and which of Peaks' figures each goes into."""
    degrees = dict(weights)
    found: dict[str, str] = {}
    for node in graph.nodes:
        degree = _degree(node, degrees)
        for result in node.results:
            degrees[result.name] = 1 if result.name == STREAM else degree
            if degrees[result.name] == 1 and node.type in PRODUCTS:
                found[result.name] = "product"
            elif degrees[result.name] == 1 and result.name.startswith("hidden_"):
                found[result.name] = "stream"
        divisor = node.operands.get(DIVISIONS.get(node.type, ""), [None])[0]
        if isinstance(divisor, str) and degrees.get(divisor) == 1:
            found[divisor] = "divisor"
    return found


def _degree(node: Node, degrees: Mapping[str, int]) -> int:
    """The degree of a node's results."""

    def of(*keys: str) -> list[int]:
        sources = [source for key in keys for source in node.operands.get(key, ())]
        return [degrees.get(source, 0) if isinstance(source, str) else 0 for source in sources]

    match node.type:
        case "mul" | "matmul" | "einsum" | "scaled_dot_product_attention":
            return sum(of("x", "y", "values"))
        case "conv" | "linear":
            return sum(of("x", "weight"))
        case "real_div":
            return sum(of("x")) - sum(of("y"))
        case "inverse":
            return -sum(of("x"))
        case "add" | "sub" | "maximum" | "minimum":
            return max(of("x", "y"))
        case "select":
            return max(of("a", "b"))
        case "square":
            return 2 * sum(of("x"))
    if node.type in LINEAR and node.type not in STATE_OPERATIONS:
        return max(of("x", "values"), default=0)
    return 0
