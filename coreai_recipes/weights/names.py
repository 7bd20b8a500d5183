"""Weight names: YAML tables from our parameters to a family's checkpoint tensors.

A table is names/FAMILY.yaml, or a user's own file given by its path, from the working folder or that of a plugin:

    extends: llama                  # keys below win, lists are replaced, null says that the family has no such tensor
    prefixes: [model., ""]          # names below begin with the first; the one that the checkpoint uses is found
    ignore: ["*.inv_freq"]          # tensors of the checkpoint that are known not to matter
    constants: {model.layers.{i}.mlp.act_fn.beta: 0.5}    # scalars that must be so where they are there
    tensors:
      layers.{i}.mlp.up.weight: model.layers.{i}.mlp.up_proj.weight
      layers.{i}.attention.q.weight:
        tensor: model.layers.{i}.self_attn.qkv_proj.weight
        rows: [layers.{i}.attention.q.weight, layers.{i}.attention.k.weight, layers.{i}.attention.v.weight]
      layers.{i}.mlp.gate_up:       # for each expert {e}, the rows of these tensors one below the other
        stack: [model.layers.{i}.mlp.experts.{e}.gate_proj.weight, model.layers.{i}.mlp.experts.{e}.up_proj.weight]

`transpose` exchanges the last two axes; with `alternate` the rows of gate and up alternate, and are brought apart.
`squeeze: N` leaves out the tensor's axis N, or several, which are of length one.

With `take` in place of `rows` each KV head has its share of the parameters, side by side: [head][q.., k, v]; with
`of: heads` besides each query head has, with `shares: N` N runs of heads. `join` is a list of tensors whose rows, one
below the other, are the parameter's. `or` is the name of the tensor where a checkpoint lacks the first: of a `stack` of
each expert's tensors, one that holds the parameter itself. A `stack` of tensors without {e} takes each expert's rows of
tensors that hold all of them, one below the other; with `transpose` the axes of what it takes are exchanged. `absent`
is what every number of the parameter is where a checkpoint lacks the tensor.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from coreai_recipes.errors import CheckpointError

if TYPE_CHECKING:
    from coreai_recipes.recipe.yaml_reader import Node

FOLDER = Path(__file__).with_name("names")
# What a head's matrix also goes by: inside transformers, in older wrappers, in GPT-NeoX on the hub.
HEADS = ("lm_head.weight", "language_model.lm_head.weight", "embed_out.weight")
FIRST_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class TensorSource:
    """An entry: the tensor is `rows`, parameters stacked in this order, or `take`, parameters of which each KV head has
    its share, in this order; with `transpose` it is (in, out).

    Where an entry is a `stack`, the tensors of each expert {e}, `tensor` is the first of the first expert; of a `join`
    the first.
    """

    tensor: str
    rows: tuple[str, ...] = ()
    transpose: bool = False
    take: tuple[str, ...] = ()
    stack: tuple[str, ...] = ()
    alternate: bool = False
    squeeze: tuple[int, ...] = ()
    by_heads: bool = False
    join: tuple[str, ...] = ()
    other: str | None = None
    shares: int | None = None
    absent: float | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The parameters that the tensor holds, none when it is one alone."""
        return self.rows or self.take

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape where its rows, transposed or squeezed as it says, are of `shape`."""
        if self.transpose:
            shape = (*shape[:-2], shape[-1], shape[-2])
        for axis in self.squeeze:
            shape = (*shape[:axis], 1, *shape[axis:])
        return shape

    @property
    def is_whole(self) -> bool:
        """Whether each tensor of a stack holds all experts."""
        return bool(self.stack) and all("{e}" not in name for name in self.stack)

    def of_experts(self, count: int) -> tuple[tuple[str, ...], ...]:
        """The tensors of each of so many experts; all that there are, once, where they hold every expert."""
        if self.is_whole:
            return (self.stack,)
        return tuple(tuple(name.replace("{e}", str(e)) for name in self.stack) for e in range(count))

    def stacked_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of each tensor of a stack that makes a parameter (E, rows, columns), or (E, rows) of vectors."""
        rows, *columns = shape[1] // len(self.stack), *shape[2:]
        if self.transpose:
            (rows,), columns = columns, [rows]
        return (shape[0] * rows if self.is_whole else rows, *columns)

    def at_layer(self, index: str, old_prefix: str, new_prefix: str) -> TensorSource:
        """The entry for one layer, with the prefix that the checkpoint uses."""

        def place(name: str) -> str:
            name = name.replace("{i}", index)
            return new_prefix + name.removeprefix(old_prefix) if name.startswith(old_prefix) else name

        rows, take = (tuple(part.replace("{i}", index) for part in parts) for parts in (self.rows, self.take))
        stack, join = (tuple(map(place, tensors)) for tensors in (self.stack, self.join))
        other = None if self.other is None else place(self.other)
        return replace(self, tensor=place(self.tensor), rows=rows, take=take, stack=stack, join=join, other=other)


@dataclass(frozen=True)
class NameTable:
    """A table with what it extends merged in. `tensors` maps to None what the family has not."""

    name: str
    prefixes: tuple[str, ...] = ("",)
    ignore: tuple[str, ...] = ()
    constants: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, TensorSource | None] = field(default_factory=dict)

    def find_head(self, prefix: str, tensors: Mapping[str, object]) -> str | None:
        """The checkpoint's name of the head's matrix, None when it has none."""
        own = self.find("head.weight", prefix) if self.knows("head.weight") else None
        names = () if own is None else (own.tensor, *HEADS)
        return next((name for name in names if name in tensors), None)

    def find(self, parameter: str, prefix: str) -> TensorSource | None:
        """Where a parameter of ours comes from; None when the family has none. Raises KeyError when nothing is said."""
        if parameter in self.tensors:
            source, index = self.tensors[parameter], ""
        else:
            match = FIRST_INDEX.search(parameter)
            index = match[0] if match else ""
            source = self.tensors[FIRST_INDEX.sub("{i}", parameter, count=1)]
        return source and source.at_layer(index, self.prefixes[0], prefix)

    def constants_of(self, layers: int, prefix: str) -> dict[str, float]:
        """The scalars that are known, by the names that the checkpoint has for them."""
        return {
            TensorSource(name).at_layer(str(index), self.prefixes[0], prefix).tensor: value
            for name, value in self.constants.items()
            for index in range(layers)
        }

    def knows(self, parameter: str) -> bool:
        """Whether the table says anything about a parameter of ours, if only that there is none."""
        return parameter in self.tensors or FIRST_INDEX.sub("{i}", parameter, count=1) in self.tensors

    def describe_extra(self, tensor: str, prefix: str) -> str:
        """Why nothing reads a tensor: the recipe has no such parameter, or the table does not know it."""
        for parameter, source in self.tensors.items():
            if source is None:
                continue
            pattern = re.escape(source.at_layer("{i}", self.prefixes[0], prefix).tensor).replace(r"\{i\}", r"(\d+)")
            match = re.fullmatch(pattern, tensor)
            if match:
                return f"the recipe has no {parameter.replace('{i}', match[1] if match.groups() else '')}"
        return f"the weight names `{self.name}` do not list it"


def load_names(names: str) -> NameTable:
    """The table of a family by name, or of a file by its path. Raises CheckpointError with everything wrong in it."""
    return merge_tables(names, ())


def list_names() -> list[str]:
    """The families whose tables ship with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def merge_tables(names: str, seen: tuple[Path, ...]) -> NameTable:
    path = find_names(names, seen[-1].parent if seen else None)
    if path in seen:
        chain = " -> ".join(step.stem for step in (*seen, path))
        raise CheckpointError(f"{path}: extends itself: {chain}")
    content = read_names(path)
    base = merge_tables(content["extends"], (*seen, path)) if "extends" in content else NameTable(path.stem)
    return NameTable(
        name=path.stem if path.parent == FOLDER else str(path),
        prefixes=tuple(content.get("prefixes", base.prefixes)),
        ignore=tuple(content.get("ignore", base.ignore)),
        constants=content.get("constants", base.constants),
        tensors={**base.tensors, **{name: parse_source(entry) for name, entry in content.get("tensors", {}).items()}},
    )


def find_names(names: str, beside: Path | None) -> Path:
    """The file of a table: a path first (relative to the file that extends it), else a family's."""
    if names.endswith((".yaml", ".yml")):
        # Imported here: pydantic is not needed to open a checkpoint.
        from coreai_recipes.recipe.plugins import plugin_folders

        places = [folder / names for folder in (beside or Path(), *plugin_folders())]
        found = next((path for path in places if path.is_file()), None)
        if found is not None:
            return found
        raise CheckpointError(
            f"{places[0]}: no such file of weight names; the built-in ones are {', '.join(list_names())}"
        )
    if names not in list_names():
        raise CheckpointError(
            f"weight names `{names}` are not known{suggest(names, list_names())} "
            f"Built in are {', '.join(list_names())}; your own are given by a path that ends with .yaml"
        )
    return FOLDER / f"{names}.yaml"


def read_names(path: Path) -> dict[str, Any]:
    """The content of one file, checked: no unknown key, and every entry well formed."""
    # Imported here: PyYAML is not needed to open a checkpoint.
    from coreai_recipes.recipe.yaml_reader import MAX_BYTES, read_yaml

    try:
        with path.open("rb") as file:
            root, problems = read_yaml(file.read(MAX_BYTES + 1), str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    if root is None or problems:
        raise CheckpointError(*(f"{problem.mark}: {problem.message}" for problem in problems))
    if not isinstance(root.value, dict):
        raise CheckpointError(f"{root.mark}: must be a mapping with the keys {', '.join(FILE_KEYS)}")
    CheckpointError.collect(find_mistakes(root))
    return {key: node.plain() for key, node in root.value.items()}


def find_mistakes(root: Node) -> Iterator[str]:
    """What is wrong with one file of weight names: a finished line each, its place first."""
    keys: dict[str, Node] = root.value if isinstance(root.value, dict) else {}
    for key, node in keys.items():
        yield from (f"{root.keys[key]}: {key}: {mistake}" for mistake in judge(key, node.plain(), FILE_KEYS, "key"))
    tensors = keys.get("tensors")
    if tensors is None or not isinstance(tensors.value, dict):
        return
    for name, node in tensors.value.items():
        yield from (f"{tensors.keys[name]}: {name}: {mistake}" for mistake in judge_entry(name, node.plain()))


def judge_entry(name: str, entry: object) -> Iterator[str]:
    """What is wrong with one entry of `tensors`: null, a name, or a mapping of `tensor` and the operations on it."""
    if entry is None:
        return
    fields = {"tensor": entry} if isinstance(entry, str) else entry
    if isinstance(fields, dict) and (key := next((key for key in ("stack", "join") if key in fields), None)):
        yield from judge_several(name, fields, key)
        return
    if not isinstance(fields, dict) or not isinstance(fields.get("tensor"), str):
        yield "is neither null, nor a tensor's name, nor a mapping with `tensor`"
        return
    for key, value in fields.items():
        yield from (f"{key}: {mistake}" for mistake in judge(key, value, OPERATIONS, "operation"))
    if ("{i}" in name) != ("{i}" in fields["tensor"]):
        yield f"{{i}}, the layer, must stand on both sides or on neither: {fields['tensor']}"
    for key in ("rows", "take"):
        parts = fields.get(key)
        if isinstance(parts, list) and name not in parts:
            yield f"{key}: {name} itself is missing"
    if "squeeze" in fields and set(fields) - {"tensor", "squeeze"}:
        yield "squeeze: cannot be combined with other operations"
    if fields.get("of") and not fields.get("take"):
        yield "of: says which heads have shares, so it needs take"
    if "shares" in fields and not fields.get("take"):
        yield "shares: says among how many heads `take` deals, and there is no take"
    if fields.get("take") and (fields.get("rows") or fields.get("transpose")):
        yield "take: cannot be combined with rows or transpose"


def judge_experts(fields: dict[str, Any], stack: list[str]) -> Iterator[str]:
    """What is wrong with a stack's {e} and transpose."""
    for key in fields.keys() - {"stack"}:
        yield from (f"{key}: {mistake}" for mistake in judge(key, fields[key], OPERATIONS, ""))
    of_one = {"{e}" in tensor for tensor in stack}
    if len(of_one) > 1:
        yield "stack: {e}, the expert, must stand in all tensors or in none"
    if fields.get("transpose") and True in of_one:
        yield "stack: transpose is for tensors that hold all experts, without {e}"


def judge_several(name: str, fields: dict[str, Any], key: str) -> Iterator[str]:
    """What is wrong with an entry that puts the tensors of all experts together, or a few tensors of its own."""
    several = fields[key]
    if fields.keys() - {key, *(("transpose", "or") if key == "stack" else ())}:
        yield f"{key}: cannot be combined with other operations" + (" than transpose and or" if key == "stack" else "")
    if not is_list_of_names(several) or not several:
        yield f"{key}: {several!r:.80} is not a list of tensors"
        return
    if key == "stack":
        yield from judge_experts(fields, several)
    for tensor in several:
        if ("{i}" in name) != ("{i}" in tensor):
            yield f"{{i}}, the layer, must stand on both sides or on neither: {tensor}"


def judge(key: str, value: object, known: Mapping[str, Field], noun: str) -> Iterator[str]:
    """What is wrong with one key and its value, where `known` holds the keys that there are."""
    if key not in known:
        yield f"unknown {noun}{suggest(key, known)} There are {', '.join(known)}"
    elif not known[key].accepts(value):
        yield f"{value!r:.80} is not {known[key].expected}"


def parse_source(entry: str | dict[str, Any] | None) -> TensorSource | None:
    """An entry that `judge_entry` has passed."""
    if entry is None:
        return None
    fields: dict[str, Any] = {"tensor": entry} if isinstance(entry, str) else entry
    if "stack" in fields:
        first = fields["stack"][0].replace("{e}", "0")
        stack, transpose = tuple(fields["stack"]), fields.get("transpose", False)
        return TensorSource(first, transpose=transpose, stack=stack, other=fields.get("or"))
    if "join" in fields:
        return TensorSource(fields["join"][0], join=tuple(fields["join"]))
    rows, take = (tuple(fields.get(key, ())) for key in ("rows", "take"))
    alternate = fields.get("alternate", False)
    squeeze = fields.get("squeeze", ())
    return TensorSource(
        fields["tensor"],
        rows,
        fields.get("transpose", False),
        take,
        alternate=alternate,
        squeeze=(squeeze,) if isinstance(squeeze, int) else tuple(squeeze),
        by_heads="of" in fields,
        other=fields.get("or"),
        shares=fields.get("shares"),
        absent=fields.get("absent"),
    )


def suggest(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?).` or a full stop."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)." if near else "."


def is_name(value: object) -> bool:
    return isinstance(value, str)


def is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_mapping(value: object) -> bool:
    return isinstance(value, dict)


def is_mapping_of_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(number, float) for number in value.values())


def is_boolean(value: object) -> bool:
    return isinstance(value, bool)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def are_axes(value: object) -> bool:
    axes = value if isinstance(value, list) else [value]
    return all(type(axis) is int and axis >= 0 for axis in axes) and axes == sorted({*axes})


class Field(NamedTuple):
    """What a key may hold, as a check and in words."""

    accepts: Callable[[object], bool]
    expected: str


FILE_KEYS = {
    "extends": Field(is_name, "the name of a table"),
    "prefixes": Field(is_list_of_names, "a list of prefixes"),
    "ignore": Field(is_list_of_names, "a list of patterns"),
    "constants": Field(is_mapping_of_numbers, "a mapping of names to numbers"),
    "tensors": Field(is_mapping, "a mapping"),
}
# Of the eight operations that the known families need (rename, rows, take, transpose, stride, half, stack, dequantise)
# those that a recipe of today uses; a new one is a row here, a field of TensorSource and a step in Binding.
OPERATIONS = {
    "tensor": Field(is_name, "a tensor's name"),
    "rows": Field(is_list_of_names, "a list of parameters"),
    "transpose": Field(is_boolean, "true or false"),
    "alternate": Field(is_boolean, "true or false"),
    "take": Field(is_list_of_names, "a list of parameters"),
    "of": Field(lambda value: value == "heads", "`heads`"),
    "or": Field(is_name, "a tensor's name"),
    "squeeze": Field(are_axes, "an axis, or several in their order"),
    "absent": Field(is_number, "a number"),
    "shares": Field(is_count, "a whole number above 0"),
}
