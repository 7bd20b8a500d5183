"""Which pieces of a recipe are converted, each once: the front, a layer of each kind, the pick of a token, the head.

A fragment's weights are inputs of it, not constants: no conversion ever sees a real weight, and the linker turns each
of these inputs into a stored constant. `slot`, a layer's place in the states, is an input for the same reason.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coreai_recipes.model import Decoder, Front, make_cache

FLOAT, INTEGER = "float16", "int32"
WEIGHT_PREFIX = "weight_"


@dataclass(frozen=True)
class Port:
    """An input or output of a fragment."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Fragment:
    """A piece to convert: `module` takes `inputs` in their order and gives `outputs` in theirs.

    Attributes:
        parameters: inputs that are weights, and the parameter each stands for, within the piece.
        states: the names of the module's buffers that are states.
        float32_outputs: what must be computed in float32 up to the output itself.
        tables: inputs that are vocabulary-sized, traced with a few rows instead.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    parameters: dict[str, str]
    states: dict[str, Port] = field(default_factory=dict)
    float32_outputs: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Everything but the source code that the converted piece depends on."""
        return {
            "name": self.name,
            "inputs": {name: [port.dtype, *port.shape] for name, port in self.inputs.items()},
            "outputs": list(self.outputs),
            "states": {name: list(port.shape) for name, port in self.states.items()},
            "module": describe(self.module),
        }


def describe(module: nn.Module) -> list[Any]:
    """The classes of a module tree and every plain value they hold, as JSON that is the same in every process."""
    if isinstance(module, _Piece):
        return [_plain(module), *(describe(part) for part in module.piece)]
    return [[name, _plain(part)] for name, part in module.named_modules()]


def _plain(module: nn.Module) -> list[Any]:
    """A module's class and its public plain values; functions by name, for their address differs in each process."""
    kept: dict[str, Any] = {}
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or name in ("training", "piece"):
            continue
        if isinstance(value, partial):
            kept[name] = [value.func.__qualname__, repr(value.args), repr(value.keywords)]
        elif callable(value):
            kept[name] = value.__qualname__
        else:
            kept[name] = repr(value)
    return [f"{type(module).__module__}.{type(module).__qualname__}", kept]


def source_files(module: nn.Module) -> set[Path]:
    """The files in which the classes of a module tree are written."""
    pieces = module.piece if isinstance(module, _Piece) else (module,)
    return {Path(inspect.getfile(type(part))) for piece in pieces for part in piece.modules()}


def front_fragment(decoder: Decoder, queries: int) -> Fragment:
    """input_ids, position (and count, if a ring needs it) -> x, and what each kind's layers are given."""
    front, model = decoder.front, decoder.recipe.model
    inputs = {"input_ids": Port(INTEGER, (1, queries)), "position": Port(INTEGER, (1,))}
    if queries > 1 and any(spec.window is not None for spec in front.states.values()):
        inputs["count"] = Port(INTEGER, (1,))
    table = WEIGHT_PREFIX + "embedding"
    inputs[table] = Port(FLOAT, (model.vocab_size, model.hidden_size))
    outputs = {"x": Port(FLOAT, (1, model.hidden_size, 1, queries))}
    turning = [name for name in front.kinds if front.angle_group(name) == name and front.pairs(name)]
    for name in turning:
        for half in ("cos", "sin"):
            outputs[f"{half}_{name}"] = Port(FLOAT, (1, front.pairs(name), 1, queries))
    for name, spec in front.states.items():
        if front.mask_group(name) == name:
            ring = spec.window is not None
            seen = spec.rows + queries if ring and queries > 1 else spec.rows
            outputs[f"mask_{name}"] = Port(FLOAT, (1, seen, 1, queries))
            if ring:
                outputs[f"place_{name}"] = Port(INTEGER, (spec.rows if queries > 1 else 1,))
    return Fragment(
        f"front_{queries}",
        _FrontPiece(front, list(outputs), "count" in inputs),
        inputs,
        outputs,
        {table: "embedding.weight"},
        float32_outputs=tuple(name for name in outputs if name.startswith(("cos_", "sin_"))),
        tables=(table,),
    )


def layer_fragment(decoder: Decoder, kind: str, queries: int) -> Fragment:
    """x and what the front computed -> x of the next layer; reads and writes the kind's states."""
    front, model = decoder.front, decoder.recipe.model
    layer = next(layer for layer in decoder.stack if layer.kind == kind)
    spec = front.states[kind]
    ring = spec.window is not None
    x = Port(FLOAT, (1, model.hidden_size, 1, queries))
    inputs = {"x": x}
    if front.pairs(kind):
        inputs |= {half: Port(FLOAT, (1, front.pairs(kind), 1, queries)) for half in ("cos", "sin")}
    inputs["mask"] = Port(FLOAT, (1, spec.rows + queries if ring and queries > 1 else spec.rows, 1, queries))
    inputs["slot"] = Port(INTEGER, (1,))
    if ring:
        inputs["place"] = Port(INTEGER, (spec.rows if queries > 1 else 1,))
    else:
        inputs["position"] = Port(INTEGER, (1,))
    parameters = {WEIGHT_PREFIX + name.replace(".", "_"): name for name, _ in layer.named_parameters()}
    inputs |= {alias: Port(FLOAT, tuple(layer.get_parameter(name).shape)) for alias, name in parameters.items()}
    states = {name: Port(FLOAT, spec.shape) for name in ("keys", "values")}
    piece = _LayerPiece(layer, spec.shape, list(inputs), parameters)
    return Fragment(f"layer_{kind}_{queries}", piece, inputs, {"y": x}, parameters, states)


def pick_fragment(decoder: Decoder, queries: int) -> Fragment:
    """x of all tokens, count -> x of the last real one."""
    hidden = decoder.recipe.model.hidden_size
    return Fragment(
        f"pick_{queries}",
        _PickPiece(),
        {"x": Port(FLOAT, (1, hidden, 1, queries)), "count": Port(INTEGER, (1,))},
        {"y": Port(FLOAT, (1, hidden, 1, 1))},
        {},
    )


def head_fragment(decoder: Decoder, queries: int) -> Fragment:
    """x -> logits (1, queries, V)."""
    model = decoder.recipe.model
    parameters = {f"{WEIGHT_PREFIX}norm_{name}": f"norm.{name}" for name, _ in decoder.norm.named_parameters()}
    inputs = {"x": Port(FLOAT, (1, model.hidden_size, 1, queries))}
    inputs |= {alias: Port(FLOAT, tuple(decoder.get_parameter(name).shape)) for alias, name in parameters.items()}
    table = WEIGHT_PREFIX + "head"
    inputs[table] = Port(FLOAT, (model.vocab_size, model.hidden_size, 1, 1))
    piece = _HeadPiece(decoder.norm, decoder.head, list(parameters.values()))
    parameters[table] = "embedding.weight" if model.head.tied else "head.weight"
    outputs = {"logits": Port(FLOAT, (1, queries, model.vocab_size))}
    return Fragment(f"head_{queries}", piece, inputs, outputs, parameters, tables=(table,))


class _Piece(nn.Module):
    """A wrapper to be traced. The wrapped modules are held in a tuple: their parameters come in as inputs instead."""

    def __init__(self, *piece: nn.Module) -> None:
        super().__init__()
        self.piece = piece


@contextmanager
def parameters_as(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """The module with `tensors` in place of its parameters; torch.func.functional_call refuses to be traced."""
    owners = {name: (module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in tensors}
    before = {name: owner._parameters[leaf] for name, (owner, leaf) in owners.items()}
    try:
        for name, (owner, leaf) in owners.items():
            owner._parameters[leaf] = tensors[name]  # type: ignore[assignment]
        yield
    finally:
        for name, (owner, leaf) in owners.items():
            owner._parameters[leaf] = before[name]


class _FrontPiece(_Piece):
    def __init__(self, front: Front, outputs: list[str], counts: bool) -> None:
        super().__init__(front)
        self.outputs, self.counts = outputs, counts

    def forward(self, input_ids: Tensor, position: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        count = rest[0] if self.counts else torch.ones(1, dtype=torch.int32)
        with parameters_as(self.piece[0], {"embedding.weight": rest[-1]}):
            x, inputs = self.piece[0](input_ids, position, count)
        named = {"x": x}
        for kind, given in inputs.items():
            named |= {f"cos_{kind}": given.cos, f"sin_{kind}": given.sin, f"mask_{kind}": given.mask}
            named[f"place_{kind}"] = given.place
        return tuple(named[name] for name in self.outputs)


class _LayerPiece(_Piece):
    keys: Tensor
    values: Tensor

    def __init__(self, layer: nn.Module, state: tuple[int, ...], inputs: list[str], parameters: dict[str, str]) -> None:
        super().__init__(layer)
        self.inputs, self.parameter_names = inputs, parameters
        # numpy's zeros take no memory but for the layer that a trace writes: torch.zeros writes all of them, and in
        # torch.empty there may be a NaN, which coremltools' own comparison of the states then calls inconsistent
        self.register_buffer("keys", torch.from_numpy(np.zeros(state, np.float32)))
        self.register_buffer("values", torch.from_numpy(np.zeros(state, np.float32)))

    def forward(self, *given: Tensor) -> Tensor:
        named = dict(zip(self.inputs, given, strict=True))
        weights = {name: named[alias] for alias, name in self.parameter_names.items()}
        empty = torch.empty(0, device="cpu")
        cos, sin = named.get("cos", empty), named.get("sin", empty)
        cache = make_cache(self.keys, self.values, named["slot"], named.get("position", empty), named.get("place"))
        with parameters_as(self.piece[0], weights):
            return self.piece[0](named["x"], cos, sin, named["mask"], cache)  # type: ignore[no-any-return]


class _PickPiece(_Piece):
    def forward(self, x: Tensor, count: Tensor) -> Tensor:
        return x.index_select(3, count - 1)


class _HeadPiece(_Piece):
    def __init__(self, norm: nn.Module, head: nn.Module, parameters: list[str]) -> None:
        super().__init__(norm, head)
        self.parameter_names = [name.removeprefix("norm.") for name in parameters]

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        norm, head = self.piece
        named = dict(zip(self.parameter_names, weights[:-1], strict=True))
        with parameters_as(norm, named):
            return head(norm(x), weights[-1])  # type: ignore[no-any-return]
