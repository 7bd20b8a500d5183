"""A function of the program as nodes, constants and types: the protobuf read once, nothing computed."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from coreai_recipes.evaluate.constants import Constant, DecompressedConstant
from coreai_recipes.evaluate.decompress import DECOMPRESSIONS
from coreai_recipes.evaluate.element_types import ELEMENT_TYPES, name_of_element_type
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.evaluate.package import Package, shape_of
from coreai_recipes.evaluate.registry import OPERATIONS, Node, Result

READ_STATE, WRITE_STATE, UPDATE_STATE = "read_state", "write_state", "coreml_update_state"
STATE_OPERATIONS = (READ_STATE, WRITE_STATE, UPDATE_STATE)


class TensorType(NamedTuple):
    """Element type and shape; a size that only the run decides is -1."""

    element_type: str
    shape: tuple[int, ...]


@dataclass
class Graph:
    """One function. `types` has every value, inputs and results of nodes alike."""

    name: str
    opset: int
    inputs: dict[str, TensorType]
    states: dict[str, TensorType]
    outputs: tuple[str, ...]
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    types: dict[str, TensorType] = field(default_factory=dict)


def state_of(node: Node) -> str:
    """The state that a state operation reads or writes."""
    return str(node.operands["state" if node.type == UPDATE_STATE else "input"][0])


def written_value(node: Node) -> str | Constant:
    """What a `write_state` or `coreml_update_state` writes."""
    return node.operands["value" if node.type == UPDATE_STATE else "data"][0]


def signature_of(function: Any) -> tuple[dict[str, TensorType], dict[str, TensorType]]:
    """The inputs and the states of a function of the protobuf."""
    inputs: dict[str, TensorType] = {}
    states: dict[str, TensorType] = {}
    for parameter in function.inputs:
        is_state = parameter.type.WhichOneof("type") == "stateType"
        kind = (parameter.type.stateType.wrappedType if is_state else parameter.type).tensorType
        found = TensorType(name_of_element_type(kind.dataType), shape_of(kind))
        (states if is_state else inputs)[parameter.name] = found
    return inputs, states


def read_graph(package: Package, name: str) -> Graph:
    """The graph of a function; every operation that cannot be evaluated is reported, all at once."""
    function = package.functions[name]
    block = function.block_specializations[function.opset]
    inputs, states = signature_of(function)
    opset = int("".join(filter(str.isdigit, function.opset)) or 0)
    graph = Graph(name, opset, inputs, states, tuple(block.outputs), types=dict(inputs))
    problems: dict[str, str] = {}
    for operation in block.operations:
        if operation.type == "const":
            graph.constants[operation.outputs[0].name] = package.constant(operation.attributes["val"])
            continue
        results = tuple(_result(output) for output in operation.outputs)
        operands = {
            key: [
                binding.name if binding.WhichOneof("binding") == "name" else package.constant(binding.value)
                for binding in argument.arguments
            ]
            for key, argument in sorted(operation.inputs.items())  # protobuf's own order differs in each process
        }
        node = Node(operation.type, operands, results)
        if operation.type in DECOMPRESSIONS:
            attributes = {key: package.constant(value) for key, value in operation.attributes.items() if key != "name"}
            _decompress(graph, node, attributes)
            continue
        problem = _why_not(operation, node)
        if problem:
            problems.setdefault(operation.type, f"{package.path}: function {name}: {problem}")
        graph.nodes.append(node)
        graph.types.update({result.name: TensorType(result.element_type, result.shape) for result in results})
    if problems:
        raise EvaluationError(*problems.values())
    return graph


def _why_not(operation: Any, node: Node) -> str | None:
    if operation.blocks:
        return f"{node.type} (output {node.name}) is control flow, which cannot be evaluated"
    if node.type not in OPERATIONS and node.type not in STATE_OPERATIONS:
        return f"{node.type} (output {node.name}) is an operation that cannot be evaluated"
    for result in node.results:
        if result.element_type not in ELEMENT_TYPES:
            return f"{node.type} (output {result.name}) gives {result.element_type}, which cannot be evaluated"
    return None


def _result(output: Any) -> Result:
    kind = output.type.WhichOneof("type")
    if kind != "tensorType":
        return Result(output.name, str(kind), ())
    return Result(output.name, name_of_element_type(output.type.tensorType.dataType), shape_of(output.type.tensorType))


def _decompress(graph: Graph, node: Node, attributes: dict[str, Constant]) -> None:
    parameters = dict(attributes)
    for key, sources in node.operands.items():
        source = graph.constants.get(sources[0]) if isinstance(sources[0], str) else sources[0]
        if source is None:
            raise EvaluationError(f"{node.type} {node.name}: {key} is not a constant")
        parameters[key] = source
    for index, result in enumerate(node.results):
        graph.constants[result.name] = DecompressedConstant(
            result.element_type, result.shape, node.type, parameters, index
        )
