"""What a bundle must be, given its recipe: its manifest is held against it, and the package against the manifest.

A manifest tells a host how to call a package. One that contradicts the recipe that was built, or the package that lies
there, leads to wrong tokens or worse, whoever wrote it.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from coreai_recipes.decoder.model import EMBEDDED, PER_LAYER_TABLE, table_file
from coreai_recipes.decoder.states import COMMIT, CarriedSpec, RowsSpec, StateSpec
from coreai_recipes.decoder.states import State as KeptState
from coreai_recipes.errors import BundleError
from coreai_recipes.hosts.anemll import functions_of as functions_of_anemll
from coreai_recipes.hosts.coreai_models import functions_of as functions_of_static
from coreai_recipes.hosts.coreai_models_dynamic import MAIN
from coreai_recipes.hosts.coreai_models_dynamic import ports_of as ports_of_main
from coreai_recipes.hosts.logits import Pieces
from coreai_recipes.manifest.reading import MANIFEST
from coreai_recipes.manifest.schema import Manifest, Port, Program, State
from coreai_recipes.planning.adapter_contract import adapters_in_manifest
from coreai_recipes.recipe.host_form import anemll_form, dynamic_form, static_form
from coreai_recipes.recipe.schema import DRAFT, MODEL, Recipe
from coreai_recipes.storage.chunks import (
    buffers_of_packages,
    carried_of_packages,
    low_rank_of_packages,
    states_of_draft,
    states_of_packages,
)
from coreai_recipes.storage.compression import Compression
from coreai_recipes.storage.parameters import EMBEDDING, TABLE_INPUTS
from coreai_recipes.storage.rows import describe_rows

MOST_NAMED = 20
Described = Mapping[str, tuple[str, tuple[int, ...]]]  # dtype and shape of ports by name
Called = tuple[int, Described, Described]


def hold_manifest(manifest: Manifest, recipe: Recipe, place: str) -> None:
    """Raise BundleError with everything in which the manifest contradicts the recipe that was built."""
    said = f"{place}: {MANIFEST}"
    problems = [f"{said}: {problem}, by its recipe.yaml" for problem in _contradictions(manifest, recipe)]
    BundleError.collect(problems[:MOST_NAMED])


def hold_package(folder: Path, program: Program, manifest: Manifest) -> None:
    """Raise UserError with everything in which a package's functions are not those that the manifest describes."""
    from coreai_recipes.evaluate.package_reader import Package

    package = folder / program.file
    if package.suffix == ".aimodel":  # whose signatures Core AI's runtime reads: `running.coreai` holds them
        return
    opened = Package(package, checked=False)
    found = opened.signatures()
    described, there = program.functions.keys(), found.keys()
    problems = [f"has no function {name}, which the manifest describes" for name in described - there]
    problems += [f"has a function {name!r:.80}, of which the manifest says nothing" for name in there - described]
    held = {name: (state.dtype, state.shape) for name, state in manifest.states.items()}
    if len(manifest.programs) > 1:  # each has the states of its own layers
        own_states = {name for _, _, own in found.values() for name in own}
        held = {name: state for name, state in held.items() if name in own_states}
    for name in sorted(described & there):
        inputs, outputs, own = found[name]
        function = program.functions[name]
        for what, ports, wanted in (
            ("input", inputs, _ports(function.inputs)),
            ("output", outputs, _ports(function.outputs)),
            ("state", own, held),
        ):
            problems += [f"function {name}: {problem}" for problem in _differences(what, ports, wanted)]
    problems += _misdescriptions(opened.description, program, held)
    BundleError.collect(f"{package}: {problem}" for problem in sorted(problems)[:MOST_NAMED])


def _misdescriptions(description: Any, program: Program, states: Iterable[str]) -> Iterator[str]:
    """What the package says to Core ML of its functions, where it is not what they are."""
    said = {function.name: function for function in description.functions}
    if said.keys() != program.functions.keys() or len(said) != len(description.functions):
        yield f"its description has the functions {_names(said)} and must have {_names(program.functions)}"
    for name in sorted(said.keys() & program.functions.keys()):
        function = program.functions[name]
        for what, features, wanted in (
            ("inputs", said[name].input, function.inputs.keys()),
            ("outputs", said[name].output, function.outputs.keys()),
            ("states", said[name].state, states),
        ):
            found = [feature.name for feature in features]
            if sorted(found) != sorted(wanted):
                yield f"its description of {name} has the {what} {_names(found)} and must have {_names(wanted)}"


def _contradictions(manifest: Manifest, recipe: Recipe) -> Iterator[str]:
    model, export, pieces = recipe.model, recipe.export, Pieces(recipe.model.vocab_size)
    for key, found, wanted in (
        ("name", manifest.name, recipe.name),
        ("context", manifest.context, export.context),
        ("vocab_size", manifest.vocab_size, model.vocab_size),
        ("host", manifest.host, export.host),
        ("logits.pieces", manifest.logits.pieces, pieces.count),
        ("logits.columns", manifest.logits.columns, pieces.columns),
    ):
        if found != wanted:
            yield f"{key} is {found!r:.80} and must be {wanted!r:.80}"
    merged = [each.name for each in manifest.checkpoint.adapters or ()]
    if merged != (named := [each.name for each in recipe.adapters or ()]):
        yield f"checkpoint.adapters are {_names(merged)} and must be {_names(named)}"
    if (manifest.checkpoint.draft is None) != (recipe.draft is None):
        yield f"checkpoint.draft is {'missing' if recipe.draft else 'there'} and must not be"
    tables = [table.model_dump(mode="json", exclude_none=True) for table in manifest.tables]
    if tables != list(tables_of(recipe).values()):
        yield f"packages has the tables {_shown(tables)} and must have {_shown(tables_of(recipe).values())}"
    yield from _layer_contradictions(manifest, len(model.layer_kinds))
    functions, described = functions_of(recipe), manifest.functions
    if described.keys() != functions.keys():
        yield f"packages: functions are {', '.join(described)} and must be {', '.join(functions)}"
    for name, (query, inputs, outputs) in functions.items():
        function = described.get(name)
        if function is not None:
            if function.query != query:
                yield f"packages: functions.{name}: query is {function.query} and must be {query}"
            if function.steps != steps_of(recipe, name):
                found, wanted = (_shown_number(steps) for steps in (function.steps, steps_of(recipe, name)))
                yield f"packages: functions.{name}: steps is {found} and must be {wanted}"
            differences = (
                *_differences("input", _ports(function.inputs), inputs),
                *_differences("output", _ports(function.outputs), outputs),
            )
            yield from (f"packages: functions.{name}: {difference}" for difference in differences)
    yield from _state_contradictions(manifest.states, recipe)
    carried = carried_in_manifest(recipe)
    said = {name: tensor.model_dump(mode="json") for name, tensor in (manifest.carried or {}).items()}
    if said != carried:
        yield f"carried is {_said(said)} and must be {_said(carried)}"
    adapters = None if manifest.adapters is None else manifest.adapters.model_dump(mode="json")
    if adapters != adapters_in_manifest(recipe):
        yield "adapters are not the inputs and files that its export.low_rank and its adapters ask for"


def _layer_contradictions(manifest: Manifest, layers: int) -> Iterator[str]:
    """A single program has all layers; of several, those of each function have them one after another. A draft has its
    own."""
    if len(manifest.programs) == 1:
        (program,) = manifest.programs
        if (program.role, program.layers) != ("all", (0, layers)):
            found = f"{list(program.layers)} of role {program.role}"
            yield f"packages: layers is {found} and must be [0, {layers}] of role all"
        return
    for name in [name for name in manifest.functions if name not in (DRAFT, COMMIT)]:
        parts = [program.layers for program in manifest.programs if name in program.functions]
        ends = [0, *(end for _, end in parts)]
        if [start for start, _ in parts] != ends[:-1] or ends[-1] != layers:
            shown = ", ".join(str(list(part)) for part in parts)
            yield f"packages: functions.{name}: layers are {shown} and must follow one another from 0 to {layers}"


def _state_contradictions(states: Mapping[str, State], recipe: Recipe) -> Iterator[str]:
    """Rows are a builder's choice, as long as they hold what the recipe asks for."""
    expected = {} if recipe.export.is_functional else states_of_packages(recipe)
    if states.keys() != expected.keys():
        yield f"states are {', '.join(states) or 'none'} and must be {', '.join(expected) or 'none'}"
    for name in (name for name in expected if name in states):
        state, wanted = states[name], expected[name]
        rows = state.shape[2]
        shape = (*wanted.shape[:2], rows, wanted.shape[3])
        if (state.role, state.shape) != (wanted.role, shape):
            found = f"{state.role} {list(state.shape)}"
            yield f"states.{name} is {found} and must be {wanted.role} {list(shape)}"
        kinds = {kind: (places.first, places.count, places.window) for kind, places in state.kinds.items()}
        places = {spec.kind: (spec.first, spec.layers, spec.window) for spec in wanted.kinds}
        if kinds != places:
            yield f"states.{name} has {_placed(kinds)} and must have {_placed(places)}"
        needed = max(rows_needed(spec, recipe) for spec in wanted.kinds)
        if rows < needed:
            yield f"states.{name} has {rows} rows and must have {needed} or more"


def states_in_manifest(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What a manifest says of the states by name: none where the host keeps what they would be."""
    if recipe.export.is_functional:
        return {}
    return {name: _describe_state(state) for name, state in states_of_packages(recipe).items()}


def carried_in_manifest(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What a manifest says of the tensors by name that a call takes and leaves something of for the next."""
    specs: dict[str, CarriedSpec | RowsSpec] = {**carried_of_packages(recipe), **buffers_of_packages(recipe)}
    rollback = "commit" if recipe.export.buffer else "none"
    found = {name: _describe_carried(spec, rollback) for name, spec in specs.items()}
    if recipe.export.is_functional:
        caches = states_of_packages(recipe).items()
        found |= {name: {**_describe_state(state), "rollback": "rows"} for name, state in caches}
    return found


def _describe_state(state: KeptState) -> dict[str, Any]:
    kinds = {
        spec.kind: {"first": spec.first, "count": spec.layers, "rows": spec.rows, "window": spec.window}
        for spec in state.kinds
    }
    return {"dtype": "float16", "shape": list(state.shape), "role": state.role, "kinds": kinds}


def _describe_carried(spec: CarriedSpec | RowsSpec, rollback: str) -> dict[str, Any]:
    return {
        "dtype": "float16",
        "shape": list(spec.shape),
        "role": spec.role,
        "rollback": rollback,
        "kind": spec.kind,
        "count": spec.layers,
    }


def _said(carried: Mapping[str, Mapping[str, Any]]) -> str:
    """What is carried, in words."""
    words = (
        f"{name} {each['dtype']} {each['shape']}, {each['role']} of {_owners(each)}" for name, each in carried.items()
    )
    return "; ".join(words) or "none"


def _owners(carried: Mapping[str, Any]) -> str:
    """The layers of something that is carried."""
    if "kinds" not in carried:
        return f"{carried['count']} layers of {carried['kind']}"
    kinds = {kind: (at["first"], at["count"], at["window"]) for kind, at in carried["kinds"].items()}
    return _placed(kinds)


def _placed(kinds: Mapping[str, tuple[int, int, int | None]]) -> str:
    return ", ".join(
        f"{count} layers of {kind} from {first} on with window {window}"
        for kind, (first, count, window) in kinds.items()
    )


def rows_needed(spec: StateSpec, recipe: Recipe) -> int:
    """The rows that a state must have: every position of the context and of the padding behind it, or a window."""
    if spec.window is not None:
        return spec.window
    return recipe.export.context + recipe.export.most_padding


def tables_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What a manifest says of each raw table, by the input that takes its rows."""
    model, shapes = recipe.model, dict[str, tuple[int, int]]()
    if model.embedding.per_layer is not None:
        per_layer = model.embedding.per_layer
        shapes[PER_LAYER_TABLE] = per_layer.vocab_size, len(model.layer_kinds) * per_layer.size
    if recipe.export.table == "host":
        shapes[EMBEDDING] = model.vocab_size, model.embedding.width or model.hidden_size
    compression = Compression.of(recipe)
    return {
        TABLE_INPUTS[name]: {
            "file": table_file(name),
            "role": "table",
            **describe_rows(compression.row_storage(name, shape), shape),
            "input": TABLE_INPUTS[name],
        }
        for name, shape in shapes.items()
    }


def functions_of(recipe: Recipe, key: str | None = None) -> dict[str, Called]:
    """The tokens of a call, the inputs and the outputs of each function: of one stack, or of all."""
    match recipe.export.host:
        case "anemll":
            return {**functions_of_anemll(anemll_form(recipe))}
        case "coreai-models":
            return {**functions_of_static(static_form(recipe))}
        case "coreai-models-dynamic":
            return {MAIN: (recipe.export.functions.prefill, *ports_of_main(dynamic_form(recipe)))}
    return own_functions_of(recipe, key)


def own_functions_of(recipe: Recipe, key: str | None = None) -> dict[str, Called]:
    """The same of a package that is for no other project's host."""
    made = {MODEL: _functions_of_decoder, DRAFT: _functions_of_draft}
    keys = recipe.stacks if key is None else [key]
    return {name: called for each in keys for name, called in made[each](recipe)}


def _functions_of_decoder(recipe: Recipe) -> Iterator[tuple[str, Called]]:
    model = recipe.model
    carried, buffers = carried_of_packages(recipe), buffers_of_packages(recipe)
    low_rank = low_rank_of_packages(recipe)
    kept: Described = {
        **{name: ("float16", spec.shape) for name, spec in carried.items()},
        **{name: ("float16", spec.shape) for name, spec in buffers.items()},
    }
    left: Described = {spec.output: ("float16", spec.shape) for spec in carried.values()}
    base: Described = {"base": ("int32", (1,))} if buffers else {}
    caches = states_of_packages(recipe) if recipe.export.is_functional else {}
    for name, query in recipe.export.functions.queries.items():
        inputs: dict[str, tuple[str, tuple[int, ...]]] = {
            **_said_of_ids(recipe, query),
            "position": ("int32", (1,)),
            **({} if name == "decode" else {"count": ("int32", (1,))}),
            **base,
            **_rows_of_tables(recipe, query),
        }
        rows = query if name == "score" else 1
        outputs = _said_of_tokens(recipe, rows, model.vocab_size)
        if recipe.draft is not None:
            outputs["hidden"] = ("float16", (1, rows, model.hidden_size))
        inputs |= kept
        inputs |= {port: ("float16", shape) for spec in low_rank for port, shape in spec.inputs.items()}
        outputs |= {spec.output: ("float16", spec.new_shape(query)) for spec in buffers.values()} or left
        inputs |= {cache: ("float16", state.shape) for cache, state in caches.items()}
        outputs |= {f"new_{cache}": ("float16", _new_rows(state, query)) for cache, state in caches.items()}
        yield name, (query, inputs, outputs)
    if buffers:
        yield COMMIT, (recipe.export.buffer, {**base, "position": ("int32", (1,)), **kept}, left)


def _functions_of_draft(recipe: Recipe) -> Iterator[tuple[str, Called]]:
    draft = recipe.draft
    if draft is None:
        return
    hidden = ("float16", (1, 1, recipe.model.hidden_size))
    owners = dict.fromkeys(str(draft.kinds[kind].attention.shares_kv_with) for kind in draft.layer_kinds)
    inputs: dict[str, tuple[str, tuple[int, ...]]] = {
        **_said_of_ids(recipe, 1),
        "last_hidden": hidden,
        "position": ("int32", (1,)),
        **{f"seen_{owner}": ("int32", (1,)) for owner in owners},
    }
    if recipe.export.is_functional:
        read, caches = states_of_draft(recipe), states_of_packages(recipe)
        inputs |= {name: ("float16", state.shape) for name, state in caches.items() if name in read}
    # several tokens a call are ids: each step takes the one that the step before it chose
    said = _tokens(draft.steps) if draft.steps > 1 else _said_of_tokens(recipe, 1, draft.vocab_size)
    yield DRAFT, (1, inputs, {**said, "hidden": hidden})


def _new_rows(state: KeptState, tokens: int) -> tuple[int, int, int, int]:
    """The shape of the rows that a call of so many tokens adds to a cache."""
    depth, heads, _, size = state.shape
    return depth, heads, tokens, size


def _said_of_ids(recipe: Recipe, tokens: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What says which tokens a call has: their ids, or their rows where the host has the embedding table."""
    rows = {port: said for port, said in _rows_of_tables(recipe, tokens).items() if port == EMBEDDED}
    return rows or {"input_ids": ("int32", (1, tokens))}


def _rows_of_tables(recipe: Recipe, tokens: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {port: ("float16", (1, tokens, table["shape"][1])) for port, table in tables_of(recipe).items()}


def steps_of(recipe: Recipe, function: str) -> int | None:
    """How many tokens a call of the function drafts, where that is more than the one that every call says of."""
    return recipe.draft.steps if function == DRAFT and recipe.draft is not None and recipe.draft.steps > 1 else None


def _shown_number(number: int | None) -> str:
    return "null" if number is None else str(number)


def _said_of_tokens(recipe: Recipe, tokens: int, vocab_size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What a call gives of the tokens that follow: their logits in pieces, or the best ones."""
    if recipe.export.outputs == "ids":
        return _tokens(tokens)
    return {"logits": ("float16", Pieces(vocab_size).shape(tokens))}


def _tokens(count: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {"ids": ("int32", (1, count)), "values": ("float16", (1, count))}


def _names(names: Iterable[str]) -> str:
    return f"{', '.join(sorted(names)) or 'none'}"[:200]


def _ports(ports: Mapping[str, Port]) -> Described:
    return {name: (port.dtype, port.shape) for name, port in ports.items()}


def _differences(what: str, found: Described, wanted: Described) -> Iterator[str]:
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            yield f"{what} {name} is {_port(found.get(name))} and must be {_port(wanted.get(name))}"


def _port(port: tuple[str, tuple[int, ...]] | None) -> str:
    return "missing" if port is None else f"{port[0]} {list(port[1])}"


def _shown(tables: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(map(_shown_table, tables)) or "none"


def _shown_table(table: Mapping[str, Any]) -> str:
    block = f" in blocks of {table['scales']['block']}" if "scales" in table else ""
    dtype = "" if table["dtype"] == "float16" else f" of {table['dtype']}{block}"
    return f"{table['file']} {table['shape']}{dtype} for {table['input']}"
