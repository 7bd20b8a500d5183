"""Constants in weight.bin: whether each is there, and the first numbers of a mask. Nothing else is read."""

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from coreai_recipes.errors import BundleError
from coreai_recipes.evaluate.errors import EvaluationError
from coreai_recipes.lint.program import Function, Program, Value
from coreai_recipes.manifest.files import check_relative, locate

MOST_NUMBERS = 1024
RECORD = struct.Struct("<IIQQQ")  # the mark, the element type, the size in bytes, the offset of the data, padding
RECORD_BYTES = 64  # with what is kept free behind them
MARK = 0xDEADBEEF
FORMATS = {"float16": "e", "float32": "f"}

Peek = Callable[[Value], list[float] | None]


def check_weights(program: Program, model_file: Path, package: Path) -> None:
    """Raises EvaluationError for the first weight of a program that is not whole in its file."""
    values = (value for function in program.functions for value in _stored(function))
    for name, offset in sorted({value.blob for value in values if value.blob is not None}):
        file = _file_of(name, model_file, package)
        try:
            handle = None if file is None else os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise EvaluationError(f"{file}: the program's weights cannot be read: {error.strerror}") from None
        if handle is None:
            raise EvaluationError(f"{package}: its program's weights are in {name!r:.80}, which is not a file of it")
        try:
            size = os.fstat(handle).st_size
            if offset + RECORD_BYTES > size:
                raise EvaluationError(
                    f"{file}: is {size} bytes, but the program has a weight at byte {offset}: the file is truncated"
                )
            mark, _, length, start, _ = RECORD.unpack(os.pread(handle, RECORD.size, offset))
        finally:
            os.close(handle)
        if mark != MARK:
            raise EvaluationError(f"{file}: there is no weight at byte {offset}, where the program has one")
        if start + length > size:
            raise EvaluationError(
                f"{file}: is {size} bytes, but the weight at byte {offset} ends at byte {start + length}: the file is "
                "truncated"
            )


def _stored(function: Function) -> Iterator[Value]:
    yield from function.constants
    for operation in function.operations:
        yield from operation.values()


def _file_of(name: str, model_file: Path, package: Path) -> Path | None:
    """The file that a program calls `name`, None where that is no file of the package."""
    try:
        file = model_file.parent / check_relative(name.removeprefix("@model_path/"))
        return locate(file.parent, file.name) if file.resolve().is_relative_to(package.resolve()) else None
    except (ValueError, OSError, BundleError):
        return None


def peek_into(model_file: Path, package: Path) -> Peek:
    """Reads the first numbers of a float constant; None for any other, and for what is not where the program says."""

    def peek(value: Value) -> list[float] | None:
        code = FORMATS.get(value.dtype)
        if value.blob is None or code is None or value.count < 1:
            return None
        name, offset = value.blob
        file = _file_of(name, model_file, package)
        try:
            handle = None if file is None else os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            handle = None
        if handle is None:
            return None  # whoever runs the program says so
        try:
            head = os.pread(handle, RECORD.size, offset)
            if len(head) < RECORD.size:
                return None
            mark, _, size, start, _ = RECORD.unpack(head)
            width = struct.calcsize(code)
            count = min(MOST_NUMBERS, value.count, size // width)
            data = os.pread(handle, count * width, start) if mark == MARK else b""
        except OverflowError:  # an offset that no file has
            return None
        except OSError:
            return None
        finally:
            os.close(handle)
        return list(struct.unpack(f"<{len(data) // width}{code}", data[: len(data) // width * width])) or None

    return peek
