"""Core ML's protobuf messages, as coremltools ships them. A leaf.

`from coremltools.proto import ...` imports all of coremltools first, its converters and what they know of transformers:
2.5 s, which a run or a build from cached fragments has no use for. The generated modules stand on their own, and give
the very classes that coremltools gives, so both can live in one process.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_ALIAS = f"{__name__}.generated"


def _generated(name: str) -> Any:
    if _ALIAS not in sys.modules:
        spec = find_spec("coremltools")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("coremltools is not installed", name="coremltools")
        package = ModuleType(_ALIAS)
        package.__path__ = [str(Path(spec.origin).parent / "proto")]
        sys.modules[_ALIAS] = package
    return import_module(f"{_ALIAS}.{name}")


MIL_pb2 = _generated("MIL_pb2")
Model_pb2 = _generated("Model_pb2")
FeatureTypes_pb2 = _generated("FeatureTypes_pb2")
