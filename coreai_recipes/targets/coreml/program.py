"""The model message: every function of a package, linked and described."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.export.fragments import Port
from coreai_recipes.export.functions import link_functions
from coreai_recipes.export.linking import Numbers
from coreai_recipes.export.reporting import Signature
from coreai_recipes.protobuf import Model_pb2
from coreai_recipes.storage.chunks import Chunk
from coreai_recipes.storage.layout import WeightLayout
from coreai_recipes.targets.coreml.linker import FunctionLinker
from coreai_recipes.targets.coreml.mlpackage import describe_function, new_model


@dataclass(frozen=True)
class LinkedProgram:
    """The bytes of model.mlmodel, and what the callers of each function see."""

    model: bytes
    signatures: dict[str, Signature]

    def to_bytes(self) -> bytes:
        said = json.dumps({name: asdict(found) for name, found in self.signatures.items()})
        return said.encode() + b"\n" + self.model

    @classmethod
    def from_bytes(cls, data: bytes) -> "LinkedProgram":
        said, _, model = data.partition(b"\n")
        signatures = {
            name: Signature(**{side: _ports(ports) for side, ports in sides.items()})
            for name, sides in json.loads(said).items()
        }
        return cls(model, signatures)


def _ports(said: dict[str, Any]) -> dict[str, Port]:
    return {name: Port(port["dtype"], tuple(port["shape"])) for name, port in said.items()}


def link_program(
    stacks: Sequence[StackModule],
    chunks: Sequence[Chunk],
    chunk: Chunk,
    converted: dict[str, bytes],
    layout: WeightLayout,
    numbers: Numbers,
) -> LinkedProgram:
    """Each function of a package, linked from `converted` fragments; the weights get their places in `layout`."""
    models = {name: Model_pb2.Model.FromString(data) for name, data in converted.items()}
    model = new_model()
    functions = model.mlProgram.functions
    signatures = link_functions(
        stacks, chunks, chunk, models, lambda name: FunctionLinker(layout, functions[name]), numbers
    )
    model.description.defaultFunctionName = next(iter(signatures))
    for name, signature in signatures.items():
        describe_function(model, name, signature)
    return LinkedProgram(model.SerializeToString(deterministic=True), signatures)
