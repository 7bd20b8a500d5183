"""A program that is linked, as a target's own bytes."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from coreai_recipes.export.fragments import Port
from coreai_recipes.export.reporting import Signature


@dataclass(frozen=True)
class LinkedProgram:
    """The bytes of the program without its weights, and what the callers of each function see."""

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
