"""What a function can do without: operations of a fragment that are worked out, or were computed already.

What depends on `slot` alone (the begin and end of the layer's rows) is worked out here and becomes constants, so that
Core ML's compiler sees static slices; without that, each slice has unknown dimensions. What two layers work out alike
(where the call's rows begin, the state as the layer before left it) is worked out once. Both are what coremltools' own
passes do to a model that is converted whole, and a test holds the two to the same operations.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.protobuf import MIL_pb2
from coreai_recipes.targets.coreml.mil import immediate_integers, inputs_of, shape_of

Values = dict[str, Any]
CUTS = ("slice_by_index", "reshape")
WHOLE_NUMBERS = (MIL_pb2.INT32, MIL_pb2.UINT16, MIL_pb2.INT16, MIL_pb2.BOOL)


@dataclass(frozen=True)
class Known:
    """What is known of a function's values, by their names in it."""

    integers: dict[str, NDArray[Any]] = field(default_factory=dict)
    shapes: dict[str, list[int | None]] = field(default_factory=dict)
    computed: dict[tuple[Any, ...], str] = field(default_factory=dict)  # by operation and operands
    writes: Counter[str] = field(default_factory=Counter)  # how often each state was written so far


class Simplifier:
    """The operations of one fragment, in their order, and the names that their values have in the function.

    `bound` are names of the fragment that stand for names of the function; every other one gets `prefix`.
    """

    def __init__(self, bound: dict[str, str], prefix: str, known: Known) -> None:
        self.bound, self.prefix, self.known = bound, prefix, known
        self.local: dict[str, NDArray[Any]] = {}  # integer constants of the fragment, by its own names
        self.others: dict[str, bytes] = {}  # its other constants

    def rename(self, name: str) -> str:
        return self.bound.get(name) or self.prefix + name

    def value(self, name: str) -> NDArray[Any] | None:
        if name in self.local:
            return self.local[name]
        return self.known.integers.get(self.rename(name))

    def note_constant(self, operation: Any) -> None:
        name, integers = operation.outputs[0].name, immediate_integers(operation)
        if integers is not None:
            self.local[name] = integers
        elif operation.attributes["val"].WhichOneof("value") == "blobFileValue":
            raise RuntimeError(f"{self.prefix}{name}: a stored constant in a fragment")
        else:
            self.others[name] = operation.attributes["val"].SerializeToString(deterministic=True)

    def is_spared(self, operation: Any) -> bool:
        """Whether what the operation gives is there without it; it then has a name or is a known integer."""
        if self._fold(operation) or self._skip(operation) or self._reuse(operation):
            return True
        if operation.type == "write_state":
            self.known.writes[self.rename(operation.inputs["input"].arguments[0].name)] += 1
        return False

    def _fold(self, operation: Any) -> bool:
        """Replace an integer operation on known values by its value."""
        fold = _FOLDS.get(operation.type)
        if fold is None or operation.outputs[0].type.tensorType.dataType != MIL_pb2.INT32:
            return False
        arguments = {key: [self.value(a.name) for a in found.arguments] for key, found in inputs_of(operation)}
        if any(value is None for key in ("x", "y", "values") for value in arguments.get(key, [])):
            return False
        result = np.asarray(fold({k: v if k == "values" else v[0] for k, v in arguments.items()}))
        self.known.integers[self.rename(operation.outputs[0].name)] = result
        return True

    def _skip(self, operation: Any) -> bool:
        """Take the operand of a slice that takes all of it, and of a reshape to the shape that it has already.

        The rows of a kind with one layer are its whole state, and a slice may turn out to need no reshape.
        """
        if operation.type not in CUTS:
            return False
        output, declared = operation.outputs[0], shape_of(operation.outputs[0].type.tensorType)
        is_settled = None not in declared
        if output.name in self.bound or is_settled != (operation.type == "reshape"):
            return False
        shape = declared if is_settled else self.sliced_shape(operation)
        if shape is None:
            return False
        source = self.rename(operation.inputs["x"].arguments[0].name)
        if shape != self.known.shapes.get(source):
            return False
        self.bound[output.name] = source
        return True

    def _reuse(self, operation: Any) -> bool:
        """Take the value of an equal operation before it: integers, booleans, what they are cast to, states not written
        since, and what is cut from these, which layers that share a cache cut alike."""
        output = operation.outputs[0] if len(operation.outputs) == 1 else None
        if output is None or output.name in self.bound:  # what is bound must have its own name
            return False
        operands = [
            (key, tuple(self._operand(argument) for argument in found.arguments)) for key, found in inputs_of(operation)
        ]
        version = 0
        if operation.type == "read_state":
            version = self.known.writes[self.rename(operation.inputs["input"].arguments[0].name)]
        elif output.type.tensorType.dataType not in WHOLE_NUMBERS and operation.type not in (*CUTS, "cast"):
            return False
        key = (operation.type, version, *operands)
        if key in self.known.computed:
            self.bound[output.name] = self.known.computed[key]
            return True
        self.known.computed.setdefault(key, self.rename(output.name))
        return False

    def _operand(self, argument: Any) -> Any:
        """What an operand is: the value of a constant or of what is given in place, else its name in the function."""
        if argument.WhichOneof("binding") == "value":
            return argument.value.SerializeToString(deterministic=True)
        if argument.name in self.others:
            return self.others[argument.name]
        value = self.value(argument.name)
        return self.rename(argument.name) if value is None else (value.shape, value.tobytes())

    def sliced_shape(self, operation: Any) -> list[int] | None:
        """The shape that a slice gives, where its begin, its end and what it is taken from are known."""
        given = {key: self.value(found.arguments[0].name) for key, found in inputs_of(operation) if key != "x"}
        source = self.known.shapes.get(self.rename(operation.inputs["x"].arguments[0].name))
        begin, end = given.get("begin"), given.get("end")
        if begin is None or end is None or source is None:
            return None
        begin_mask, end_mask = given.get("begin_mask"), given.get("end_mask")
        shape = []
        for axis, size in enumerate(source):
            first = 0 if begin_mask is not None and begin_mask[axis] else int(begin[axis])
            last = size if end_mask is not None and end_mask[axis] else int(end[axis])
            shape.append(int(last or 0) - first)
        return shape


def _slice(arguments: Values) -> NDArray[Any]:
    """One element of a vector, which is all that a slot is asked for."""
    if not arguments["squeeze_mask"][0]:
        raise RuntimeError("a slot is sliced in a way that the linker does not know")
    return np.asarray(arguments["x"][int(arguments["begin"][0])])


_FOLDS: dict[str, Callable[[Values], NDArray[Any]]] = {
    "expand_dims": lambda a: np.expand_dims(a["x"], tuple(int(axis) for axis in a["axes"])),
    "squeeze": lambda a: np.squeeze(a["x"]),
    "concat": lambda a: np.concatenate([np.atleast_1d(value) for value in a["values"]]),
    "add": lambda a: np.add(a["x"], a["y"]),
    "sub": lambda a: np.subtract(a["x"], a["y"]),
    "mul": lambda a: np.multiply(a["x"], a["y"]),
    "slice_by_index": _slice,
}
