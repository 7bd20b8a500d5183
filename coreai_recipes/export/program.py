"""A recipe's whole program: the functions of its stacks, linked of fragments."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.model import Decoder
from coreai_recipes.decoder.stack import StackModule
from coreai_recipes.export.decoder_program import DecoderProgram
from coreai_recipes.export.draft_program import DraftProgram
from coreai_recipes.export.fragments import Fragment, Port
from coreai_recipes.export.linker import FunctionLinker
from coreai_recipes.export.package import Signature, describe_function, new_model
from coreai_recipes.export.stack_program import Numbers, StackProgram
from coreai_recipes.protobuf import Model_pb2
from coreai_recipes.storage.layout import WeightLayout


def programs_of(stacks: Sequence[StackModule]) -> Iterator[StackProgram]:
    """What each stack becomes."""
    for stack in stacks:
        match stack:
            case Decoder():
                yield DecoderProgram(stack)
            case Draft():
                yield DraftProgram(stack, stacks[0])
            case _:
                raise TypeError(f"nothing is known of how {type(stack).__name__} is exported")


def fragments_of(stacks: Sequence[StackModule]) -> dict[str, Fragment]:
    """Every fragment that the functions need, by name."""
    return {fragment.name: fragment for program in programs_of(stacks) for fragment in program.fragments()}


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
    stacks: Sequence[StackModule], converted: dict[str, bytes], layout: WeightLayout, numbers: Numbers
) -> LinkedProgram:
    """Each function, linked from `converted` fragments; the weights get their places in `layout`.

    `numbers` are the parameters that are no weights, by their names in a package: what of a checkpoint stands in the
    program itself.
    """
    models = {name: Model_pb2.Model.FromString(data) for name, data in converted.items()}
    model, signatures = new_model("decode"), dict[str, Signature]()
    for program in programs_of(stacks):
        for name in program.functions:
            linker = FunctionLinker(layout, model.mlProgram.functions[name])
            signatures[name] = program.link(name, models, linker, numbers)
            describe_function(model, name, signatures[name])
    return LinkedProgram(model.SerializeToString(deterministic=True), signatures)


def fragment_identity(fragment: Fragment) -> str:
    """The fragment's identity as canonical JSON, for a fingerprint."""
    return json.dumps(fragment.identity(), sort_keys=True)
