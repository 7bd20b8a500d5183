"""A program that is linked, as a target's own bytes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.export.cache import fingerprint
from coreai_recipes.export.converting import code_digest
from coreai_recipes.export.fragments import Port
from coreai_recipes.export.linking import Numbers
from coreai_recipes.export.reporting import Signature
from coreai_recipes.recipe import recipe_text
from coreai_recipes.storage.chunks import Chunk


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


def program_key(
    target: str, code: Iterable[Path], stacks: Sequence[StackModule], chunk: Chunk, numbers: Numbers, *made_of: str
) -> str:
    """Under which a linked program is kept: all that it is made of. `code` are folders of modules."""
    said = [f"{name} {values.tolist()}" for name, values in numbers.items()]
    place = f"{chunk.number} of {chunk.count}: {chunk.first} to {chunk.end}"
    digest = code_digest(sorted(file for folder in code for file in folder.glob("*.py")))
    return fingerprint(target, digest, recipe_text(stacks[0].recipe), place, *made_of, *said)


def _ports(said: dict[str, Any]) -> dict[str, Port]:
    return {name: Port(port["dtype"], tuple(port["shape"])) for name, port in said.items()}
