"""A recipe's whole program: which fragments run in which function, and how their names meet."""

import json
from dataclasses import dataclass
from typing import Any

from coreai_recipes.export.fragments import (
    FLOAT,
    INTEGER,
    Fragment,
    Port,
    front_fragment,
    head_fragment,
    layer_fragment,
    pick_fragment,
)
from coreai_recipes.export.linker import FunctionLinker
from coreai_recipes.export.package import Signature, describe_function, new_model
from coreai_recipes.export.weights import WeightLayout
from coreai_recipes.model import Decoder
from coreai_recipes.protobuf import Model_pb2


def fragments_of(decoder: Decoder) -> dict[str, Fragment]:
    """Every fragment that the recipe's functions need, by name."""
    functions = decoder.recipe.export.functions.queries
    found = []
    for name, queries in functions.items():
        found += [front_fragment(decoder, queries), head_fragment(decoder, _head_queries(name, queries))]
        found += [layer_fragment(decoder, kind, queries) for kind in decoder.front.kinds]
        if name == "prefill":
            found.append(pick_fragment(decoder, queries))
    return {fragment.name: fragment for fragment in found}


@dataclass(frozen=True)
class LinkedProgram:
    """The model message, and what the callers of each function see."""

    model: Any
    signatures: dict[str, Signature]


def link_program(decoder: Decoder, converted: dict[str, bytes], layout: WeightLayout) -> LinkedProgram:
    """Each function of the recipe, linked from `converted` fragments; the weights get their places in `layout`."""
    fragments = {name: Model_pb2.Model.FromString(data) for name, data in converted.items()}
    program = LinkedProgram(new_model("decode"), {})
    for name, queries in decoder.recipe.export.functions.queries.items():
        linker = FunctionLinker(layout, program.model.mlProgram.functions[name])
        program.signatures[name] = _link_function(decoder, name, queries, fragments, linker)
        describe_function(program.model, name, program.signatures[name])
    return program


def _link_function(
    decoder: Decoder, name: str, queries: int, models: dict[str, Any], linker: FunctionLinker
) -> Signature:
    front, model = decoder.front, decoder.recipe.model
    inputs = {"input_ids": Port(INTEGER, (1, queries)), "position": Port(INTEGER, (1,))}
    if name != "decode":
        inputs["count"] = Port(INTEGER, (1,))
    head_queries = _head_queries(name, queries)
    outputs = {"logits": Port(FLOAT, (1, head_queries, model.vocab_size))}
    specs = front.states.items()
    states = {f"{half}_{kind}": Port(FLOAT, spec.shape) for kind, spec in specs for half in "kv"}

    for port_name, port in inputs.items():
        linker.add_input(port_name, port.dtype, port.shape)
    for state_name, port in states.items():
        linker.add_state(state_name, port.shape)

    fragment = front_fragment(decoder, queries)
    shared = {port_name: port_name for port_name in (*inputs, *fragment.outputs)}
    linker.append(models[fragment.name], "front_", {**shared, "x": "hidden_0"}, fragment.parameters)
    layers = {kind: layer_fragment(decoder, kind, queries) for kind in front.kinds}
    for index, kind in enumerate(model.layer_kinds):
        names = {
            "x": f"hidden_{index}",
            "y": f"hidden_{index + 1}",
            "slot": linker.add_integer(f"slot_{index}", decoder.slots[index]),
            "cos": f"cos_{front.angle_group(kind)}",
            "sin": f"sin_{front.angle_group(kind)}",
            "mask": f"mask_{front.mask_group(kind)}",
            "place": f"place_{front.mask_group(kind)}",
            "position": "position",
            "keys": f"k_{kind}",
            "values": f"v_{kind}",
        }
        parameters = {alias: f"layers.{index}.{p}" for alias, p in layers[kind].parameters.items()}
        linker.append(models[layers[kind].name], f"layer_{index}_", names, parameters)
    last = f"hidden_{len(model.layer_kinds)}"
    if name == "prefill":
        names = {"x": last, "y": "hidden_last", "count": "count"}
        linker.append(models[pick_fragment(decoder, queries).name], "pick_", names, {})
        last = "hidden_last"
    head = head_fragment(decoder, head_queries)
    linker.append(models[head.name], "head_", {"x": last, "logits": "logits"}, head.parameters)
    for output in outputs:
        linker.add_output(output)
    return Signature(inputs, outputs, states)


def fragment_identity(fragment: Fragment) -> str:
    """The fragment's identity as canonical JSON, for a fingerprint."""
    return json.dumps(fragment.identity(), sort_keys=True)


def _head_queries(function: str, queries: int) -> int:
    """Only `score` gives the logits of every token."""
    return queries if function == "score" else 1
