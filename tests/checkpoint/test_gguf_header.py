"""A GGUF file that is cut off or corrupt is one clear sentence: no traceback, no endless loop, no huge allocation."""

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoint_files import growth
from gguf_configs import CONFIGS
from gguf_files import random_model, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coreai_recipes.checkpoint.gguf import GGUFCheckpoint
from coreai_recipes.checkpoint.gguf.header import read_header
from coreai_recipes.errors import CheckpointError

LLAMA = CONFIGS["llama"][1]
TENSOR_COUNT, PAIR_COUNT, FIRST_KEY = 8, 16, 24  # where these stand in a file


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "model.gguf"
    return write_gguf(path, "llama", LLAMA, random_model(LLAMA).state_dict()).read_bytes()


def put(position: int, code: str, value: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        struct.pack_into(f"<{code}", changed, position, value)
        return bytes(changed)

    return change


def after(marker: bytes, offset: int, code: str, value: int) -> Callable[[bytes], bytes]:
    """Put `value` `offset` bytes behind the first `marker`."""
    return lambda data: put(data.index(marker) + len(marker) + offset, code, value)(data)


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is not a GGUF file"),
    "a page of HTML": (lambda data: b"<!doctype html>" + data, "is not a GGUF file: it does not begin with"),
    "version 1": (put(4, "I", 1), "is GGUF version 1; versions 2 and 3 are supported"),
    "version 9": (put(4, "I", 9), "is GGUF version 9"),
    "big endian": (put(4, "I", 3 << 24), "is a big-endian GGUF file"),
    "cut in half": (lambda data: data[: len(data) // 2], "beyond the file: it is cut off or corrupt"),
    "cut inside the header": (lambda data: data[: data.index(b"\xc4\xa0ab")], "ends inside tokenizer.ggml.tok"),
    "2^60 pairs": (put(PAIR_COUNT, "Q", 1 << 60), "claims 1152921504606846976 metadata pairs, more than the file can"),
    "2^63 tensors": (put(TENSOR_COUNT, "Q", 1 << 63), "claims 9223372036854775808 tensors, more than the file"),
    "a key beyond the file": (put(FIRST_KEY, "Q", 1 << 25), "the file ends inside metadata key 0"),
    "a key of 2^62 bytes": (put(FIRST_KEY, "Q", 1 << 62), "key 0 claims a string of 4611686018427387904 bytes"),
    "an unknown value type": (after(b"llama.block_count", 0, "I", 99), "llama.block_count has a value of type 99"),
    "a list of lists": (after(b"tokenizer.ggml.tokens", 4, "I", 9), "ggml.tokens is a list of values of type 9"),
    "2^40 tokens": (after(b"tokenizer.ggml.tokens", 8, "Q", 1 << 40), "claims 1099511627776 texts in tokenizer.ggml.t"),
    "a name of two lines": (lambda data: data.replace(b"llama.block_count", b"llama.block\ncount"), "unprintable char"),
    "text that is no UTF-8": (after(b"tokenizer.ggml.model", 12, "B", 0xFF), "holds a string that is not UTF-8"),
    "nine dimensions": (after(b"token_embd.weight", 0, "I", 9), "tensor token_embd.weight has 9 dimensions"),
    "an empty tensor": (after(b"token_embd.weight", 4, "Q", 0), r"has the empty shape \(96, 0\)"),
    "a tensor of 2^60 rows": (after(b"token_embd.weight", 12, "Q", 1 << 60), "token_embd.weight ends .* bytes beyond"),
    "an unknown tensor type": (after(b"token_embd.weight", 20, "I", 4), "has type 4, which this version of gguf"),
    "rows of half a block": (after(b"blk.0.ffn_up.weight", 20, "I", 10), "rows of 64, not a multiple of Q2_K's blocks"),
    "an offset beyond the file": (after(b"token_embd.weight", 24, "Q", 1 << 50), "token_embd.weight ends .* beyond"),
    "an odd offset": (after(b"token_embd.weight", 24, "Q", 4), "does not start at a multiple of 32 bytes"),
    "a key twice": (lambda data: data.replace(b"bos_token_id", b"eos_token_id"), "eos_token_id' occurs twice"),
    "a tensor twice": (lambda data: data.replace(b"blk.1.", b"blk.0."), r"tensor blk.0.\S+ occurs twice"),
    "a missing layer": (after(b"llama.block_count", 4, "I", 3), "block_count is 3, but the layers that have tensors"),
    "2^32 layers": (after(b"llama.block_count", 4, "I", (1 << 32) - 1), "block_count is 4294967295, but the layers"),
    "no heads": (after(b"llama.attention.head_count", 4, "I", 0), "llama.attention.head_count is 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_sentence_that_begins_with_its_path(case: str, good: bytes, tmp_path: Path):
    change, message = BROKEN[case]
    path = tmp_path / "broken.gguf"
    path.write_bytes(change(good))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as caught:
            GGUFCheckpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ")
    assert "\n" not in problem


def test_a_file_that_is_missing_or_a_folder_is_a_sentence(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no.gguf: cannot be read: No such file or directory"):
        GGUFCheckpoint(tmp_path / "no.gguf")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        GGUFCheckpoint(tmp_path)


def test_no_alignment_but_a_power_of_two_is_taken(tmp_path: Path):
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", LLAMA, random_model(LLAMA).state_dict(), extra={"general.alignment": 48})
    with pytest.raises(CheckpointError, match=r"general.alignment is 48, not a power of two"):
        GGUFCheckpoint(path)


def test_every_cut_of_the_header_is_noticed(good: bytes, tmp_path: Path):
    path = tmp_path / "cut.gguf"
    for length in range(0, len(good), max(1, len(good) // 400)):
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError):
            read_header(path)


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def header_of(names: list[bytes], pairs: tuple[bytes, ...] = ()) -> bytes:
    """A GGUF file with vectors of one element of these names, which share their bytes."""
    table = b"".join(text(name) + struct.pack("<IQIQ", 1, 1, 0, 0) for name in names)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(names), len(pairs)) + b"".join(pairs) + table
    return header + bytes(-len(header) % 32 + 32)


def test_a_hundred_thousand_tensors_take_time_by_their_number(tmp_path: Path):
    names = [b"blk.%05d.attn_norm.weight" % index for index in range(100_000)]
    for count in (12_500, 100_000):
        (tmp_path / f"{count}.gguf").write_bytes(header_of(names[:count]))
    assert growth(lambda count: read_header(tmp_path / f"{count}.gguf"), 100_000) < 40
    assert [tensor.name.encode() for tensor in read_header(tmp_path / "100000.gguf").tensors] == names


def test_a_name_that_stands_twice_is_found_in_time_by_their_number(tmp_path: Path):
    """Each name used to be counted among all: 20,000 took half a minute."""

    def refuse(count: int) -> None:
        with pytest.raises(CheckpointError, match=rf"tensor blk.{count - 2:05}.attn_norm.weight occurs twice"):
            read_header(tmp_path / f"{count}.gguf")

    for count in (12_500, 100_000):
        names = [b"blk.%05d.attn_norm.weight" % min(index, count - 2) for index in range(count)]
        (tmp_path / f"{count}.gguf").write_bytes(header_of(names))
    assert growth(refuse, 100_000) < 40


def list_of(key: bytes, kind: int, count: int, element: bytes) -> bytes:
    return text(key) + struct.pack("<IIQ", 9, kind, count) + element * count


TOO_LARGE = {
    "tensors": (
        header_of([b"t%d" % index for index in range((1 << 17) + 1)]),
        "has 131073 tensors; at most 131072 are",
    ),
    "pairs": (
        header_of([b"t"], tuple(text(b"k%d" % i) + struct.pack("<IB", 0, 1) for i in range((1 << 14) + 1))),
        "has 16385 metadata pairs; at most 16384 are read",
    ),
    "a list": (
        header_of([b"t"], (list_of(b"a", 0, (1 << 22) + 1, b"x"),)),
        "has 4194305 numbers in a; at most 4194304",
    ),
    "lists together": (
        header_of([b"t"], (list_of(b"a", 0, 1 << 22, b"x"), list_of(b"b", 8, 1, text(b"x")))),
        "has 1 texts in b; at most 0 are read",
    ),
    "a name": (header_of([b"t" * 300]), "the name of tensor 0 claims a string of 300 bytes: the file is corrupt"),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_no_real_header_has_is_refused_before_it_is_held(case: str, tmp_path: Path):
    content, message = TOO_LARGE[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 96 << 20
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)


def test_a_header_of_more_than_64_mib_is_refused(tmp_path: Path):
    path = tmp_path / "model.gguf"
    start = b"GGUF" + struct.pack("<IQQ", 3, 1, 3)
    with path.open("wb") as file:  # holes take no space on disk
        file.write(start + text(b"a") + struct.pack("<IQ", 8, 60 << 20))
        file.seek(60 << 20, 1)
        file.write(text(b"b") + struct.pack("<IQ", 8, 60 << 20))
        file.truncate(200 << 20)
    with pytest.raises(CheckpointError, match=r"has a header of more than 64 MiB: the file is corrupt"):
        read_header(path)


def test_experts_that_the_metadata_does_not_count_are_refused(tmp_path: Path):
    """A tensor of a million rows would be a million tensors."""
    architecture, config = CONFIGS["qwen3moe"]
    path = tmp_path / "model.gguf"
    write_gguf(path, architecture, config, random_model(config).state_dict(), extra={"qwen3moe.expert_count": 5})
    with pytest.raises(CheckpointError, match=r"blk.0.ffn_\S+ holds 6 experts, the metadata says 5"):
        GGUFCheckpoint(path)
    write_gguf(path, architecture, config, random_model(config).state_dict(), extra={"qwen3moe.expert_count": 1 << 20})
    with pytest.raises(CheckpointError, match=r"qwen3moe.expert_count is 1048576; at most 4096 are read"):
        GGUFCheckpoint(path)


MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 4000),  # the header has about this many bytes
        st.one_of(
            st.binary(min_size=1, max_size=1),
            st.sampled_from([0, 1, 2, 9, 32, 255, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]).map(
                lambda number: number.to_bytes(8, "little")
            ),
        ),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(mutations=MUTATIONS, cut=st.none() | st.integers(0, 20000))
def test_mutated_files_raise_checkpoint_errors_only(
    mutations: list[tuple[int, bytes]], cut: int | None, good: bytes, tmp_path_factory: pytest.TempPathFactory
):
    read_mutated(good, mutations, cut, tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module", params=["gemma4", "gemma4-experts", "gpt-oss", "granite", "olmo3", "phi3-longrope"])
def of_a_kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    architecture, config = CONFIGS[request.param]
    path = tmp_path_factory.mktemp("good") / "model.gguf"
    return write_gguf(path, architecture, config, random_model(config).state_dict()).read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(mutations=MUTATIONS, cut=st.none() | st.integers(0, 20000))
def test_mutated_files_of_every_kind_raise_checkpoint_errors_only(
    mutations: list[tuple[int, bytes]], cut: int | None, of_a_kind: bytes, tmp_path_factory: pytest.TempPathFactory
):
    read_mutated(of_a_kind, mutations, cut, tmp_path_factory.getbasetemp())


def read_mutated(good: bytes, mutations: list[tuple[int, bytes]], cut: int | None, folder: Path) -> None:
    """Everything that a build asks of a checkpoint."""
    data = bytearray(good)
    for position, new in mutations:
        data[position : position + len(new)] = new
    path = folder / "mutated.gguf"
    path.write_bytes(data[:cut])
    problems: tuple[str, ...] = ()
    tracemalloc.start()
    try:
        checkpoint = GGUFCheckpoint(path)
        for name in checkpoint.tensors:
            for _ in checkpoint.blocks(name):
                pass
        checkpoint.eos_token_ids()
        checkpoint.write_tokenizer(folder)
    except CheckpointError as error:
        problems = error.problems
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 64 << 20
    assert all(problem.startswith(f"{path}: ") and "\n" not in problem for problem in problems)
