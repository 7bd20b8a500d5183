"""The transformers model that a recipe must equal, run one layer at a time.

The model is built on the meta device by transformers itself. A module gets its weights right before it runs and gives
them back right after; of a token table only the rows in use are read, and the head goes through in blocks of rows.
So the peak is one layer, whatever the depth, and the code is transformers' own for every family.
"""

import copy
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coreai_recipes.checkpoint.adapted import AdaptedCheckpoint
from coreai_recipes.checkpoint.base import Checkpoint
from coreai_recipes.recipe.schema import LatentAttention, MixtureAttention, Recipe
from coreai_recipes.verification.half_sums import SumsInFloat16
from coreai_recipes.verification.random_checkpoint import RandomCheckpoint
from coreai_recipes.verification.reference_config import make_config
from coreai_recipes.verification.reference_rotary import UnknownStructure, angles_of_layer, pairs_apart
from coreai_recipes.verification.reference_weights import Weights
from coreai_recipes.verification.stored_names import StoredNames
from coreai_recipes.verification.their_adapters import TheirMerge
from coreai_recipes.verification.ties import ExpertChoice, TopK

# the ends of the names of what mixes positions, in transformers
MIXERS = (
    "Attention", "Attention2", "ShortConv", "GatedDeltaNet", "MambaLayer",
    "BambaMixer", "Mamba2Mixer", "MambaMixer", "RecurrentBlock", "LightningAttention",
)  # fmt: skip
ATTENTION = "coreai_recipes"  # under which name transformers knows `_recording_attention`

# Where `_recording_attention` leaves what it is given: (attention module, query, key, the factor of the scores).
_records: ContextVar[list[tuple[nn.Module, Tensor, Tensor, float | None]] | None] = ContextVar("records", default=None)


@dataclass(frozen=True)
class LayerRecord:
    """What one layer was given and what it made of it, each (S, features); q and k are those after the rotary.

    `attention` is the attention branch before the residual sum. Families from before transformers' attention interface
    (BLOOM, MPT, Falcon) keep q and k to themselves: None. So is the attention of a layer that has none.
    """

    index: int
    input: Tensor
    query: Tensor | None
    key: Tensor | None
    attention: Tensor | None
    output: Tensor
    choice: ExpertChoice | None = None  # of experts

    def compared(self) -> dict[str, Tensor]:
        """What is compared, in the order of computation."""
        found = {"query": self.query, "key": self.key, "attention": self.attention, "output": self.output}
        return {name: tensor for name, tensor in found.items() if tensor is not None}


class Reference:
    """transformers' own model of the checkpoint's config and weights, in `dtype`, tied as transformers ties it.

    `exchange` may give another tensor in the place of one that was read; `sums` are in force while it runs.
    """

    def __init__(
        self,
        recipe: Recipe,
        checkpoint: Checkpoint,
        dtype: torch.dtype = torch.float32,
        exchange: Callable[[Tensor], Tensor] | None = None,
        sums: SumsInFloat16 | None = None,
    ) -> None:
        from transformers import AutoModelForCausalLM

        if recipe.reference is None:
            raise ValueError(f"{recipe.name} has no reference")
        register_attention()
        config, origin = make_config(recipe, checkpoint)
        config._experts_implementation = "eager"  # the grouped product wants widths of whole 16 bytes
        with torch.device("meta"):
            self.model = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=choose_attention(config)
            ).eval()
        kinds = recipe.model.layer_kinds
        self._score_scales = [recipe.model.kinds[name].score_scale for name in kinds]
        self._mixes = [recipe.model.kinds[name].attention.kind != "none" for name in kinds]
        specs = [recipe.model.kinds[name].attention for name in kinds]
        self._turning = [spec.rotary_dim if isinstance(spec, LatentAttention) else 0 for spec in specs]
        self._repeated = [spec.num_kv_heads if isinstance(spec, MixtureAttention) else None for spec in specs]
        self.layers = _find_layers(self.model, config.num_hidden_layers)
        merge = None
        if isinstance(checkpoint, AdaptedCheckpoint):
            merge = TheirMerge(self.model, checkpoint.adapters).merge
            checkpoint = checkpoint.base
        source = origin.reading.choose_tensors(self.model, checkpoint) if origin.reading else checkpoint
        if isinstance(source, RandomCheckpoint):
            there = StoredNames(self.model, source.tensors, origin.wrapper)
            parameters = self.model.named_parameters()
            source.add_ignored({name: tuple(p.shape) for name, p in parameters if there.find(name) is None})
        self._weights = Weights(self.model, source, origin.wrapper, exchange, merge)
        self._on_layer: Callable[[LayerRecord], None] | None = None
        self._attention: Tensor | None = None
        self._top_k, self._sums = TopK(), sums
        if sums is not None:
            sums.watch(self.model)
        restore_buffers(self.model)
        self._stream()

    def run(self, input_ids: Sequence[int], on_layer: Callable[[LayerRecord], None] | None = None) -> Tensor:
        """Logits (S, V) in float32; `on_layer` is called after each layer, while nothing is filled."""
        self._on_layer = on_layer
        token = _records.set([])
        try:
            with torch.inference_mode(), self._top_k, self._sums or nullcontext():
                ids = torch.tensor([list(input_ids)])
                logits = self.model(input_ids=ids, use_cache=False, **keep_all(self.model, len(input_ids))).logits
        finally:
            _records.reset(token)
        return logits[0].float()  # type: ignore[no-any-return]

    def position_embeddings(self, positions: Tensor, dtype: torch.dtype) -> list[tuple[Tensor, Tensor] | None]:
        """For each layer the cos and sin (1, S, R) that the model gives it at integer `positions` (S,), if it does.

        They are in `dtype`, as for hidden states in it. No weight is read: the layers only look at what they are given.
        """
        found: list[tuple[Tensor, Tensor] | None] = []

        # families from before transformers' own recording give their hidden states first in a tuple, as Falcon-H1's do,
        # Bamba's in a pair
        in_tuple = not getattr(self.model.base_model, "_can_record_outputs", None)
        in_tuple |= self.model.config.model_type == "falcon_h1"
        in_pair = self.model.config.model_type == "bamba"

        def look(*arguments: Any, **named: Any) -> Any:
            given = named.get("position_embeddings", arguments[1] if len(arguments) > 1 else None)
            is_pair = isinstance(given, tuple) and len(given) == 2 and all(isinstance(g, Tensor) for g in given)
            if isinstance(given, Tensor) and given.is_complex():
                raise UnknownStructure("transformers turns by complex numbers, whose products torch rounds otherwise")
            found.append(given if is_pair else angles_of_layer(self.layers[len(found)], positions, dtype))
            if len(found) == len(self.layers):
                raise _SeenAll
            hidden = arguments[0] if arguments else named["hidden_states"]
            if in_pair or "prev_topk_indices" in named:  # GLM-5's layers hand on what an indexer chose
                return hidden, None
            return (hidden,) if in_tuple else hidden

        # what holds the layers, a copy that shares every module: only they are exchanged for lookers
        holders = self.model.base_model.modules()
        model: Any = copy.copy(next(m for m in holders if any(child is self.layers for child in m.children())))
        model._modules = dict(model._modules)
        name = next(n for n, child in model._modules.items() if child is self.layers)
        model._modules[name] = nn.ModuleList(_Looker(layer, look) for layer in self.layers)
        if "altup_projections" in model._modules:  # nor does anybody look at Gemma 3n's other streams
            model._modules["altup_projections"] = nn.ModuleList(map(nn.Identity, model.altup_projections))
            model.project_per_layer_inputs = lambda embedded, _: embedded.unsqueeze(2).expand(
                -1, -1, len(self.layers), -1
            )
        elif hasattr(model, "hidden_size_per_layer_input"):
            model.hidden_size_per_layer_input = 0  # these inputs are made of token ids, and nobody looks at them here
        embeddings = torch.zeros(1, len(positions), model.config.hidden_size, dtype=dtype)
        kept = keep_all(model, len(positions))
        try:
            with torch.inference_mode():
                model(inputs_embeds=embeddings, position_ids=positions[None], use_cache=False, **kept)
        except _SeenAll:
            return found
        raise UnknownStructure(f"transformers' {type(model).__name__} did not run its layers")

    def fill_all(self) -> nn.Module:
        """The whole model with its weights in memory, to generate with. Nothing streams any more."""
        for handle in self._handles:
            handle.remove()
        self.model.get_output_embeddings().__dict__.pop("forward", None)
        self._weights.fill(self.model)
        self.model.tie_weights()
        return self.model  # type: ignore[no-any-return]

    def _stream(self) -> None:
        """Hook every module outside of the layers by itself, each layer as a whole."""
        head = self.model.get_output_embeddings()
        inside = {id(module) for layer in self.layers for module in layer.modules()}
        self._handles: list[Any] = []
        for module in self.model.modules():
            if id(module) in inside or module is head or not self._weights.owns_any(module):
                continue
            if isinstance(module, nn.Embedding) and _looks_up_tokens(module):
                module.padding_idx = None  # only for gradients, and it would be checked against the few rows
                # Llama 4 takes ids to where the table is
                none = torch.zeros(1, 1, dtype=module.weight.dtype).expand(module.weight.shape)
                module.weight = nn.Parameter(none, requires_grad=False)
                self._handles.append(module.register_forward_pre_hook(self._weights.fill_rows))
            else:
                self._handles.append(module.register_forward_pre_hook(lambda module, _: self._weights.fill(module)))
            self._handles.append(module.register_forward_hook(lambda module, *_: self._weights.empty(module)))
        for index, layer in enumerate(self.layers):
            for module in layer.modules():
                self._handles.append(module.register_forward_hook(self._keep_attention, with_kwargs=True))
            self._handles.append(layer.register_forward_pre_hook(lambda layer, _: self._begin(layer)))
            hook = _LayerHook(index, self._end)
            self._handles.append(layer.register_forward_hook(hook, with_kwargs=True))
        if not isinstance(head, nn.Linear):
            raise UnknownStructure(f"transformers' {type(self.model).__name__} has no linear head")
        head.forward = lambda input: self._weights.multiply(head, input)  # type: ignore[method-assign]

    def _begin(self, layer: nn.Module) -> None:
        self._attention = None
        records = _records.get()
        if records is not None:
            records.clear()
        self._top_k.noted.clear()
        self._weights.fill(layer)

    def _keep_attention(self, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        records = _records.get()
        if records and records[-1][0] is module:
            self._attention = first(output)
        elif not records and type(module).__name__.endswith(MIXERS):
            # BLOOM's attention adds the residual itself
            arguments = inspect.signature(module.forward).bind(*given, **named).arguments
            residual = arguments.get("residual")
            self._attention = first(output) if residual is None else first(output) - residual
            # GPT-NeoX Japanese hands its last layer's bias over, for the layer to add it
            if isinstance(output, tuple) and isinstance(output[-1], Tensor) and output[-1].dim() == 1:
                self._attention = self._attention + output[-1]

    def _end(self, index: int, layer: nn.Module, hidden: Tensor, output: Any) -> None:
        self._weights.empty(layer)
        if self._on_layer is None:
            return
        records = _records.get()
        if self._attention is None and self._mixes[index]:
            raise UnknownStructure(f"transformers' {type(layer).__name__} has no attention that is known")
        if self._attention is not None:  # Falcon-H1 multiplies it behind the module
            self._attention = self._attention * float(getattr(layer, "attn_out_multiplier", 1.0))
        query, key = None, None
        if records:
            _, query, key, scale = records[-1]
            ours = self._score_scales[index]
            if scale is not None and not math.isclose(scale, ours, rel_tol=1e-6):
                query = query * (scale / ours)  # OPT scales its queries before they are handed over
            key = key[:, : self._repeated[index]]  # JetMoE hands its keys over once for each of a token's experts
            if self._turning[index] and hasattr(sys.modules[type(layer).__module__], "apply_rotary_emb"):
                query, key = (pairs_apart(x, self._turning[index]) for x in (query, key))
        self._on_layer(
            LayerRecord(
                index,
                input=_stream_by_position(hidden),
                query=None if query is None else _by_position(query.transpose(1, 2)),
                key=None if key is None else _by_position(key.transpose(1, 2)),
                attention=None if self._attention is None else _by_position(self._attention),
                output=_stream_by_position(first(output)),
                choice=self._top_k.choice(),
            )
        )


class _SeenAll(Exception):
    """Ends a forward pass whose remainder nobody needs."""


class _Looker(nn.Module):
    """Stands in for a decoder layer, with the attributes that its model asks of it."""

    def __init__(self, layer: nn.Module, look: Callable[..., Any]) -> None:
        super().__init__()
        self._layer = [layer]  # not a submodule
        self._look = look

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"][0], name)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self._look(*arguments, **named)


@dataclass(frozen=True)
class _LayerHook:
    index: int
    end: Callable[[int, nn.Module, Tensor, Any], None]

    def __call__(self, layer: nn.Module, arguments: Any, named: dict[str, Any], output: Any) -> None:
        self.end(self.index, layer, arguments[0] if arguments else named["hidden_states"], output)


def keep_all(model: Any, length: int) -> dict[str, Tensor]:
    """The argument that keeps every row, where the model has it.

    Given none, Gemma 4 with shared caches and without per-layer embeddings cuts inputs that are not there
    (transformers 5.23).
    """
    takes_it = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": torch.arange(length)} if takes_it else {}


def first(output: Any) -> Tensor:
    """The hidden states of a module's output: transformers gives them alone, or first in a tuple or a list."""
    return output[0] if isinstance(output, tuple | list) else output  # type: ignore[no-any-return]


def _by_position(x: Tensor) -> Tensor:
    """(1, S, ...) -> (S, features) in float32."""
    return x[0].reshape(x.shape[1], -1).float()


def _stream_by_position(x: Tensor) -> Tensor:
    """(1, S, C), or (N, 1, S, C) of N streams, -> (S, N * C) in float32."""
    return _by_position(x if x.dim() == 3 else x.permute(1, 2, 0, 3))


def _find_layers(model: Any, count: int) -> nn.ModuleList:
    for child in model.base_model.modules():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return child
    raise UnknownStructure(f"transformers' {type(model).__name__} has no list of {count} layers")


def restore_buffers(model: Any) -> None:
    """Give the buffers that no checkpoint holds (inv_freq above all) their values again, as transformers itself does
    after it has loaded a model by way of the meta device: `_init_weights` computes them, in their own dtype, of their
    module or of the model that holds it (Falcon-H1's mup_vector)."""
    owners: dict[str, Any] = {}  # a model may hold another, which knows its own modules better
    holders: dict[str, Any] = {}
    for path, module in model.named_modules():
        if hasattr(module, "_init_weights"):
            owners[path] = module
        names = [name for name in module._non_persistent_buffers_set if module._buffers.get(name) is not None]
        for name in names:
            module._buffers[name] = torch.full_like(module._buffers[name], 0, device="cpu")
        if names:
            inside = [owner for owner in owners if not owner or path == owner or path.startswith(f"{owner}.")]
            owner = max(inside, key=len)
            owners[owner]._init_weights(module)
            if not all(module._buffers[name].any() for name in names):
                holders[owner] = owners[owner]
    for holder in holders.values():
        holder._init_weights(holder)


def choose_attention(config: Any) -> str:
    """The implementation that notes q and k, where the family calls its attention by name; else torch's own, which adds
    Falcon's alibi once where its eager form adds it twice; else the only one there is."""
    from transformers import AutoModelForCausalLM

    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    if model_class._supports_attention_backend:
        return ATTENTION
    return "sdpa" if model_class._supports_sdpa else "eager"


def _looks_up_tokens(module: nn.Embedding) -> bool:
    """Whether it is called with token ids; OPT's learned positions are looked up by a mask."""
    return next(iter(inspect.signature(module.forward).parameters)) in ("input", "input_ids")


def register_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(ATTENTION, _recording_attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)


def _recording_attention(module: nn.Module, query: Tensor, key: Tensor, *arguments: Any, **named: Any) -> Any:
    """The family's own eager attention, after a note of q and k."""
    records = _records.get()
    if records is not None:
        records.append((module, query, key, named.get("scaling")))
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise UnknownStructure(f"{type(module).__module__} has no eager_attention_forward")
    chosen = named.get("indices")
    if chosen is not None:  # keys that an indexer chose (B, S, k): transformers puts them into the mask of eager alone
        value, mask = arguments
        is_hidden = torch.ones_like(mask, dtype=torch.bool).scatter(3, chosen.long().unsqueeze(1), False)
        arguments = (value, mask.masked_fill(is_hidden, torch.finfo(mask.dtype).min))
    return eager(module, query, key, *arguments, **named)
