"""Recipe -> Decoder: the torch modules of a recipe, composed on the meta device, and filled with weights.

The Decoder is what is compared with transformers, and its very modules are what the exporter converts. It has the
package's own form: one sequence, channels first (1, C, 1, S), states that are read and written by position.
"""

from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coreai_recipes.decoder.front import CallShape, Front
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.decoder.states import places_of, slots_of, states_of
from coreai_recipes.primitives.altup import GatheredNorm
from coreai_recipes.primitives.cache import Cache, NoCache
from coreai_recipes.primitives.carried import Carried
from coreai_recipes.primitives.layer import PLAIN, Form, Layer
from coreai_recipes.primitives.layer_inputs import LayerInputs
from coreai_recipes.primitives.norm import build_norm
from coreai_recipes.primitives.per_layer import PerLayerInput, slice_of
from coreai_recipes.primitives.registry import primitive
from coreai_recipes.recipe.schema import MODEL, Recipe

ReadParameter = Callable[[str], Tensor]
PER_LAYER_TABLE = "per_layer_table.weight"
EMBEDDED = "embedding"  # the input of a package that takes rows of the embedding table, where the host looks them up
PER_LAYER_ROWS = "per_layer"  # the input of a package that takes the table's rows, which the host looks up


class Decoder(StackModule):
    """A decoder language model, built from a recipe. Parameters are on the meta device until filled.

    Its `form` is the reference's own, or the one that is exported: `filling` rewrites the weights to match. Its states
    hold the recipe's context, or `positions` where fewer are needed: a recipe with a shorter context would be another
    model, for the context chooses between longrope's factors.
    """

    def __init__(self, recipe: Recipe, form: Form = PLAIN, positions: int | None = None) -> None:
        super().__init__(recipe, MODEL, form)
        model, scale = recipe.model, form.residual_scale
        per_layer = model.embedding.per_layer
        self.of_tokens = "embedding.weight" if model.head.tied else "head.weight", "head.bias"
        self.embedding = primitive("embedding", "table")(
            model.vocab_size, model.hidden_size, model.embedding_scale, model.embedding, scale, model.altup
        )
        self.per_layer_table: nn.Embedding | None = None
        self.per_layer: PerLayerInput | None = None
        if per_layer is not None:
            count = len(model.layer_kinds)
            # nn.Embedding's own start draws random numbers, which on the meta device first imports 800 modules of torch
            rows = torch.empty(per_layer.vocab_size, count * per_layer.size)
            self.per_layer_table = nn.Embedding.from_pretrained(rows, freeze=True)  # type: ignore[no-untyped-call]
            self.tables = (PER_LAYER_TABLE,)
            self.per_layer = PerLayerInput(per_layer, count, model.hidden_size, model.norm, scale)
        self.layers = nn.ModuleList(
            Layer(model, name, per_layer, form, model.altup, model.laurel_rank) for name in model.layer_kinds
        )
        norm, head = model.final_norm, model.head
        self.norm = build_norm(form.of_stream(norm), model.hidden_size) if norm else nn.Identity()
        if model.altup is not None:
            self.norm = GatheredNorm(model.altup, model.hidden_size, self.norm, scale)
        self.head = primitive("head", "linear")(
            model.vocab_size,
            model.hidden_size,
            head.tied,
            head.softcap,
            head.bias,
            head.scale,
            model.embedding.width,
            form.head_scale,
            head.transform,
        )
        # not a submodule: it holds no weights but those of modules that have their names already
        self._front = [Front(recipe, self.embedding, self.per_layer, form.folded, positions)]
        self.slots, self.places = slots_of(recipe, self.front.states), places_of(recipe)

    @property
    def front(self) -> Front:
        return self._front[0]

    def unused(self) -> Iterator[str]:
        """The keys and values that layers which share a cache do not compute."""
        for index, kind in enumerate(self.recipe.model.layer_kinds):
            if self.front.shares(kind):
                for part in ("k", "v", "k_norm", "v_norm"):
                    yield from (f"layers.{index}.attention.{part}.{leaf}" for leaf in ("weight", "bias"))

    def call(self, function: str) -> CallShape:
        """A call of a function of the package."""
        return self.front.call_of(function, self.recipe.export.functions.queries[function])

    def make_states(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Empty states by name, as the package declares them, and zeros of what it carries."""
        shapes: dict[str, tuple[int, ...]] = {name: state.shape for name, state in states_of(self.front.states).items()}
        shapes |= {name: spec.shape for name, spec in self.front.carried.items()}
        return {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}

    def forward(
        self,
        input_ids: Tensor,
        position: int = 0,
        count: int | None = None,
        states: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits (1, S, V) of `input_ids` (1, S), whose first token stands at `position`.

        With `states`, earlier calls are seen and this one is written, but for what comes after the first `count`
        tokens. Without, the sequence is all there is.
        """
        return self.logits(self.hidden(input_ids, position, count, states))

    def hidden(
        self,
        input_ids: Tensor,
        position: int = 0,
        count: int | None = None,
        states: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """As `forward`, what comes out of the last layer, (N, C, 1, S) of N streams."""
        at = torch.tensor([position], dtype=torch.int32)
        real = torch.tensor([input_ids.shape[1] if count is None else count], dtype=torch.int32)
        call = self.front.call(input_ids.shape[1], cached=states is not None)
        x, inputs, per_layer = self.front(call, input_ids, at, real, self.per_layer_rows(input_ids))
        caches: dict[str, Cache] = {}  # the last one of each kind, which other layers may share
        for index, layer in enumerate(self.stack):
            given, owner = inputs[layer.kind], self.front.owners[layer.kind]
            if owner == layer.kind:
                caches[owner] = NoCache() if states is None else self.cache(index, states, given)
            of_layer = None if per_layer is None else slice_of(per_layer, torch.tensor([index]))
            x = layer(x, given, caches[owner], of_layer)
            if states is not None:
                self.carry(index, states, caches[owner])
        return cast(Tensor, x)

    def per_layer_rows(self, input_ids: Tensor) -> Tensor | None:
        """The rows (1, S, L * P) of the per-layer table, which a package is handed; None where there is none."""
        table = self.per_layer_table
        return None if table is None else F.embedding(rows_of_tokens(input_ids, table.num_embeddings), table.weight)

    def cache(self, index: int, states: dict[str, Tensor], given: LayerInputs) -> Cache:
        """The cache of layer `index` in `states`."""
        kind, place = self.stack[index].kind, self.places[index]
        specs = [spec for spec in self.front.carried.values() if spec.kind == kind]
        carried = Carried({spec.tensor.name: states[spec.name][place : place + 1] for spec in specs})
        if not self.front.attends(kind):
            return NoCache(carried)
        spec, slot = self.front.state(kind), torch.tensor([self.slots[index]], dtype=torch.int32)
        values = None if spec.values is None else states[spec.values]
        return given.cache(states[spec.keys], values, slot, carried)

    def carry(self, index: int, states: dict[str, Tensor], cache: Cache) -> None:
        """Put what layer `index` has left in its cache into `states`, for the next call."""
        for spec in self.front.carried.values():
            if spec.kind == self.stack[index].kind:
                states[spec.name][self.places[index]] = cache.carried.left[spec.tensor.name][0]

    def logits(self, x: Tensor) -> Tensor:
        """Logits (1, S, V) of the last hidden state x (N, C, 1, S)."""
        weight = cast(Tensor, self.embedding.weight)
        table = weight[..., None, None] if self.recipe.model.head.tied else None  # (V, C, 1, 1)
        return cast(Tensor, self.head(self.norm(x), table))


def rows_of_tokens(input_ids: Tensor, rows: int) -> Tensor:
    """The rows of a per-layer table of so many that tokens take: that of token 0 where they have none of their own
    (transformers, modeling_gemma3n, `get_per_layer_inputs`)."""
    return torch.where(input_ids < rows, input_ids, 0)


def table_file(parameter: str) -> str:
    """The file beside a package that holds one of `Decoder.tables`, raw."""
    return f"{parameter.removesuffix('.weight')}.bin"


def build_decoder(recipe: Recipe, form: Form = PLAIN, positions: int | None = None) -> Decoder:
    """The recipe's Decoder on the meta device, its states for the whole context or for `positions`."""
    return Decoder.build(recipe, form, positions=positions)


def count_parameters(recipe: Recipe) -> int:
    """How many numbers the recipe takes of its checkpoint: those of its decoder, a tied table counted once."""
    return sum(parameter.numel() for parameter in build_decoder(recipe).parameters())


def exported_form(recipe: Recipe) -> Form:
    """The form in which the recipe's decoder is exported."""
    export = recipe.export
    layout, norm = export.mlp_layout == "8x8", export.norm == "mirrored"
    scales = export.scale, export.mlp_scale, export.head_scale
    return Form(export.rotary_fold, *scales, layout, norm, recipe.regroups, tuple(export.float32))


def weights_form(recipe: Recipe) -> Form:
    """The form in whose order the exported one has its weights, without its scales: they are factors."""
    return Form(folded=recipe.export.rotary_fold, regrouped=recipe.regroups)


def fill(module: nn.Module, read: ReadParameter, prefix: str = "") -> None:
    """Give every parameter of `module` the tensor that `read(prefix + name)` gives, float32, in place of meta ones."""
    for name, parameter in list(module.named_parameters()):
        tensor = read(prefix + name).to(torch.float32).reshape(parameter.shape)
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def empty(module: nn.Module) -> None:
    """Give back the memory of a filled module: its parameters return to the meta device."""
    module.to("meta")
