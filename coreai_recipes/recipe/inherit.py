"""`extends`, `like` and `--set`: one mapping merged over another, key by key, each value keeping its mark."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from coreai_recipes.recipe.fields import FieldType
from coreai_recipes.recipe.nearest import did_you_mean
from coreai_recipes.recipe.plain import Location, Problem
from coreai_recipes.recipe.schema import LayerKind, Recipe
from coreai_recipes.recipe.sizes import MAX_KINDS
from coreai_recipes.recipe.yaml_reader import MAX_VALUES, Mark, Node, shorten

MAX_CHAIN = 16
RECIPE = FieldType(models=(Recipe,))


@dataclass
class Merging:
    """What merging found out: notes for `recipe show`, and problems."""

    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    depths: dict[Location, int] = field(default_factory=dict)
    """How many `like` lie between a kind, by its place, and its root."""
    broken: set[Location] = field(default_factory=set)
    """Kinds whose `like` leads nowhere: what they do not say is not known to be missing."""


def merge(base: Node, over: Node, merging: Merging) -> Node:
    """`over`, a whole recipe as written, on top of the recipe that it extends."""
    return _merge(base, over, RECIPE, (), merging, keep_null=False)


def _merge(base: Node, over: Node, form: FieldType | None, at: Location, merging: Merging, keep_null: bool) -> Node:
    """Mappings key by key, lists and scalars whole; `null` removes a key, or stays for a later merge (`keep_null`)."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    kind = _word(over, form.tag if form else "kind")
    merged = _without_foreign_keys(base, kind, form, at, merging)
    if form and form.models == (LayerKind,):
        keep_null = _word(over, "like") is not None or ("like" not in over.value and _word(base, "like") is not None)
    for key, node in over.value.items():
        if node.value is None and key in merged and not keep_null and not _null_is_a_value(form, key):
            del merged[key]
        elif key in merged and isinstance(node.value, dict):
            below = form.step(key, kind or kind_of(base, form)) if form else None
            merged[key] = _merge(merged[key], node, below, (*at, key), merging, keep_null)
        else:
            merged[key] = node
    return replace(over, value=merged, keys=base.keys | over.keys)


def _without_foreign_keys(
    base: Node, kind: object, form: FieldType | None, at: Location, merging: Merging
) -> dict[str, Node]:
    """The entries of `base`, less those that a new `kind` does not have and the old one has."""
    entries = dict(base.value) if isinstance(base.value, dict) else {}
    if form is None or kind not in form.kinds or kind == kind_of(base, form):
        return entries
    foreign = form.fields().keys() - form.fields(kind).keys()
    for key in [key for key in entries if key in foreign]:
        del entries[key]
        merging.notes.append(f"{dotted((*at, key))}: dropped, `{kind}` {at[-1]} has none")
    return entries


def _null_is_a_value(form: FieldType | None, key: str) -> bool:
    """Whether null says something that absence does not: where a field must be said, as `reference`, or has a value
    when it is not, as `compress.calibration`."""
    info = form.fields().get(key) if form else None
    below = form.step(key) if form else None
    says = info is not None and (info.is_required() or info.default is not None)
    return says and below is not None and below.nullable


def expand_likes(root: Node, merging: Merging) -> Node | None:
    """The recipe with every kind written out, None when it is too large; `like` may name a later kind, and chains."""
    for stack in ("model", "draft"):
        expanded = _expand_stack(root, stack, merging)
        if expanded is None:
            return None
        root = expanded
    return root


def _expand_stack(root: Node, stack: str, merging: Merging) -> Node | None:
    """The kinds of the model, or of the draft, written out."""
    holder = root.value.get(stack) if isinstance(root.value, dict) else None
    kinds = holder.value.get("kinds") if holder and isinstance(holder.value, dict) else None
    if holder is None or kinds is None or not isinstance(kinds.value, dict) or len(kinds.value) > MAX_KINDS:
        return root
    written, at = kinds.value, (stack, "kinds")
    form = FieldType(models=(LayerKind,))
    expanded: dict[str, Node] = {}
    size = 0
    for name in written:
        chain = _chain(at, name, written, merging)
        merging.depths[*at, name] = len(chain) - 1
        for parent, child in pairwise([None, *reversed(chain)]):
            if child is None or child in expanded:
                continue
            node = _without_like(written[child])
            if parent is not None:
                node = _merge(expanded[parent], node, form, (*at, child), merging, keep_null=False)
            expanded[child] = node
            size += _size(node)
            if size > MAX_VALUES:
                problem = Problem(at, "values-many", f"more than {MAX_VALUES} valuesonce `like` is expanded")
                merging.problems.append(problem)
                return None
    new_kinds = replace(kinds, value={name: expanded[name] for name in written})
    new_holder = replace(holder, value={**_entries(holder), "kinds": new_kinds})
    return replace(root, value={**_entries(root), stack: new_holder})


def _chain(kinds_at: Location, name: str, kinds: dict[str, Node], merging: Merging) -> list[str]:
    """`name`, the kind that it is like, and so on to one that is like none; a problem cuts it short."""
    chain = [name]
    while (like := _entries(kinds[chain[-1]]).get("like")) is not None and like.value is not None:
        at: Location = (*kinds_at, chain[-1], "like")
        problem = None
        if not isinstance(like.value, str):
            problem = Problem(at, "like-invalid", f"{shown(like)} is not the name of a kind")
        elif like.value not in kinds:
            problem = Problem(
                at, "like-unknown", f"there is no kind `{shorten(like.value)}`", did_you_mean(like.value, kinds)
            )
        elif like.value in chain:
            circle = [*chain[chain.index(like.value) :], like.value]
            problem = Problem(at, "like-circle", f"a cycle: {' is like '.join(f'`{kind}`' for kind in circle)}")
        elif len(chain) > MAX_CHAIN:
            problem = Problem(at, "like-long", f"more than {MAX_CHAIN} kinds like one another in a row")
        if problem:
            places = {(*kinds_at, kind) for kind in chain}
            if not merging.broken & places:
                merging.problems.append(problem)
            merging.broken |= places
            return chain
        chain.append(str(like.value))
    return chain


def _without_like(node: Node) -> Node:
    if not isinstance(node.value, dict):
        return node
    return replace(node, value={key: value for key, value in node.value.items() if key != "like"})


def apply_override(root: Node, key: str, value: Node, merging: Merging) -> Node:
    """The recipe with the value at a dotted path set: merged like a recipe that extends it and says only that."""
    return _set(root, RECIPE, (), key.split("."), value, merging, keep_null=False)


def _set(
    node: Node | None,
    form: FieldType | None,
    at: Location,
    path: Sequence[str],
    value: Node,
    merging: Merging,
    keep_null: bool,
) -> Node:
    if not path:
        return value
    step, rest = path[0], path[1:]
    if node is not None and isinstance(node.value, list):
        return _set_entry(node, form, at, path, value, merging, keep_null)
    if form is None or not (form.models or form.values) or (node is not None and not isinstance(node.value, dict)):
        what = f"`{dotted(at)}` is {shown(node)}" if node else f"`{dotted(at)}` is one value"
        merging.problems.append(Problem((*at, step), "key-unknown", f"unknown key: {what}, nothing is below it"))
        return node or value
    entries = _entries(node) if node else {}
    kind = kind_of(node, form) if node else form.usual_kind
    known = (
        {**form.fields(), **({"like": None} if form.models == (LayerKind,) else {})}
        if form.models
        else {**entries, **dict.fromkeys(form.keys)}
    )
    if step not in known:
        merging.problems.append(Problem((*at, step), "key-unknown", "unknown key", did_you_mean(step, known)))
        return node or (replace(value, value={}) if form.keys else value)
    if form.models == (LayerKind,):
        keep_null = _word(node, "like") is not None if node else False
    below = form.step(step, kind) or form.step(step)
    new = _set(entries.get(step), below, (*at, step), rest, value, merging, keep_null) if rest else value
    over = Node({step: new}, value.mark, keys={step: value.mark})
    if node is None:
        return over
    if rest:
        return replace(node, value={**entries, step: new}, keys={step: value.mark, **node.keys})
    return replace(_merge(node, over, form, at, merging, keep_null), mark=node.mark, block=node.block)


def _set_entry(
    node: Node,
    form: FieldType | None,
    at: Location,
    path: Sequence[str],
    value: Node,
    merging: Merging,
    keep_null: bool,
) -> Node:
    entries = node.value if isinstance(node.value, list) else []
    if not path[0].isdecimal() or len(path[0]) > 9 or int(path[0]) >= len(entries):
        last = len(entries) - 1
        choice = f"0 to {last}" if last > 0 else "0" if last == 0 else "none, it is empty"
        merging.problems.append(
            Problem((*at, path[0]), "entry-unknown", f"`{dotted(at)}` has no such entry", f"the entries are {choice}")
        )
        return node
    index = int(path[0])
    below = form.step(index) if form else None
    new = _set(entries[index], below, (*at, index), path[1:], value, merging, keep_null)
    return replace(node, value=[*entries[:index], new, *entries[index + 1 :]])


def dotted(location: Location) -> str:
    """`model.layers.0.repeat`."""
    return ".".join(shorten(str(step)) for step in location)


def shown(node: Node) -> str:
    """A value in the user's own words, for messages."""
    if isinstance(node.value, dict):
        return "a mapping" if node.value else "an empty mapping"
    if isinstance(node.value, list):
        return "a list" if node.value else "an empty list"
    if isinstance(node.value, str):
        return shorten(node.text) if node.text.startswith('"') else f"`{shorten(node.text)}`"
    return shorten(node.text) or "null"


def _entries(node: Node) -> dict[str, Node]:
    return node.value if isinstance(node.value, dict) else {}


def kind_of(node: Node, form: FieldType) -> str | None:
    """The `kind` that a mapping says, or what its form's tag is; what it is if it says none."""
    return _word(node, form.tag) or form.usual_kind


def _word(node: Node, key: str) -> str | None:
    entry = _entries(node).get(key)
    return entry.value if entry is not None and isinstance(entry.value, str) else None


def _size(node: Node) -> int:
    below = node.value.values() if isinstance(node.value, dict) else node.value if isinstance(node.value, list) else ()
    return 1 + sum(map(_size, below))


def mark_at(root: Node, location: Location, at_key: bool = False) -> Mark:
    """Where a location was written: its value, its key when wanted or when the value is a block, else what holds it."""
    node, mark = root, root.mark
    for index, step in enumerate(location):
        if isinstance(node.value, dict) and str(step) in node.value:
            key_mark, node = node.keys[str(step)], node.value[str(step)]
            wants_key = node.block or (at_key and index == len(location) - 1)
            mark = key_mark if wants_key else node.mark
        elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            mark = node.mark
        else:
            break
    return mark
