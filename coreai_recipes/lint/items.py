"""What rules look at, one by one, in running order."""

from collections.abc import Iterator

from coreai_recipes.lint.predicates.predicate import Context, Item
from coreai_recipes.lint.program import Function, Program

RESULTLESS = frozenset({"write_state", "cond", "while_loop"})  # any other gives something, or the program is damaged


def items(looks_at: str, context: Context, types: frozenset[str] | None) -> Iterator[Item]:
    """The items of one sort; of operations and their values those of `types`."""
    subject = context.subject
    if looks_at == "files":
        for name, size in subject.files.items():
            yield Item(context, name, file=(name, size))
    elif looks_at == "bundle":
        if subject.tokenizer is not None:
            yield Item(context, subject.name)
    else:
        for program in subject.programs:
            yield from _of_program(looks_at, context, program, types)


def _of_program(looks_at: str, context: Context, program: Program, types: frozenset[str] | None) -> Iterator[Item]:
    if looks_at == "program":
        yield Item(context, context.subject.name, program)
        return
    if looks_at == "states":
        seen: set[str] = set()
        for function in program.functions:  # all functions share them
            for state in function.states:
                if state.name not in seen:
                    seen.add(state.name)
                    yield Item(context, state.name, program, function, None, state)
        return
    for function in program.functions:
        yield from _of_function(looks_at, context, program, function, types)


def _of_function(
    looks_at: str, context: Context, program: Program, function: Function, types: frozenset[str] | None
) -> Iterator[Item]:
    if looks_at == "functions":
        yield Item(context, function.name, program, function)
    elif looks_at in ("inputs", "boundary"):
        ports = function.inputs if looks_at == "inputs" else [*function.inputs, *function.outputs]
        for value in ports:
            yield Item(context, value.name, program, function, None, value)
    else:
        if looks_at == "results" and types is None:
            for value in function.inputs:
                yield Item(context, value.name, program, function, None, value)
        for operation in function.operations:
            if types is not None and operation.type not in types:
                continue
            if looks_at == "operations":
                if not operation.results and operation.type not in RESULTLESS:
                    continue
                result = operation.results[0] if operation.results else None
                yield Item(context, operation.name, program, function, operation, result)
                continue
            values = operation.results if looks_at == "results" else operation.values()
            for value in values:
                if not value.constant:
                    place = value.name if looks_at == "results" else operation.name
                    yield Item(context, place, program, function, operation, value)
