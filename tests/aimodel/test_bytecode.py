"""MLIR's bytecode as far as weights lie in it. tests/targets/coreai holds whole files against Core AI's own writer."""

import pytest

from coreai_recipes.aimodel.bytecode import MAGIC, Bytecode, BytecodeError, Replacement, _Reader, splice, varint


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, (1 << 35) + 5, (1 << 56) - 1, 1 << 56, (1 << 64) - 1])
def test_a_varint_comes_back(value: int) -> None:
    written = varint(value)
    reader = _Reader(memoryview(written))
    assert reader.varint() == value
    assert reader.at == len(written)


@pytest.mark.parametrize("data", [b"", b"MZ\0\0", MAGIC, MAGIC + b"\x0dMLIR\0\x00\xff"])
def test_what_is_no_bytecode_is_refused(data: bytes) -> None:
    with pytest.raises(BytecodeError, match="is no MLIR bytecode: "):
        Bytecode(data)


def test_weights_come_in_place_of_stand_ins() -> None:
    program = _program([(b"a" * 64, 16), (b"b" * 64, 16)])
    assert [name for name, _ in Bytecode(program).blobs] == ["first", "second"]
    weights = [b"1234" * 1000, b"5678" * 10]
    spliced = b"".join(
        splice(
            program,
            lambda name, content: (
                Replacement(len(weights[0]), lambda: [weights[0][:100], weights[0][100:]])
                if bytes(content) == b"a" * 64
                else Replacement(len(weights[1]), lambda: [weights[1]])
            ),
        )
    )
    assert [bytes(content) for _, content in Bytecode(spliced).blobs] == weights
    assert b"".join(splice(spliced, lambda *_: None)) == spliced
    assert all(spliced.find(weight) % 16 == 0 for weight in weights)


def test_a_weight_that_is_not_as_long_as_it_said_is_a_fault() -> None:
    program = _program([(b"a" * 64, 16)])
    with pytest.raises(RuntimeError, match="bytes more than were laid out"):
        list(splice(program, lambda *_: Replacement(10, lambda: [b"123"])))


def _program(blobs: list[tuple[bytes, int]]) -> bytes:
    """The sections that matter, as MLIR's BytecodeFormat describes them."""
    names = ["builtin", "first", "second"][: 1 + len(blobs)]
    sizes = b"".join(varint(len(name) + 1) for name in reversed(names))
    strings = varint(len(names)) + sizes + b"".join(name.encode() + b"\0" for name in names)
    offsets, resources = varint(0) + varint(0) + varint(len(blobs)), b""
    for number, (content, alignment) in enumerate(blobs, 1):
        entry = varint(alignment) + varint(len(content))
        entry += b"\xcb" * (-(len(resources) + len(entry)) % alignment) + content
        offsets += varint(number) + varint(len(entry)) + b"\0"
        resources += entry
    head = MAGIC + varint(6) + b"MLIR\0"
    for kind, payload in ((0, strings), (6, offsets)):
        head += bytes([kind]) + varint(len(payload)) + payload
    lead = bytes([5 | 0x80]) + varint(len(resources)) + varint(16)
    return head + lead + b"\xcb" * (-(len(head) + len(lead)) % 16) + resources
