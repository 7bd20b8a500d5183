"""Plain data -> YAML text that stays the same for ever: recipes are known by the digest of it. A leaf.

These few lines stand here because PyYAML writes for YAML 1.1 readers, who take other words for numbers than we do, and
may change its line breaks with a version.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

WIDTH = 100
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./@-]*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def write_yaml(data: Mapping[str, Any]) -> str:
    """One YAML document, in the order of the data; what fits a line stands in brackets."""
    return "".join(f"{line}\n" for line in _block(data, 0))


def _block(data: Mapping[str, Any] | Sequence[Any], indent: int) -> Iterator[str]:
    space = " " * indent
    entries = (
        [(f"{_scalar(key)}:", value) for key, value in data.items()]
        if isinstance(data, Mapping)
        else [("-", value) for value in data]
    )
    for lead, value in entries:
        flow = _flow(value)
        if _is_open(value) and (len(space) + len(lead) + 1 + len(flow) > WIDTH or _holds_rows(value)):
            yield f"{space}{lead}"
            yield from _block(value, indent + 2)
        else:
            yield f"{space}{lead} {flow}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # A YAML 1.1 reader takes 1e-06 for a word; with a point every reader sees a number.
        digits, exponent, power = repr(value).partition("e")
        return f"{digits if '.' in digits else f'{digits}.0'}{exponent}{power}"
    if isinstance(value, int):
        return str(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return str(value)
    return re.sub(r"[^ -~]", _escape, json.dumps(value, ensure_ascii=False))


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _is_open(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple) and bool(value)


def _holds_rows(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(entry, Mapping) for entry in value)
