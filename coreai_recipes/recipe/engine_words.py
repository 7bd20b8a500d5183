"""The words by which a recipe names devices and the engine's rules; a test holds them to those of `lint`. A leaf."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

DeviceId = Literal[
    "A14", "iphone-12", "iphone-12-pro", "A15", "iphone-13", "iphone-13-pro", "iphone-14", "A16", "iphone-14-pro",
    "iphone-15", "A17", "iphone-15-pro", "A18", "iphone-16", "iphone-16-pro", "A19", "iphone-17", "iphone-17-pro",
    "M1", "m1-max", "M2", "M3", "m3-max", "M4", "M5",
]  # fmt: skip

RuleId = Literal[
    "rank-5", "dyn-shape", "f32-mid", "int-mid", "width-16k", "chan-64k", "transpose-ext", "last-1", "wset", "io-64B",
    "slice-w4094", "mac-32768", "div-sub", "rsqrt-0", "exp-raw", "square-256", "softplus", "nan-logic", "mask-inf",
    "act-lut", "trig", "gather-dyn", "gather-i32", "gather-nd", "embed-in", "no-path", "argmax-2048", "repeat-kv",
    "linear-conv", "conv-8x8", "dw-conv", "group-conv", "dyn-weight", "state-count", "state-uniform", "state-32",
    "state-inplace", "state-rows", "state-shift", "state-cost", "pkg-size", "pkg-ops", "pq-block", "pq-int8",
    "pq-lut", "pq-scale", "pq-gpu", "pq-crash", "a8", "multi-fn", "small-cpu", "crossing", "fn-count", "sdpa-op",
    "eos-template",
]  # fmt: skip


def _names_a_figure(reason: str) -> str:
    if not any(character.isdigit() for character in reason):
        raise PydanticCustomError("no_figure", "names no figure")
    return reason


Reason = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_names_a_figure)]
