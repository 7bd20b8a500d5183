"""Every parameter of a decoder bound to the tensor that fills it, or every reason why that cannot be."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import isclose
from typing import TYPE_CHECKING

from coreai_recipes.checkpoint.base import TIE_FLAG, Checkpoint
from coreai_recipes.errors import CheckpointError
from coreai_recipes.weights.names import FIRST_INDEX, NameTable, TensorSource, load_names
from coreai_recipes.weights.prefixes import EMBEDDING, choose_prefix, is_around
from coreai_recipes.weights.rewrite import AS_STORED, Rewrite

if TYPE_CHECKING:
    from torch import Tensor

MAX_PROBLEMS = 20
HEAD = "head.weight"


@dataclass(frozen=True)
class ParameterInfo:
    """What the decoder needs of one parameter.

    `shape` is as a checkpoint has it (without the 1 x 1 of a convolution), `kind` the recipe's name for the layer,
    which has `heads` and `kv_heads`.
    """

    shape: tuple[int, ...]
    kind: str | None = None
    rewrite: Rewrite = AS_STORED
    is_integer: bool = False
    kv_heads: int = 1
    heads: int = 1


@dataclass(frozen=True)
class Binding:
    """One parameter of ours and the rows of a checkpoint's tensor that fill it: `rows`, or several `runs` of rows.

    With `stack` it is the rows of these tensors for each expert, or with `is_whole` its rows of tensors that hold all;
    with `join` the rows of these tensors; with `value` no tensor at all, but that number everywhere.
    """

    checkpoint: Checkpoint
    tensor: str
    shape: tuple[int, ...]
    rows: range | None = None
    transpose: bool = False
    rewrite: Rewrite = AS_STORED
    runs: tuple[range, ...] = ()
    stack: tuple[tuple[str, ...], ...] = ()
    join: tuple[str, ...] = ()
    alternate: bool = False
    is_squeezed: bool = False
    is_whole: bool = False
    value: float | None = None

    @property
    def tensors(self) -> set[str]:
        """Every tensor that is read."""
        if self.value is not None:
            return set()
        return {name for parts in self.stack for name in parts} or {*self.join} or {self.tensor}

    def blocks(self) -> Iterator[Tensor]:
        """Blocks along the first axis, each valid until the next, in the dtype that is stored or float32."""
        first = 0
        for block in self._stored_blocks():
            yield self.rewrite.apply(block, first)
            first += len(block)

    def read(self) -> Tensor:
        """The whole parameter, a copy of its own."""
        return join_blocks(self.blocks(), self.shape)

    def read_rows(self, rows: Sequence[int]) -> Tensor:
        """Some rows of a parameter whose rows are a tensor's own, as a table's are."""
        import torch

        start = self.rows.start if self.rows else 0
        one = (1, *self.shape[1:])
        return torch.cat([replace(self, rows=range(start + row, start + row + 1), shape=one).read() for row in rows])

    def _stored_blocks(self) -> Iterator[Tensor]:
        import torch

        if self.value is not None:
            yield torch.full(self.shape, self.value)
            return
        if self.stack:
            yield from self._experts()
            return
        if self.join:
            yield from (self.checkpoint.read(tensor) for tensor in self.join)
            return
        if self.alternate or (len(self.shape) == 3 and self.transpose):
            yield from self._rearranged_experts()
            return
        if self.is_squeezed:
            yield from (block.reshape(-1, *self.shape[1:]) for block in self.checkpoint.blocks(self.tensor))
            return
        if self.runs:
            # each holds whole heads, as a rewrite wants them
            yield from (self.checkpoint.read(self.tensor, run) for run in self.runs)
            return
        if not self.transpose:
            if self.rewrite.row_order is None:
                yield from self.checkpoint.blocks(self.tensor, self.rows)
                return
            # rows change places within a head, so a head is read at a time
            first, step = self.rows.start if self.rows else 0, len(self.rewrite.row_order)
            for start in range(first, first + self.shape[0], step):
                yield self.checkpoint.read(self.tensor, range(start, start + step))
            return
        # A row of ours is a column of theirs: the whole tensor is needed. Only GPT-2's size of model is stored so.
        whole = self.checkpoint.read(self.tensor).t()
        yield whole[self.rows.start : self.rows.stop] if self.rows else whole

    def _experts(self) -> Iterator[Tensor]:
        """One expert at a time, (1, rows, columns)."""
        import torch

        if self.is_whole:
            yield from self._experts_of_whole(self.stack[0])
            return
        for parts in self.stack:
            yield torch.cat([self.checkpoint.read(part) for part in parts]).unsqueeze(0)

    def _experts_of_whole(self, tensors: tuple[str, ...]) -> Iterator[Tensor]:
        """One expert at a time, (1, rows, columns), of tensors that hold all experts' rows one below the other."""
        import torch

        step = self.shape[2] if self.transpose else self.shape[1] // len(tensors)
        for expert in range(self.shape[0]):
            rows = range(expert * step, (expert + 1) * step)
            block = torch.cat([self.checkpoint.read(name, rows) for name in tensors])
            yield (block.t() if self.transpose else block).unsqueeze(0)

    def _rearranged_experts(self) -> Iterator[Tensor]:
        """One expert at a time, its axes and its rows as we have them."""
        import torch

        for expert in range(self.shape[0]):
            block = self.checkpoint.read(self.tensor, range(expert, expert + 1))
            if self.transpose:
                block = block.transpose(1, 2)
            yield torch.cat((block[:, 0::2], block[:, 1::2]), 1) if self.alternate else block


def join_blocks(blocks: Iterable[Tensor], shape: tuple[int, ...]) -> Tensor:
    """A parameter of this shape from its blocks along the first axis."""
    import torch

    whole: Tensor | None = None
    row = 0
    for block in blocks:
        if not shape:
            return block.clone()
        if whole is None:
            whole = torch.empty(shape, dtype=block.dtype)
        whole[row : row + len(block)] = block
        row += len(block)
    return torch.empty(shape) if whole is None else whole


def bind(
    parameters: Mapping[str, ParameterInfo],
    names: str,
    checkpoint: Checkpoint,
    *,
    unused: Iterable[str] = (),
    where: str | None = None,
) -> dict[str, Binding]:
    """Where each parameter is read from, every name, shape and dtype checked before a weight is read.

    `names` is a family's table or a path to one. `unused` are parameters that the model could have and does not need,
    whose tensors may be there. `where` begins each line (default: the checkpoint's `place`). Raises
    CheckpointError with a line for each missing, extra, misshapen or unreadable tensor; from MAX_PROBLEMS on, lines
    that differ in the layer only are put together.
    """
    table = load_names(names)
    prefix = choose_prefix(table, parameters, checkpoint.tensors)
    bindings: dict[str, Binding] = {}
    problems: list[Problem] = []
    used: set[str] = set()
    for parameter, info in parameters.items():
        source = table.find(parameter, prefix) if table.knows(parameter) else None
        if source is None:
            what = "name no tensor for" if table.knows(parameter) else "do not mention"
            problems.append(Problem(parameter, f"the weight names `{table.name}` {what} the recipe's {{name}}"))
            continue
        if parameter == HEAD or (parameter == EMBEDDING and HEAD not in parameters):
            source = choose_matrix(parameter, source, table, prefix, parameters, checkpoint)
        if source.other in checkpoint.tensors and source.tensor not in checkpoint.tensors:
            source = replace(source, tensor=str(source.other), stack=())
        if source.absent is not None and source.tensor not in checkpoint.tensors:
            bindings[parameter] = Binding(checkpoint, source.tensor, info.shape, value=source.absent)
            continue
        if source.stack or source.join:
            bind_several = bind_stack if source.stack else bind_join
            binding, found = bind_several(info, source, checkpoint)
            problems += found
        else:
            binding, problem = bind_parameter(parameter, info, source, parameters, checkpoint)
            problems += [problem] if problem else []
        used |= binding.tensors
        bindings[parameter] = binding
    for parameter in unused:
        source = table.find(parameter, prefix) if table.knows(parameter) else None
        if source is not None:
            used.add(source.tensor)
    if HEAD in parameters and EMBEDDING not in parameters and table.knows(EMBEDDING):  # a draft's table is its head
        embedding = table.find(EMBEDDING, prefix)
        used |= {embedding.tensor} if embedding else set()
    layers = {match[0] for match in map(FIRST_INDEX.search, parameters) if match}
    for tensor, value in table.constants_of(len(layers), prefix).items():
        if tensor in checkpoint.tensors:
            used.add(tensor)
            stored = float(checkpoint.read(tensor))
            if not isclose(stored, value, rel_tol=2**-8):  # bfloat16 is what many are stored in
                problems.append(Problem(tensor, f"{{name}} is {stored:g}, and {value:g} in every known model"))
    for tensor in checkpoint.tensors.keys() - used:
        is_known = any(fnmatchcase(tensor, pattern) for pattern in table.ignore)
        if not is_known and not is_around(tensor, prefix):
            shape = checkpoint.tensors[tensor].shape
            problems.append(Problem(tensor, f"{{name}} {shape} is extra: {table.describe_extra(tensor, prefix)}"))
    problems += find_untied_head(parameters, table, prefix, checkpoint)
    if problems:
        raise CheckpointError(*describe_problems(problems, where or checkpoint.place, bindings, checkpoint))
    return bindings


@dataclass(frozen=True)
class Problem:
    """What is wrong with one tensor; `{name}` in the text stands for its name, so that layers can be told alike."""

    name: str
    text: str

    def line(self) -> str:
        return self.text.replace("{name}", self.name)

    def likeness(self) -> str:
        """The line without the numbers of its layers: equal for the same problem in another layer."""
        return re.sub(r"(?<=\.)\d+(?=\.)", "{i}", self.line())


def bind_parameter(
    parameter: str,
    info: ParameterInfo,
    source: TensorSource,
    parameters: Mapping[str, ParameterInfo],
    checkpoint: Checkpoint,
) -> tuple[Binding, Problem | None]:
    """The binding of one parameter, and what is wrong with the tensor that it would read."""
    rows, needed = None, info.shape
    runs: tuple[range, ...] = ()
    if source.parts:
        sizes = [parameters[part].shape[0] if part in parameters else 0 for part in source.parts]
        start, total = sum(sizes[: source.parts.index(parameter)]), sum(sizes)
        needed = (total, *info.shape[1:])
        if source.take:
            heads = info.heads if source.by_heads else source.shares or info.kv_heads
            runs = find_runs(start, info.shape[0], total, heads)
        else:
            rows = range(start, start + info.shape[0])
    needed = source.stored_shape(needed)
    binding = Binding(
        checkpoint,
        source.tensor,
        info.shape,
        rows,
        source.transpose,
        info.rewrite,
        runs,
        alternate=source.alternate,
        is_squeezed=bool(source.squeeze),
    )
    who = "the recipe" if info.kind is None else f"the recipe's kind `{info.kind}`"
    stored = checkpoint.tensors.get(source.tensor)
    if stored is None:
        return binding, Problem(source.tensor, f"{{name}} is missing: {who} needs it as {needed}")
    if stored.shape != needed:
        return binding, Problem(source.tensor, f"{{name}} is {stored.shape}, but {who} needs {needed}")
    reason = None if info.is_integer else checkpoint.why_unreadable(source.tensor)
    return binding, Problem(source.tensor, f"{{name}} {reason}") if reason else None


def find_runs(start: int, size: int, total: int, heads: int) -> tuple[range, ...]:
    """Where rows lie that would be `start` .. `start + size` of `total` were they not dealt out among `heads`.

    before: [q q | k | v]      after, 2 heads: [q k v | q k v]
    """
    step, first = total // heads, start // heads
    return tuple(range(head * step + first, head * step + first + size // heads) for head in range(heads))


def bind_stack(info: ParameterInfo, source: TensorSource, checkpoint: Checkpoint) -> tuple[Binding, list[Problem]]:
    """The binding of a parameter (E, rows, columns) whose experts have tensors of their own, or rows in tensors of all,
    and what is wrong with them."""
    stack = source.of_experts(info.shape[0])
    part = ParameterInfo(source.stacked_shape(info.shape), info.kind)
    found = (bind_parameter(name, part, TensorSource(name), {}, checkpoint)[1] for parts in stack for name in parts)
    binding = Binding(
        checkpoint,
        source.tensor,
        info.shape,
        transpose=source.transpose,
        rewrite=info.rewrite,
        stack=stack,
        is_whole=source.is_whole,
    )
    return binding, [problem for problem in found if problem]


def bind_join(info: ParameterInfo, source: TensorSource, checkpoint: Checkpoint) -> tuple[Binding, list[Problem]]:
    """The binding of a parameter whose rows are those of several tensors, and what is wrong with them."""
    binding = Binding(checkpoint, source.tensor, info.shape, rewrite=info.rewrite, join=source.join)
    stored = {name: checkpoint.tensors[name].shape for name in source.join if name in checkpoint.tensors}
    who, behind = f"the recipe's kind `{info.kind}`", info.shape[1:]
    problems = [Problem(name, f"{{name}} is missing: {who} needs it") for name in source.join if name not in stored]
    rows = sum(shape[0] for shape in stored.values() if shape)
    for name, shape in stored.items():
        if shape[1:] != behind or (len(stored) == len(source.join) and rows != info.shape[0]):
            needed = f"{who} needs {info.shape} of {', '.join(source.join)} together"
            problems.append(Problem(name, f"{{name}} is {shape}, but {needed}"))
        elif reason := checkpoint.why_unreadable(name):
            problems.append(Problem(name, f"{{name}} {reason}"))
    return binding, problems


def choose_matrix(
    parameter: str,
    source: TensorSource,
    table: NameTable,
    prefix: str,
    parameters: Iterable[str],
    checkpoint: Checkpoint,
) -> TensorSource:
    """Where the head's matrix or the table comes from: where only one of two that are tied is stored, it is both.

    A draft has a head and no table, and its checkpoint may have only the table.
    """
    head = table.find_head(prefix, checkpoint.tensors)
    if parameter == EMBEDDING:
        is_there = source.tensor in checkpoint.tensors
        return source if is_there or head is None or checkpoint.says_untied else replace(source, tensor=head)
    if head is not None:
        return replace(source, tensor=head)
    embedding = table.find(EMBEDDING, prefix) if table.knows(EMBEDDING) else None
    return source if EMBEDDING in parameters or embedding is None else embedding


def find_untied_head(
    parameters: Iterable[str], table: NameTable, prefix: str, checkpoint: Checkpoint
) -> Iterator[Problem]:
    """A head of its own in the checkpoint, when the recipe ties it and config.json says that it is not tied.

    A tied checkpoint may well hold a copy of its table, so the tensor alone says nothing: `tying` compares values.
    """
    head = table.find_head(prefix, checkpoint.tensors)
    if HEAD not in parameters and head is not None and checkpoint.says_untied:
        text = f"{{name}} is extra: the recipe's head is tied, but config.json has {TIE_FLAG}: false"
        yield Problem(head, text)


def describe_problems(
    problems: list[Problem], where: str, bindings: Mapping[str, Binding], checkpoint: Checkpoint
) -> Iterator[str]:
    """Finished lines: one for each problem, or for each likeness when there are more than MAX_PROBLEMS."""
    found = sum(binding.tensor in checkpoint.tensors for binding in bindings.values())
    if bindings and not found:
        example = next(iter(sorted(checkpoint.tensors)), "no tensor")
        model_type = checkpoint.config.get("model_type", "unknown")
        yield (
            f"{where}: holds another model: none of the {len(bindings)} tensors that the recipe needs is here "
            f"(it has {example}, and its model_type is {model_type})"
        )
    problems = sorted(set(problems), key=lambda problem: (natural_order(problem.name), problem.text))
    if len(problems) <= MAX_PROBLEMS:
        yield from (f"{where}: {problem.line()}" for problem in problems)
        return
    alike: dict[str, list[Problem]] = {}
    for problem in problems:
        alike.setdefault(problem.likeness(), []).append(problem)
    for group in alike.values():
        more = len(group) - 1
        tail = f" (and the same in {more} more {'layer' if more == 1 else 'layers'})" if more else ""
        yield f"{where}: {group[0].line()}{tail}"


def natural_order(name: str) -> list[tuple[int, str]]:
    """A sort key that puts layer 10 after layer 9."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
