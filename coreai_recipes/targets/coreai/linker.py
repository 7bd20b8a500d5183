"""Fragments -> functions of one program: a fragment is a private graph, a layer one call of it, a weight a constant.

    before: graph @layer_full_1(x, mask, slot, weight_attention_q_weight, keys) -> y, new_keys        once, converted
    after:  %4:2 = invoke @layer_full_1(%3, %mask, %slot, %weight, %keys)                             for each layer

States pass through the layers as values: a function reads each once, and writes those that its layers have changed.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.export.fragments import FLOAT, Port
from coreai_recipes.export.open_sizes import OpenSize
from coreai_recipes.targets.coreai.convert import NEW, Ports
from coreai_recipes.targets.coreai.weights import Constants, element


@dataclass(frozen=True)
class PrivateGraph:
    """A fragment that is in the program."""

    name: str
    ports: Ports


class GraphLinker:
    """One function of the program. Arguments and states are noted first; the graph begins with the first fragment."""

    def __init__(self, name: str, constants: Constants) -> None:
        self.name, self._constants = name, constants
        self._inputs: dict[str, Port] = {}
        self._states: dict[str, Port] = {}
        self._graph: Any = None
        self._values: dict[str, Any] = {}
        self._tokens: dict[str, Any] = {}
        self._integers: dict[str, NDArray[np.int32]] = {}
        self._outputs: list[str] = []
        self._written: set[str] = set()

    def add_input(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        self._inputs[name] = Port(dtype, shape)

    def add_state(self, name: str, shape: tuple[int, ...]) -> None:
        self._states[name] = Port(FLOAT, shape)

    def add_output(self, name: str) -> None:
        self._outputs.append(name)

    def add_integer(self, name: str, value: int) -> str:
        return self.add_integers(name, np.array([value], np.int32))

    def add_integers(self, name: str, values: NDArray[np.int32]) -> str:
        self._integers[name] = values
        return name

    def append(self, model: PrivateGraph, prefix: str, names: Mapping[str, str], parameters: Mapping[str, str]) -> None:
        from coreai.authoring.graph_builder import invoke

        self._begin()
        ports = model.ports
        with self._graph.block:
            operands = [
                self._constants.weight(parameters[name], port.shape)
                if name in parameters
                else self._value(names.get(name, prefix + name))
                for name, port in ports.inputs.items()
            ]
            results = invoke([_tensor(port) for port in ports.outputs.values()], model.name, operands)
        for name, value in zip(ports.outputs, results, strict=True):
            if name.startswith(NEW) and name not in names:
                state = names[name.removeprefix(NEW)]
                self._values[state] = value
                self._written.add(state)
            else:
                self._values[names.get(name, prefix + name)] = value

    def end(self) -> None:
        """The function's results: states first, under their own names."""
        from coreai._compiler.dialects import coreai
        from coreai._compiler.ir import ArrayAttr, DictAttr, StringAttr

        self._begin()
        outputs = OrderedDict[str, Any]()
        with self._graph.block:
            for name in self._states:
                argument, token = self._arguments[name], self._tokens[name]
                written = name in self._written
                outputs[name] = coreai.write_handle(argument, self._values[name], token) if written else token
            outputs |= {name: self._values[name] for name in self._outputs}
        self._graph.set_outputs_spec_from_dict(outputs)
        said = []
        for name in self._arguments:
            entry = {"coreai.name": StringAttr.get(name)}
            if name in self._states:
                entry["MutableBuffers.buffer_mutation"] = StringAttr.get(name)
            said.append(DictAttr.get(entry))
        self._graph.arg_attrs = ArrayAttr.get(said)

    def _begin(self) -> None:
        from coreai._compiler.dialects import coreai
        from coreai._compiler.ir import Location

        if self._graph is not None:
            return
        types = [_tensor(port) for port in self._inputs.values()]
        types += [coreai.HandleType.get(_tensor(port)) for port in self._states.values()]
        names = [*self._inputs, *self._states]
        self._graph = coreai.GraphOp(
            name=self.name, input_types=types, result_types=[], input_names=names, loc=Location.unknown()
        )
        self._arguments = dict(zip(names, self._graph.arguments, strict=True))
        self._values = {name: self._arguments[name] for name in self._inputs}
        with self._graph.block:
            token = coreai.create_token() if self._states else None
            for name in self._states:
                self._values[name], self._tokens[name] = coreai.read_handle(self._arguments[name], token)

    def _value(self, name: str) -> Any:
        if name not in self._values and name in self._integers:
            from coreai._compiler.dialects import coreai

            self._values[name] = coreai.constant(self._integers[name])
        if name not in self._values:
            raise RuntimeError(f"{name} is used and not defined")
        return self._values[name]


def _tensor(port: Port) -> Any:
    from coreai._compiler.ir import RankedTensorType

    sizes = [RankedTensorType.get_dynamic_size() if isinstance(size, OpenSize) else size for size in port.shape]
    return RankedTensorType.get(sizes, element(port.dtype))
