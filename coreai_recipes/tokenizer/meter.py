"""What a template may cost: steps and bytes, counted as it is rendered, so that it ends on any machine. A leaf.

Nothing that a template makes can grow unseen: every value that an operation returns is weighed, and a value that holds
another many times weighs it as often as it would be written out. So no single comparison, sorting or writing out takes
longer than the largest value allows, and each is charged for what it reads.
"""

from collections.abc import Iterable, Iterator, Mapping
from sys import getsizeof
from typing import Any

from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.utils import Namespace

# Released templates take some hundreds of steps a message; those that look back from each, some for each pair.
MAX_STEPS = 8_000_000
MAX_BYTES = 256 << 20
MAX_VALUE = 32 << 20  # characters of one value, written out
MAX_BITS = 1 << 14  # of a whole number
CHARACTERS_A_STEP = 64
# A step is about 0.4 microseconds: as long as one turn of a loop.
CALL, FILTER, NAMESPACE, PART = 16, 4, 16, 3


class LimitError(Exception):
    """What a template does too much of, in words."""


class Meter:
    """Steps taken and bytes made so far. `charge` and `weigh` raise LimitError where there were too many."""

    def __init__(self) -> None:
        self.steps = 0
        self.bytes = 0
        # by identity, and held so that it stays one: containers do not change in the sandbox
        self._weights: dict[int, tuple[Any, int]] = {}

    def charge(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise LimitError(f"it takes more than {MAX_STEPS:,} steps")

    def tick(self, value: Any) -> Any:
        """Charge for a step; returns `value`."""
        self.charge(1)
        return value

    def read(self, value: Any) -> Any:
        """Charge for looking at the whole of `value`; returns it."""
        weight = len(value) if type(value) is str else self.weigh(value)
        self.charge(2 + weight // CHARACTERS_A_STEP)
        return value

    def look(self, value: Any) -> Any:
        """Charge for being given `value`, which was there before; returns it, an iterator counted."""
        self.charge(FILTER)
        if isinstance(value, Iterator):
            return self.count(value)
        self.weigh(value)
        return value

    def made(self, value: Any) -> Any:
        """Charge for having made `value`, and for the memory that it takes; returns it, an iterator counted."""
        self.charge(FILTER)
        if value is None or value is True or value is False:
            return value
        if isinstance(value, Iterator):
            return self.count(value)
        weight = self.weigh(value)
        self.charge(weight // CHARACTERS_A_STEP)
        self._allocate(getsizeof(value))
        return value

    def write(self, size: int) -> None:
        """Charge for `size` characters of the result."""
        self.charge(1)
        self._allocate(size)

    def expect(self, size: int) -> None:
        """Refuse what would make a value of `size` characters, before it is made."""
        if size > MAX_VALUE:
            raise LimitError(f"it makes a text of more than {MAX_VALUE:,} characters")

    def expect_bits(self, bits: int) -> None:
        """Refuse what would make a whole number of so many bits."""
        if bits > MAX_BITS:
            raise LimitError(f"it makes a number of more than {MAX_BITS:,} bits")

    def weigh(self, value: Any) -> int:
        """About how many characters `value` has when it is written out."""
        weight, _ = self._weigh(value)
        return weight

    def _weigh(self, value: Any) -> tuple[int, bool]:
        """The weight, and whether it can never change."""
        if isinstance(value, str | bytes):
            weight = len(value)
            self.expect(weight)
            return weight, True
        if isinstance(value, int):
            self.expect_bits(value.bit_length())
            return 1, True
        if isinstance(value, Namespace):
            return self._weigh_namespace(value), False
        if isinstance(value, range):
            return 8 * len(value), True
        if isinstance(value, Mapping):
            return self._weigh_parts(value, (part for item in value.items() for part in item))
        if isinstance(value, list | tuple | set | frozenset):
            return self._weigh_parts(value, value)
        if isinstance(value, LoopContext | Macro | Undefined) or not isinstance(value, Iterable):
            return 1, True
        try:
            return 8 * len(value), False  # type: ignore[arg-type]  # views of a mapping
        except TypeError:
            return 1, True

    def _weigh_namespace(self, value: Namespace) -> int:
        # its attributes may be set anew, so that it is weighed each time
        attributes: dict[str, Any] = object.__getattribute__(value, "_Namespace__attrs")
        self.charge(NAMESPACE)
        return 20 + sum(len(name) + self._weigh(part)[0] for name, part in attributes.items())

    def _weigh_parts(self, whole: Any, parts: Iterable[Any]) -> tuple[int, bool]:
        known = self._weights.get(id(whole))
        if known is not None:
            return known[1], True
        weight, fixed = 2, True
        for part in parts:
            self.steps += PART
            if type(part) is str:
                weight += len(part) + 2
            else:
                one, same = self._weigh(part)
                weight += one + 2
                fixed = fixed and same
            if weight > MAX_VALUE or self.steps > MAX_STEPS:
                self.expect(weight)
                self.charge(0)
        if fixed:
            self._weights[id(whole)] = (whole, weight)
        return weight, fixed

    def count(self, values: Iterator[Any]) -> Iterator[Any]:
        """Each of `values`, charged as it comes."""
        for value in values:
            self.made(value)
            yield value

    def _allocate(self, size: int) -> None:
        self.bytes += size
        if self.bytes > MAX_BYTES:
            raise LimitError(f"it makes more than {MAX_BYTES >> 20} MiB of text")
