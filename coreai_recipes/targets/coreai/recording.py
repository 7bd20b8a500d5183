"""A module as the graph of ATen operations that coreai-torch takes, in one pass.

`torch.export` with `run_decompositions` gives the same graph, operation by operation, which a test holds. It traces
twice, and imports torch's compiler, more than a small model's build takes altogether. Here the module runs once on
tensors without values (`Recorded`), and whatever the dispatcher is asked for is written down, or what it decomposes to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from math import prod
from operator import getitem
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from coreai_recipes.targets.coreai.shapes import CPU, META, shapes_of

aten = torch.ops.aten
PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__}
COMPOSITE = "CompositeImplicitAutograd"  # the kernel of what other operations make up


def _filled(value: int, size: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Any:
    """`full` takes the type of its value where none is said, and these that of what torch makes."""
    return aten.full.default(size, value, dtype=dtype or torch.get_default_dtype(), **kwargs)


Decompositions = Mapping[Any, Callable[..., Any]]
# as torch's own, which import sympy
FILLED: Decompositions = {aten.ones.default: partial(_filled, 1), aten.zeros.default: partial(_filled, 0)}


class Recorded(Tensor):
    """What stands for a value of the graph: it says that it is on the processor, as what a module makes is."""

    node: Node
    meta: Tensor

    @staticmethod
    def of(node: Node, meta: Tensor) -> "Recorded":
        made: Recorded = Tensor._make_wrapper_subclass(
            Recorded, meta.size(), strides=meta.stride(), dtype=meta.dtype, device=CPU
        )
        made.node, made.meta, node.meta["val"] = node, meta, meta
        return made

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A product of several matrices by one stays that: ATen would make one product of it, torch.export does not."""
        if function in PRODUCTS and _stays_several(*args):
            return _product(*args)
        return super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{function} of a value outside of its recording")


def _stays_several(a: Tensor, b: Tensor) -> bool:
    """ATen makes one product where a view makes the batches of `a` one, torch.export where `a` is contiguous."""
    if a.dim() == b.dim():
        return a.dim() > 2 and a.shape[:-2] != b.shape[:-2]
    return a.dim() > b.dim() == 2 and not a.is_contiguous()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Matrices (..., n, k) by (..., k, m), or by one (k, m), stretched to each other's batches."""
    batches = [max(sizes) for sizes in zip_longest(reversed(a.shape[:-2]), reversed(b.shape[:-2]), fillvalue=1)][::-1]
    count = prod(batches)
    flat = [each.expand(*batches, *each.shape[-2:]).reshape(count, *each.shape[-2:]) for each in (a, b)]
    return torch.bmm(*flat).view(*batches, a.shape[-2], b.shape[-1])


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operation that is asked for while it is entered, as a node of `graph`."""

    def __init__(self, decompositions: Decompositions) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph, self.constants = Graph(), dict[str, Tensor]()
        self._decompositions = decompositions
        self._first: Node | None = None  # of the inputs: constants stand before them

    def input(self, name: str, like: Tensor) -> Recorded:
        node = self.graph.placeholder(name)
        self._first = self._first or node
        return Recorded.of(node, torch.empty(like.shape, dtype=like.dtype, device=META))

    def record(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is aten._local_scalar_dense.default:
            raise TypeError("a value of the call decides what is done")
        if function is aten.lift_fresh.default:  # what torch.tensor made
            function = aten.clone.default
        elif function is aten.detach_.default:
            return args[0]
        found = self._decomposed(function, args, kwargs)
        if found is not NotImplemented:
            return found
        if function._schema.is_mutable:
            raise TypeError(f"{function} changes a tensor in place")
        given = tree_map(lambda each: self._as_value(each) if isinstance(each, Tensor) else each, (args, kwargs))
        results = shapes_of(function, *tree_map(lambda each: each.meta if isinstance(each, Recorded) else each, given))
        node = self.graph.call_function(function, *tree_map(_node_of, given))
        if isinstance(results, Tensor):
            return Recorded.of(node, results)
        node.meta["val"] = results
        return type(results)(
            Recorded.of(self.graph.call_function(getitem, (node, place)), result)
            for place, result in enumerate(results)
        )

    def _decomposed(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What the operation gives where it is taken apart, NotImplemented where it stays as it is."""
        decompose = FILLED.get(function)
        if decompose is None and function in self._decompositions:
            decompose = self._decompositions[function]
        elif decompose is None and torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), COMPOSITE):
            decompose = function.decompose
        if decompose is None:
            return NotImplemented
        with self:
            return decompose(*args, **kwargs)

    def _as_value(self, tensor: Tensor) -> Recorded:
        if isinstance(tensor, Recorded):
            return tensor
        name = f"constant_{len(self.constants)}"
        self.constants[name] = tensor
        with self.graph.inserting_before(self._first):
            node = self.graph.placeholder(name)
        return Recorded.of(node, torch.empty(tensor.shape, dtype=tensor.dtype, device=META))


# behind the class: in it, torch would put a function around this whose first call imports its compiler
_Recorder.__torch_dispatch__ = _Recorder.record  # type: ignore[method-assign,assignment]


def _node_of(value: Any) -> Any:
    return value.node if isinstance(value, Recorded) else value


@dataclass
class Program:
    """As much of torch's ExportedProgram as coreai-torch's converter looks at."""

    graph_module: GraphModule
    graph_signature: Any
    constants: Mapping[str, Tensor]
    state_dict: dict[str, Tensor] = field(default_factory=dict)

    @property
    def graph(self) -> Graph:
        return self.graph_module.graph

    @property
    def _graph_signature(self) -> Any:
        return self.graph_signature

    @property
    def _constants(self) -> Mapping[str, Tensor]:
        return self.constants

    @property
    def _state_dict(self) -> dict[str, Tensor]:
        return self.state_dict

    def parameters(self) -> tuple[()]:
        return ()

    def buffers(self) -> tuple[()]:
        return ()


def recorded(module: nn.Module, examples: tuple[Tensor, ...], decompositions: Decompositions) -> Program:
    """The module as a program of what its operations decompose to. Its tensors become constants; shapes and types of
    `examples` are looked at, no values.

    Raises TypeError for an operation in place, and where a value decides what is done.
    """
    recorder = _Recorder(decompositions)
    inputs = [recorder.input(f"given_{number}", example) for number, example in enumerate(examples)]
    with torch.no_grad(), recorder:
        results = module(*inputs)
    outputs = [_node_of(recorder._as_value(result)) for result in results]
    recorder.graph.output(tuple(outputs))
    recorder.graph.eliminate_dead_code()
    return Program(
        GraphModule(nn.Module(), recorder.graph),
        _signature(recorder.graph, recorder.constants, outputs),
        recorder.constants,
    )


def _signature(graph: Graph, constants: Mapping[str, Tensor], outputs: list[Node]) -> Any:
    from torch.export.graph_signature import (
        ExportGraphSignature,
        InputKind,
        InputSpec,
        OutputKind,
        OutputSpec,
        TensorArgument,
    )

    inputs = []
    for node in graph.nodes:
        if node.op == "placeholder":
            kind, target = InputKind.USER_INPUT, None
            if node.name in constants:
                kind, target = InputKind.CONSTANT_TENSOR, node.name
            inputs.append(InputSpec(kind, TensorArgument(name=node.name), target))
    return ExportGraphSignature(
        inputs, [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None) for node in outputs]
    )
