"""A recipe's whole program: which fragments run in which function, and how their names meet."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coreai_recipes.decoder.draft import DRAFT, Draft, step_names
from coreai_recipes.decoder.model import PER_LAYER_ROWS, Decoder
from coreai_recipes.decoder.states import states_of
from coreai_recipes.export.draft_fragments import (
    draft_front_fragment,
    draft_head_fragment,
    draft_layer_fragment,
    draft_start_fragment,
    joining_fragment,
)
from coreai_recipes.export.fragments import (
    FLOAT,
    INTEGER,
    Fragment,
    Port,
    choice_fragment,
    front_fragment,
    head_fragment,
    layer_fragment,
    pick_fragment,
    state_names,
)
from coreai_recipes.export.linker import FunctionLinker
from coreai_recipes.export.package import Signature, describe_function, new_model
from coreai_recipes.export.weights import WeightLayout
from coreai_recipes.protobuf import Model_pb2
from coreai_recipes.recipe.schema import Recipe


def fragments_of(decoder: Decoder, draft: Draft | None = None) -> dict[str, Fragment]:
    """Every fragment that the recipe's functions need, by name."""
    found: list[Fragment] = []
    for name, queries in decoder.recipe.export.functions.queries.items():
        call = decoder.call(name)
        found += [front_fragment(decoder, call), head_fragment(decoder, _head_queries(name, queries))]
        found += [layer_fragment(decoder, kind, call) for kind in decoder.front.kinds]
        found += _choices(decoder.recipe, _head_queries(name, queries), decoder.recipe.model.vocab_size)
        if name == "prefill":
            found += _picks(decoder, queries).values()
    if draft is not None:
        found += [draft_front_fragment(draft), draft_start_fragment(decoder, draft), draft_head_fragment(draft)]
        found += [draft_layer_fragment(draft, kind) for kind in dict.fromkeys(draft.spec.layer_kinds)]
        found += [*_draft_choices(draft), *([joining_fragment(draft.spec.steps)] if draft.spec.steps > 1 else [])]
    return {fragment.name: fragment for fragment in found}


@dataclass(frozen=True)
class LinkedProgram:
    """The model message, and what the callers of each function see."""

    model: Any
    signatures: dict[str, Signature]


def link_program(
    decoder: Decoder,
    converted: dict[str, bytes],
    layout: WeightLayout,
    draft: Draft | None = None,
    ordering: NDArray[np.int32] | None = None,
) -> LinkedProgram:
    """Each function of the recipe, linked from `converted` fragments; the weights get their places in `layout`.

    `ordering` are the tokens of the draft's clusters, where it has such: the one thing of a checkpoint that stands in
    the program itself.
    """
    fragments = {name: Model_pb2.Model.FromString(data) for name, data in converted.items()}
    program = LinkedProgram(new_model("decode"), {})
    for name, queries in decoder.recipe.export.functions.queries.items():
        linker = FunctionLinker(layout, program.model.mlProgram.functions[name])
        program.signatures[name] = _link_function(decoder, name, queries, fragments, linker)
        describe_function(program.model, name, program.signatures[name])
    if draft is not None:
        linker = FunctionLinker(layout, program.model.mlProgram.functions[DRAFT])
        program.signatures[DRAFT] = _link_draft(decoder, draft, fragments, linker, ordering)
        describe_function(program.model, DRAFT, program.signatures[DRAFT])
    return program


def _link_function(
    decoder: Decoder, name: str, queries: int, models: dict[str, Any], linker: FunctionLinker
) -> Signature:
    front, model, call = decoder.front, decoder.recipe.model, decoder.call(name)
    inputs = {"input_ids": Port(INTEGER, (1, queries)), "position": Port(INTEGER, (1,))}
    if name != "decode":
        inputs["count"] = Port(INTEGER, (1,))
    head, fragment = head_fragment(decoder, _head_queries(name, queries)), front_fragment(decoder, call)
    if PER_LAYER_ROWS in fragment.inputs:
        inputs[PER_LAYER_ROWS] = fragment.inputs[PER_LAYER_ROWS]
    states = _declare(decoder, inputs, linker)

    shared = {port_name: port_name for port_name in (*inputs, *fragment.outputs)}
    linker.append(models[fragment.name], "front_", {**shared, "x": "hidden_0"}, fragment.parameters)
    layers = {kind: layer_fragment(decoder, kind, call) for kind in front.kinds}
    picks = _picks(decoder, queries) if name == "prefill" else {}
    per_layer, x = "per_layer_inputs", "hidden_0"

    def pick_last() -> tuple[str, str]:
        """From here on only the last real token is needed."""
        for value, pick in picks.items():
            source = x if value == "hidden" else per_layer
            names = {"x": source, "y": f"{value}_last", "count": "count"}
            linker.append(models[pick.name], f"pick_{value}_", names, {})
        picks.clear()
        return "hidden_last", "per_layer_inputs_last"

    for index, kind in enumerate(model.layer_kinds):
        if picks and call.tokens_of(kind) < queries:
            x, per_layer = pick_last()
        names = {
            "x": x,
            "y": f"hidden_{index + 1}",
            "slot": linker.add_integer(f"slot_{index}", decoder.slots[index]),
            "index": linker.add_integer(f"index_{index}", index),
            **{port: call.source(kind, port) for port in call.ports(kind)},
            "per_layer_inputs": per_layer,
            **state_names(front.state(kind)),
        }
        parameters = {alias: f"layers.{index}.{p}" for alias, p in layers[kind].parameters.items()}
        linker.append(models[layers[kind].name], f"layer_{index}_", names, parameters)
        x = names["y"]
    if picks:
        x, _ = pick_last()
    choices = _choices(decoder.recipe, _head_queries(name, queries), model.vocab_size)
    return Signature(inputs, _give(_link_head(head, {"x": x}, choices, models, linker), linker), states)


def _link_head(
    head: Fragment,
    names: dict[str, str],
    choices: list[Fragment],
    models: dict[str, Any],
    linker: FunctionLinker,
    at: str = "",
) -> dict[str, Port]:
    """The end of a function, and what it gives. Where the package chooses the token, its logits are a value inside."""
    outputs, named = dict(head.outputs), {name: name for name in head.outputs} | names
    linker.append(models[head.name], f"{at}head_", named, head.parameters)
    for choice in choices:
        chosen = {name: named[name] for name in choice.inputs} | {name: f"{at}{name}" for name in choice.outputs}
        linker.append(models[choice.name], f"{at}choice_", chosen, {})
        outputs = {**choice.outputs, **{name: port for name, port in outputs.items() if name not in choice.inputs}}
    return outputs


def _give(outputs: dict[str, Port], linker: FunctionLinker) -> dict[str, Port]:
    """Make these the outputs of a function."""
    for output in outputs:
        linker.add_output(output)
    return outputs


def _choices(recipe: Recipe, tokens: int, vocab_size: int) -> list[Fragment]:
    """What chooses the best token within the package, where the recipe asks for it."""
    return [choice_fragment(tokens, vocab_size)] if recipe.export.outputs == "ids" else []


def _declare(decoder: Decoder, inputs: dict[str, Port], linker: FunctionLinker) -> dict[str, Port]:
    """Give a function its inputs, and the states, which are the same in all of them."""
    states = {name: Port(FLOAT, state.shape) for name, state in states_of(decoder.front.states).items()}
    for name, port in inputs.items():
        linker.add_input(name, port.dtype, port.shape)
    for name, port in states.items():
        linker.add_state(name, port.shape)
    return states


def _link_draft(
    decoder: Decoder,
    draft: Draft,
    models: dict[str, Any],
    linker: FunctionLinker,
    ordering: NDArray[np.int32] | None,
) -> Signature:
    """Where a call drafts several tokens, each step is given the token and the hidden state of the step before it."""
    front, start, head = draft_front_fragment(draft), draft_start_fragment(decoder, draft), draft_head_fragment(draft)
    inputs = {name: port for name, port in start.inputs.items() if name not in start.parameters} | front.inputs
    states = _declare(decoder, inputs, linker)
    linker.append(models[front.name], "front_", {name: name for name in (*front.inputs, *front.outputs)}, {})
    steps, choices = draft.spec.steps, _draft_choices(draft)
    given = {} if ordering is None else {"ordering": linker.add_integers("ordering", ordering)}
    names, outputs = {"input_ids": "input_ids", "last_hidden": "last_hidden"}, dict[str, Port]()
    for step, (logits, hidden) in enumerate(step_names(steps)):
        at = f"step_{step}_" if steps > 1 else ""
        linker.append(models[start.name], f"{at}start_", {**names, "x": f"{at}hidden_0"}, start.parameters)
        for index, kind in enumerate(draft.spec.layer_kinds):
            fragment, owner = draft_layer_fragment(draft, kind), draft.owner(kind)
            names = {
                "x": f"{at}hidden_{index}",
                "y": f"{at}hidden_{index + 1}",
                "slot": linker.add_integer(f"slot_{index}", draft.slot(owner)),
                **{port: f"{port}_{kind}" for port in ("cos", "sin", "mask")},
                **state_names(draft.owners[owner]),
            }
            parameters = {alias: f"draft.layers.{index}.{name}" for alias, name in fragment.parameters.items()}
            linker.append(models[fragment.name], f"{at}layer_{index}_", names, parameters)
        names = {"x": f"{at}hidden_{len(draft.spec.layer_kinds)}", "logits": logits, "hidden": hidden, **given}
        outputs = _link_head(head, names, choices, models, linker, at)
        names = {"input_ids": f"{at}ids", "last_hidden": hidden}
    if steps > 1:
        joining = joining_fragment(steps)
        linker.append(
            models[joining.name], "joining_", {name: name for name in (*joining.inputs, *joining.outputs)}, {}
        )
        outputs |= joining.outputs
    return Signature(inputs, _give(outputs, linker), states)


def _draft_choices(draft: Draft) -> list[Fragment]:
    """A step takes the token that the step before it chose, within the package."""
    if draft.spec.steps > 1:
        return [choice_fragment(1, draft.spec.vocab_size)]
    return _choices(draft.recipe, 1, draft.spec.vocab_size)


def _picks(decoder: Decoder, queries: int) -> dict[str, Fragment]:
    """What a prefill picks the last real token of: the hidden state, and what the layers behind it are given."""
    picks = {"hidden": pick_fragment("pick", (1, decoder.recipe.model.hidden_size, 1, queries))}
    per_layer = decoder.front.per_layer
    if per_layer is not None and decoder.front.sharing("prefill") == "last":
        picks["per_layer_inputs"] = pick_fragment("pick_per_layer", (per_layer.layers, per_layer.size, 1, queries))
    return picks


def fragment_identity(fragment: Fragment) -> str:
    """The fragment's identity as canonical JSON, for a fingerprint."""
    return json.dumps(fragment.identity(), sort_keys=True)


def _head_queries(function: str, queries: int) -> int:
    """Only `score` gives the logits of every token."""
    return queries if function == "score" else 1
