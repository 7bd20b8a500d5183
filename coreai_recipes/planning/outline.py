"""A recipe's program in outline, from its sizes alone, for the rules that sizes decide: before anything is converted.

Inputs, outputs and states are those of the contract; inside stand the products of every layer, the scores of its
attention and what it writes, under the names of the modules. Rules about other operations see them in a built package.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.model import EMBEDDED, Decoder, exported_form
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.decoder.stacks import build_stacks
from coreai_recipes.decoder.states import COMMIT, state_specs, states_of
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.lint.program import Function, Operation, Program, Shape, Value
from coreai_recipes.lint.reading import LintInput
from coreai_recipes.planning.contract import functions_of, own_functions_of
from coreai_recipes.primitives.embedding import index_dtype
from coreai_recipes.primitives.layer import SQUARE, Layer
from coreai_recipes.primitives.projection import Projection
from coreai_recipes.recipe import Recipe
from coreai_recipes.storage.chunks import chunks_of
from coreai_recipes.storage.compression import Compression
from coreai_recipes.storage.parameters import head_pieces, stored_parameters
from coreai_recipes.storage.weight_files import WEIGHT_FILES

STEP = re.compile(r"^step_\d+\.")
ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu"}


def outline(recipe: Recipe) -> LintInput:
    """What rules look at, of a recipe. Raises RecipeError for what cannot be built."""
    return outline_of(build_stacks(recipe, exported_form(recipe)))


def outline_of(stacks: Sequence[StackModule]) -> LintInput:
    """As `outline`, of modules that are there already."""
    recipe = stacks[0].recipe
    kept = {} if recipe.export.is_functional else states_of(state_specs(recipe))
    states: dict[str, Shape] = {name: state.shape for name, state in kept.items()}
    stored = stored_parameters(stacks)
    # of an .aimodel the rules look at the Core ML program of the same recipe
    called = functions_of if recipe.export.format == "coreml" else own_functions_of
    functions = []
    for stack in stacks:
        for name, (query, inputs, outputs) in called(recipe, stack.of.key).items():
            if name == COMMIT:  # which has no weights, and no layer
                continue
            drawn = _Outline(Function(name), states, stored.compression, stacks[0])
            drawn.draw(stack, query, inputs, outputs)
            functions.append(drawn.function)
    chunks = chunks_of(stacks)
    export = recipe.export
    weights = WEIGHT_FILES[export.format]
    files = {weights if len(chunks) == 1 else f"{chunk.number}/{weights}": chunk.parameters.bytes for chunk in chunks}
    return LintInput(
        recipe.name,
        [Program(functions, is_outline=True)],
        files,
        units=export.compute_units,
        device=export.device,
        allow=export.allowed,
        format=export.format,
        is_for_engine=export.is_for_engine,
    )


Ports = Mapping[str, tuple[str, Shape]]


@dataclass
class _Outline:
    """One function while it is drawn."""

    function: Function
    states: dict[str, Shape]
    compression: Compression
    target: StackModule
    weights: dict[tuple[str, Shape], Value] = field(default_factory=dict)

    def draw(self, stack: StackModule, query: int, inputs: Ports, outputs: Ports) -> None:
        self._declare(inputs)
        match stack:
            case Decoder():
                gives_ids = stack.recipe.export.outputs == "ids"
                self._finish(outputs, self._draw_decoder(stack, query, gives_ids))
            case Draft():
                self._finish(outputs, self._draw_draft(stack, "ids" in outputs))

    def _draw_decoder(self, decoder: Decoder, query: int, gives_ids: bool) -> Value:
        recipe, front = decoder.recipe, decoder.front
        x = self._embed(query, self._tokens())
        functions = recipe.export.functions.queries
        call = decoder.call(next(name for name in functions if recipe.export.name_of(name) == self.function.name))
        for index, layer in enumerate(decoder.stack):
            asked = call.tokens_of(layer.kind)
            writes = front.attends(layer.kind) and not front.shares(layer.kind)
            owner = front.state(layer.kind) if writes else None
            if owner is not None:
                # a ring is written whole by a call of several tokens
                written = owner.rows if owner.window is not None and query > 1 else query
                self._write(f"layers.{index}.cache", written, owner.rows)
            rows = call.seen_rows(layer.kind)
            keys_last = recipe.export.keys_last and asked == 1
            x = self._layer(f"layers.{index}", layer, x, asked, rows, keys_last)
        table = "embedding.weight" if recipe.model.head.tied else "head.weight"
        logits = self._products("head", decoder, table, x, call.answered)
        return self._choose("chosen", logits, call.answered) if gives_ids else logits

    def _draw_draft(self, draft: Draft, gives_ids: bool) -> Value:
        ids, hidden = self._tokens(), self._input("last_hidden")
        keys_last, said = draft.recipe.export.keys_last, dict[str, Value]()
        for step in range(draft.spec.steps):
            at = f"step_{step}." if draft.spec.steps > 1 else ""
            embedded = self._embed(1, ids, at)
            both = (1, draft.pre_projection.weight.shape[1], 1, 1)
            joined = self._give("concat", f"{at}joined", "float16", both, x=embedded, y=hidden)
            x = self._conv(f"{at}{draft.of.prefix}pre_projection", draft.pre_projection, joined)
            for index, layer in enumerate(draft.stack):
                rows = draft.owners[draft.owner(layer.kind)].rows
                x = self._layer(f"{at}{draft.of.prefix}layers.{index}", layer, x, 1, rows, keys_last)
            hidden = self._conv(f"{at}{draft.of.prefix}post_projection", draft.post_projection, x)
            said[at] = self._draft_logits(draft, x, at)
            if gives_ids:
                ids = said[at] = self._choose(f"{at}chosen", said[at], 1)
        if len(said) == 1:
            return said[""]
        shape = (1, len(said), *next(iter(said.values())).shape[2:])
        return self._give("concat", "said", ids.dtype, shape, **said)

    def _draft_logits(self, draft: Draft, x: Value, at: str) -> Value:
        """Of every token, or of those in the clusters that are looked into: rows of the head by what a call chooses."""
        rows, width = Pieces(draft.spec.vocab_size).rows, draft.spec.hidden_size
        if draft.clusters is None:
            return self._products(f"{at}{draft.of.prefix}head", draft, f"{draft.of.prefix}head.weight", x, 1)
        count, each = draft.clusters.ordering.shape
        scores = self._conv(f"{at}{draft.of.prefix}clusters.centroids", draft.clusters.centroids, x)
        nearest = self._give("topk", f"{at}nearest", "uint16", (1, draft.clusters.top), x=scores)
        ordering = Value("ordering", "int32", (count, each), constant=True)
        tokens = self._give(
            "gather", f"{at}tokens", "int32", (1, draft.clusters.top, each), x=ordering, indices=nearest
        )
        narrow = index_dtype(draft.spec.vocab_size)
        if narrow is not None:
            tokens = self._give("cast", f"{at}tokens.{narrow}", narrow, tokens.shape, x=tokens)
        head = self._weight(f"{draft.of.prefix}head.weight", (draft.spec.vocab_size, width))
        taken = (draft.clusters.top * each, width)
        found = self._give("gather", f"{at}{draft.of.prefix}head", "float16", taken, x=head, indices=tokens)
        own = self._give("matmul", f"{at}own_logits", "float16", (taken[0], 1), x=found, y=x)
        return self._give("scatter", f"{at}logits", "float16", (rows,), updates=own, indices=tokens)

    def _products(self, name: str, stack: StackModule, table: str, x: Value, tokens: int) -> Value:
        """Of a head: each with some rows of its matrix, and all of them joined as pieces of the logits."""
        pieces, counts = Pieces(stack.of.layers.vocab_size), head_pieces(stack)
        found = dict[str, Value]()
        for number, count in enumerate(counts):
            at, rows = f"{name}.{number}" if len(counts) > 1 else name, count * pieces.columns
            weight = self._weight(f"{table}[{number}]" if len(counts) > 1 else table, (rows, x.shape[1], 1, 1))
            product = self._give("conv", at, "float16", (1, rows, 1, tokens), x=x, weight=weight)
            if len(counts) == 1:
                return product
            shape = (1, *((tokens,) if tokens > 1 else ()), count, pieces.columns)
            found[at] = self._give("reshape", f"{at}.pieces", "float16", shape, x=product)
        return self._give("concat", f"{name}.joined", "float16", pieces.shape(tokens), **found)

    def _declare(self, inputs: Ports) -> None:
        self.function.inputs = [Value(name, dtype, shape) for name, (dtype, shape) in inputs.items()]
        self.function.states = [Value(name, "float16", shape, is_state=True) for name, shape in self.states.items()]

    def _finish(self, outputs: Ports, x: Value) -> None:
        for name, (dtype, shape) in outputs.items():
            self.function.outputs.append(self._give("reshape", name, dtype, shape, x=x))

    def _input(self, name: str) -> Value:
        return next(value for value in self.function.inputs if value.name == name)

    def _tokens(self) -> Value:
        """The input that says which tokens a call has: ids, or rows of the host's table."""
        return next(value for value in self.function.inputs if value.name in ("input_ids", EMBEDDED))

    def _embed(self, query: int, ids: Value, at: str = "") -> Value:
        hidden = (1, self.target.of.layers.hidden_size, 1, query)
        if ids.name == EMBEDDED:
            return self._give("reshape", f"{at}hidden_0", "float16", hidden, x=ids)
        weight = self.target.get_parameter("embedding.weight")
        table = self._weight("embedding.weight", tuple(weight.shape))
        narrow = index_dtype(weight.shape[0])
        if narrow is not None:
            ids = self._give("cast", f"{at}embedding.ids", narrow, (1, query), x=ids)
        rows = self._give("gather", f"{at}embedding", "float16", (1, query, weight.shape[1]), x=table, indices=ids)
        return self._give("reshape", f"{at}hidden_0", "float16", hidden, x=rows)

    def _conv(self, name: str, projection: Projection, x: Value) -> Value:
        weight = self._weight(f"{name}.weight", tuple(projection.weight.shape))
        return self._give("conv", name, "float16", (1, weight.shape[0], *x.shape[2:]), x=x, weight=weight)

    def _layer(self, place: str, layer: Layer, x: Value, asked: int, rows: int, keys_last: bool) -> Value:
        for name, projection in layer.named_modules():
            if isinstance(projection, Projection):
                weight = self._weight(f"{place}.{name}.weight", tuple(projection.weight.shape))
                in_square = name.startswith("mlp.") and layer.mlp_in_square and asked == SQUARE**2
                tokens = (SQUARE, SQUARE) if in_square else (1, asked)
                given = _value(f"{place}.{name}.x", "float16", (1, projection.weight.shape[1], *tokens))
                made = (1, projection.weight.shape[0], *tokens)
                result = self._give("conv", f"{place}.{name}", "float16", made, x=given, weight=weight)
                activation = _activation_behind(layer, name)
                if activation:
                    self._give(activation, f"{place}.{name}.activation", "float16", made, x=result)
        for name, shape in _scores(layer, asked, rows, keys_last):
            scores = self._give("matmul", f"{place}.{name}.scores", "float16", shape, x=x)
            self._give("softmax", f"{place}.{name}.shares", "float16", shape, x=scores)
        return self._give("add", f"{place}", "float16", (1, x.shape[1], 1, asked), x=x)

    def _choose(self, name: str, logits: Value, tokens: int) -> Value:
        """The ids of the best tokens: the sum of the piece's first one and the column."""
        return self._give("add", name, "int32", (1, tokens), x=logits)

    def _write(self, place: str, written: int, rows: int) -> None:
        """What a layer writes to the first state that has as many rows as its cache."""
        for state in [state for state in self.function.states if state.shape[-2] >= rows][:1]:
            update = _value(f"{place}.new", "float16", (*state.shape[:-2], written, state.shape[-1]))
            self._give("slice_update", place, "float16", state.shape, x=state, update=update)

    def _weight(self, name: str, shape: Shape) -> Value:
        """A parameter as it is stored, the same for every step of a draft; one that an operation makes of its parts has
        these as operands."""
        name = STEP.sub("", name)
        if (name, shape) not in self.weights:
            self.weights[name, shape] = self._store(name, shape)
        return self.weights[name, shape]

    def _store(self, name: str, shape: Shape) -> Value:
        storage = self.compression.storage(name.partition("[")[0], shape)
        if storage.operation is None:
            return Value(name, "float16", shape, constant=True, blob=(name, 0))
        parts = {
            part.operand: Value(f"{name}.{part.operand}", part.dtype, part.shape, constant=True, blob=(name, number))
            for number, part in enumerate(storage.parts(shape))
        }
        made = self._give(storage.operation, f"{name} {'x'.join(map(str, shape))}", "float16", shape, **parts)
        made.constant = True
        return made

    def _give(self, kind: str, name: str, dtype: str, shape: Shape, **operands: Value) -> Value:
        result = Value(name, dtype, shape)
        bound: dict[str, tuple[Value, ...]] = {key: (value,) for key, value in operands.items()}
        result.producer = Operation(len(self.function.operations), kind, bound, (result,))
        self.function.operations.append(result.producer)
        return result


def _value(name: str, dtype: str, shape: Shape) -> Value:
    return Value(name, dtype, shape)


def _activation_behind(layer: Layer, name: str) -> str | None:
    """What is taken of a projection's result, where it is an MLP's first."""
    parent, _, leaf = name.rpartition(".")
    module = layer.get_submodule(parent) if parent else layer
    function = getattr(module, "activation", None)
    if leaf != ("gate" if hasattr(module, "gate") else "up") or function is None:
        return None
    from coreai_recipes.primitives.mlp import ACTIVATIONS as KNOWN

    named = next((word for word, known in KNOWN.items() if known is function), "")
    return ACTIVATIONS.get(named)


def _scores(layer: Layer, asked: int, rows: int, keys_last: bool) -> Iterator[tuple[str, Shape]]:
    """The scores of one layer: keys last, or queries last."""
    attention = layer.attention
    heads, groups = getattr(attention, "num_heads", None), getattr(attention, "num_kv_heads", None)
    if isinstance(heads, int) and isinstance(groups, int):
        yield (
            "attention",
            (groups, heads // groups, rows) if keys_last else (groups, rows, heads // groups * asked),
        )
