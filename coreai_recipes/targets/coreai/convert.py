"""One fragment -> one graph of Core AI's IR as bytecode, by coreai-torch."""

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from coreai_recipes.errors import UserError, describe
from coreai_recipes.export.fragments import INTEGER, Fragment, LayerPiece, Port
from coreai_recipes.export.open_sizes import OpenSize
from coreai_recipes.targets.coreai.factors import keep_factors
from coreai_recipes.targets.coreai.recording import recorded
from coreai_recipes.targets.coreai.rope import register_rope
from coreai_recipes.targets.coreai.rows import READ, READ_FIRST, WRITE, RowsOf

TORCH = {"float16": torch.float16, INTEGER: torch.int32, "uint16": torch.uint16}
NEW = "new_"  # before a state's name: as the fragment leaves it


@dataclass(frozen=True)
class Ports:
    """The arguments and the results of a fragment's graph, in order."""

    inputs: dict[str, Port]
    outputs: dict[str, Port]

    @classmethod
    def of(cls, fragment: Fragment) -> "Ports":
        """States are arguments, and results where the layer writes them."""
        writes = isinstance(fragment.module, LayerPiece) and not fragment.module.shares
        written = {NEW + name: port for name, port in fragment.states.items()} if writes else {}
        return cls({**fragment.inputs, **fragment.states}, {**fragment.outputs, **written})


class _Pure(nn.Module):
    """A fragment without buffers: states come in and go out as values, and outputs have the types that it declares."""

    def __init__(self, fragment: Fragment) -> None:
        super().__init__()
        self._fragment, self._ports = (fragment,), Ports.of(fragment)  # in a tuple: none of its buffers are this one's

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        (fragment,) = self._fragment
        named = dict(zip(self._ports.inputs, given, strict=True))
        sliced = {"per_layer_inputs"} if "index" in named else set()
        if isinstance(fragment.module, LayerPiece):
            sliced |= {*fragment.module.carried, "rows"}
        own = [RowsOf(named[name]) if name in sliced else named[name] for name in fragment.inputs]
        if isinstance(fragment.module, LayerPiece):
            states = {name: RowsOf(named[name]) for name in fragment.states}
            results = fragment.module.on_states(states.get("keys"), states.get("values"), *own)  # type: ignore[arg-type]
        else:
            states, results = {}, fragment.module(*own)
        results = results if isinstance(results, tuple) else (results,)
        found = dict(zip(fragment.outputs, results, strict=True))
        found |= {NEW + name: state.value for name, state in states.items()}
        return tuple(found[name].to(TORCH[port.dtype]) for name, port in self._ports.outputs.items())


def convert_fragment(fragment: Fragment) -> bytes:
    """The fragment as bytecode: one graph of its name, whose weights are arguments. Raises UserError where it cannot be
    converted."""
    ports = Ports.of(fragment)
    with quietly(), _refusals_of(fragment), torch.no_grad():
        converter = new_converter()
        module, examples = _Pure(fragment), tuple(_examples(ports))
        open_axes = [_open_axes(port) for port in ports.inputs.values()]
        program = exported_open(module, examples, open_axes) if any(open_axes) else exported(module, examples)
        converter.add_exported_program(
            program,
            input_names=list(ports.inputs),
            output_names=list(ports.outputs),
            entrypoint_name=fragment.name,
        )
        program = converter.to_coreai()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "fragment.mlirb"
            program._save_bytecode(path)
            return path.read_bytes()


@contextlib.contextmanager
def _refusals_of(fragment: Fragment) -> Iterator[None]:
    """Whatever torch.export or coreai-torch has against a fragment, as a sentence: what they take is known of the
    families that were tried, and a recipe can combine others."""
    try:
        yield
    except (UserError, MemoryError, OSError):
        raise
    except Exception as error:
        raise UserError(
            f"export.format: {fragment.name} is not converted to Core AI: {describe(error)}: leave out export.format, "
            "for Core ML's package, and please report it"
        ) from error


def exported(module: nn.Module, examples: tuple[Tensor, ...]) -> Any:
    """A module as coreai-torch takes it: decomposed, its factors kept exact."""
    from coreai_torch import get_decomp_table

    program = recorded(module.eval(), examples, get_decomp_table())
    keep_factors(program.graph)
    return program


def exported_open(module: nn.Module, examples: tuple[Tensor, ...], open_axes: Sequence[Mapping[int, OpenSize]]) -> Any:
    """The same of a module with sizes that each call decides, by torch.export: `open_axes` says which axes of an
    example have them."""
    from coreai_torch import get_decomp_table
    from torch.export import Dim, export

    dims = {size: Dim(size.name) for axes in open_axes for size in axes.values()}
    shapes = tuple({axis: dims[size] for axis, size in axes.items()} for axes in open_axes)
    program = export(module.eval(), examples, dynamic_shapes=(shapes,), strict=False)
    program = program.run_decompositions(get_decomp_table())
    keep_factors(program.graph)
    return program


def new_converter() -> Any:
    """coreai-torch's converter with lowerings for what it does not know."""
    from coreai_torch import TorchConverter

    converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
    _register_lowerings(converter)
    return converter


def _examples(ports: Ports) -> Iterator[Tensor]:
    """A zero-stride view stands for each float, so that none takes memory."""
    for name, port in ports.inputs.items():
        if port.dtype == INTEGER:
            yield torch.full(port.shape, 0 if name in ("slot", "place", "index") else 1, dtype=torch.int32)
        else:
            yield torch.zeros((), dtype=TORCH[port.dtype]).expand(port.shape)


def _open_axes(port: Port) -> dict[int, OpenSize]:
    return {axis: size for axis, size in enumerate(port.shape) if isinstance(size, OpenSize)}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the bars of a conversion, which end in the terminal of whoever builds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an export, about this code and not about the user's model
        import coreai_torch.converter as theirs

        with patch.object(theirs, "_ProgressBar", _NoBar):
            yield


class _NoBar:
    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def print(self, *_: object, **__: object) -> None: ...

    def track(self, things: Any, **_: object) -> Any:
        return things

    def status(self, *_: object, **__: object) -> "_NoBar":
        return self

    def stream(self, *_: object, **__: object) -> Any:
        return contextlib.nullcontext()


def _register_lowerings(converter: Any) -> None:
    """What coreai-torch does not know, our operations, torch's `%` and elu, and what it writes wastefully."""
    from coreai._compiler.dialects import coreai
    from coreai._compiler.ir import RankedTensorType
    from coreai_torch._utils import get_dim_size_int32, get_tensor_type

    from coreai_recipes.targets.coreai.weights import element

    def sizes(value: Any) -> list[int]:
        return list(RankedTensorType(value.type).shape)

    def register(name: str, lower: Any) -> None:
        for each in (name, f"{name}.default"):
            converter.register_torch_lowering(each)(lower)

    def read(values: Any, node: Any, loc: Any) -> Any:
        state, at = (values[each.name] for each in node.args[:2])
        count, rest = node.args[2], sizes(state)[1:]
        begin = coreai.concat(0, [at, [0] * len(rest)], loc=loc)
        end = coreai.concat(0, [coreai.broadcasting_add(at, [count]), rest], loc=loc)
        return coreai.slice_(state, begin, end, [1] * (1 + len(rest)), loc=loc)

    def read_first(values: Any, node: Any, loc: Any) -> Any:
        state, at = (values[each.name] for each in node.args[:2])
        (count, rows), between = node.args[2:], sizes(state)[1:-2]
        begin = coreai.concat(0, [at, [0] * (len(between) + 2)], loc=loc)
        last = values[rows.name] if isinstance(rows, Node) else [rows]
        end = coreai.concat(0, [coreai.broadcasting_add(at, [count]), between, last, sizes(state)[-1:]], loc=loc)
        kind = get_tensor_type(node.meta["val"])
        return coreai.SliceOp(
            state, begin, end, coreai.constant([1] * (len(between) + 3)), results=[kind], loc=loc
        ).result

    def write(values: Any, node: Any, loc: Any) -> Any:
        state, new, at, first = (values[each.name] for each in node.args)
        count, *between, S, D = sizes(new)
        tokens = get_dim_size_int32(new, len(between) + 1) if S < 0 else [S]
        begin = coreai.concat(0, [at, [0] * len(between), first, [0]], loc=loc)
        ends = coreai.broadcasting_add(at, [count]), coreai.broadcasting_add(first, tokens)
        end = coreai.concat(0, [ends[0], between, ends[1], [D]], loc=loc)
        return coreai.slice_update(state, begin, end, [1] * (len(between) + 3), new, loc=loc)

    def norm(values: Any, node: Any, loc: Any) -> Any:
        """(x - mean) / sqrt(var + eps) over the channels, as the module computes it."""
        x, eps = values[node.args[0].name], node.args[1]
        axis = np.array([1], np.int32)
        y = coreai.broadcasting_sub(x, coreai.reduce_mean(x, axis, loc=loc), loc=loc)
        variance = coreai.reduce_mean(coreai.broadcasting_mul(y, y, loc=loc), axis, loc=loc)
        return coreai.broadcasting_mul(y, coreai.rsqrt(coreai.broadcasting_add(variance, eps, loc=loc)), loc=loc)

    def remainder(values: Any, node: Any, loc: Any) -> Any:
        """Core AI's is C's fmod: the same, for no numerator of ours is negative."""
        return coreai.broadcasting_modulo(values[node.args[0].name], node.args[1], loc=loc)

    def elu(values: Any, node: Any, loc: Any) -> Any:
        """max(x, 0) + exp(min(x, 0)) - 1, in float32: in float16, exp of what is near 0 has lost it."""
        x, factors = values[node.args[0].name], node.args[1:]
        if any(factor != 1 for factor in factors):
            raise TypeError(f"elu with the factors {factors}")
        kind = RankedTensorType(x.type)
        wide = coreai.cast(x, RankedTensorType.get(kind.shape, element("float32")))
        below = coreai.broadcasting_sub(
            coreai.exp(coreai.broadcasting_minimum(wide, 0.0, loc=loc), loc=loc), 1.0, loc=loc
        )
        found = coreai.broadcasting_add(coreai.broadcasting_maximum(wide, 0.0, loc=loc), below, loc=loc)
        return coreai.cast(found, RankedTensorType.get(kind.shape, kind.element_type))

    def rows(values: Any, node: Any, loc: Any) -> Any:
        """Whole rows of the first axis, an index each: coreai-torch has an int32 index for every number in them, which
        is twice the bytes of the experts that a token takes."""
        x, axis, at = node.args
        if axis != 0:
            raise TypeError(f"index_select along axis {axis}")
        return coreai.gather_nd(values[x.name], coreai.expand_dims(values[at.name], [1], loc=loc), loc=loc)

    register_rope(register)
    converter.register_torch_lowering("aten::index_select.default", allow_override=True)(rows)
    register("aten::elu", elu)
    register(READ, read)
    register(READ_FIRST, read_first)
    register(WRITE, write)
    register("coreai_recipes::channel_norm", norm)
    converter.register_torch_lowering("aten::remainder.Scalar")(remainder)
