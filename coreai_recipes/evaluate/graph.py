"""A function of the program as nodes, constants and types: the protobuf read once, nothing computed."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coreai_recipes.evaluate import operations as _catalogue  # noqa: F401  (fills the registry)
from coreai_recipes.evaluate.constants import Constant, DecompressedConstant
from coreai_recipes.evaluate.decompress import DECOMPRESSIONS
from coreai_recipes.evaluate.element_types import ELEMENT_TYPES, TensorType, name_of_element_type
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.evaluate.opset import OPERATIONS, Node, Result
from coreai_recipes.evaluate.package_reader import Package, shape_of
from coreai_recipes.evaluate.package_reader import signature_of as ports_of

READ_STATE, WRITE_STATE, UPDATE_STATE = "read_state", "write_state", "coreml_update_state"
STATE_OPERATIONS = (READ_STATE, WRITE_STATE, UPDATE_STATE)


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
    inputs, states = ports_of(function)
    return ({n: TensorType(*kind) for n, kind in inputs.items()}, {n: TensorType(*kind) for n, kind in states.items()})


def read_graph(package: Package, name: str) -> Graph:
    """The graph of a function; every operation that cannot be evaluated is reported, all at once."""
    function = package.functions[name]
    block = package.block(name)
    inputs, states = signature_of(function)
    opset = int("".join(filter(str.isdigit, function.opset)) or 0)
    graph = Graph(name, opset, inputs, states, tuple(block.outputs), types=dict(inputs))
    place = f"{package.path}: function {name}"
    unusable = [port for port, kind in (inputs | states).items() if kind.element_type not in ELEMENT_TYPES]
    if unusable:
        raise EvaluationError(f"{place}: {unusable[0]} is of a type that cannot be evaluated")
    problems: dict[str, str] = {}
    for operation in block.operations:
        if operation.type == "const":
            if len(operation.outputs) != 1:
                raise EvaluationError(f"{place}: a const has {len(operation.outputs)} outputs: the program is damaged")
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
        _check_names(node, graph, place)
        if operation.type in DECOMPRESSIONS:
            attributes = {key: package.constant(value) for key, value in operation.attributes.items() if key != "name"}
            _decompress(graph, node, attributes)
            continue
        problem = _why_not(operation, node)
        if problem:
            problems.setdefault(operation.type, f"{place}: {problem}")
        graph.nodes.append(node)
        graph.types.update({result.name: TensorType(result.element_type, result.shape) for result in results})
    missing = [output for output in graph.outputs if output not in graph.types and output not in graph.constants]
    if missing:
        problems["outputs"] = f"{place}: no operation gives its output {missing[0]!r:.80}"
    if problems:
        raise EvaluationError(*problems.values())
    return graph


def read_whole_graph(packages: Sequence[Package], name: str) -> Graph:
    """The graph of a function that goes on from package to package: what one is handed, an earlier one gives."""
    graphs = [read_graph(package, name) for package in packages if name in package.functions]
    first = graphs[0]
    for later in graphs[1:]:
        first.nodes.extend(later.nodes)
        first.constants.update(later.constants)
        first.states.update(later.states)
        first.types.update(later.types)
    return replace(first, outputs=graphs[-1].outputs)


def _check_names(node: Node, graph: Graph, place: str) -> None:
    """Raise where an operation reads what nothing before it gives, or gives what is there already."""
    at = f"{place}: {node.type} {node.name!r:.80}"
    if node.type in STATE_OPERATIONS:
        state, value = node.operands.get("state" if node.type == UPDATE_STATE else "input"), None
        if node.type != READ_STATE:
            value = node.operands.get("value" if node.type == UPDATE_STATE else "data")
            if not value:
                raise EvaluationError(f"{at}: writes nothing into its state")
        if not state or state[0] not in graph.states:
            raise EvaluationError(f"{at}: is of a state that the function does not have")
    elif not node.results:
        raise EvaluationError(f"{at}: gives nothing: the program is damaged")

    def is_known(name: str) -> bool:
        return name in graph.types or name in graph.constants or name in graph.states

    unknown = [name for name in node.value_names() if not is_known(name)]
    if unknown:
        raise EvaluationError(f"{at}: reads {unknown[0]!r:.80}, which no operation before it gives")
    names = [result.name for result in node.results]
    if len(set(names)) < len(names) or any(map(is_known, names)):
        raise EvaluationError(f"{at}: gives a value that already exists")


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
        if not sources:
            raise EvaluationError(f"{node.type} {node.name}: {key} is bound to nothing")
        source = graph.constants.get(sources[0]) if isinstance(sources[0], str) else sources[0]
        if source is None:
            raise EvaluationError(f"{node.type} {node.name}: {key} is not a constant")
        parameters[key] = source
    for index, result in enumerate(node.results):
        graph.constants[result.name] = DecompressedConstant(
            result.element_type, result.shape, node.type, parameters, index
        )
