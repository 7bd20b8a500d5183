"""Each rotary kind against transformers' own classes, bit for bit, and the faults that this project exists to avoid."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rotary_families import FAMILIES, Family, gemma4, ours, theirs
from torch import Tensor, nn

from coreai_recipes.primitives.rotary import Rotary, inverse_frequencies
from coreai_recipes.verification.figures import psnr

D = 80  # where one head_dim is enough: whole pairs in every family
HEAD_DIMS = (64, 80, 96, 128, 256, 512)
THETAS = (1e4, 1e5, 5e5, 1e6)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EDGES = (0, 1, 4095, 4096, 131071)
KINDS = {
    "full": {"theta": 1e4},
    "partial": {"theta": 1e4, "factor": 0.5},
    "proportional": {"theta": 1e6, "factor": 0.25},
}

Case = Callable[[], tuple[Tensor, Tensor]]


def sampled_positions(seed: int, count: int = 19) -> Tensor:
    """The edges and `count` others of 0 .. 131071, (1, S)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat((torch.tensor(EDGES), torch.randint(0, 131072, (count,), generator=generator)))[None]


def family_case(family: Family, dtype: torch.dtype = torch.float32) -> Case:
    """Both sides of a family."""

    def compare() -> tuple[Tensor, Tensor]:
        reference, rotary = family.pair(D, 1e4)
        x, positions = torch.randn(1, 3, 24, D).to(dtype), sampled_positions(0)
        return reference(x, positions), rotary(x, positions)

    return compare


def nothing_turns() -> tuple[Tensor, Tensor]:
    """SmolLM3's layers without positions call no rotary at all."""
    x = torch.randn(1, 3, 24, D)
    return x, ours("none", D)(x, sampled_positions(0))


# what transformers says of each registered kind; test_registry.py holds that no kind is missing
PARITY: dict[str, dict[str, Case]] = {
    kind: {name: family_case(family) for name, family in FAMILIES.items() if family.kind == kind} for kind in KINDS
} | {"none": {"smollm3": nothing_turns}}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, cases in PARITY.items() for name in cases])
def test_a_kind_equals_its_family_bit_for_bit(kind: str, name: str) -> None:
    reference, x = PARITY[kind][name]()
    assert torch.equal(x, reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "head_dim"),
    [(name, head_dim) for name, family in FAMILIES.items() for head_dim in HEAD_DIMS if family.allows(head_dim)],
)
def test_every_bit_is_that_of_transformers(name: str, head_dim: int, dtype: torch.dtype) -> None:
    for seed, theta in enumerate(THETAS):
        reference, rotary = FAMILIES[name].pair(head_dim, theta)
        x, positions = torch.randn(1, 3, 24, head_dim).to(dtype), sampled_positions(seed)
        assert torch.equal(torch.tensor(rotary.inv_freq), reference.inv_freq), theta
        turned = rotary(x, positions)
        assert turned.dtype == dtype
        assert torch.equal(turned, reference(x, positions)), theta


@pytest.mark.parametrize("name", FAMILIES)
def test_each_sequence_of_a_batch_has_its_own_positions(name: str) -> None:
    reference, rotary = FAMILIES[name].pair(D, 1e4)
    x = torch.randn(2, 3, 24, D)
    positions = torch.cat((sampled_positions(1), sampled_positions(2)))
    assert torch.equal(rotary(x, positions), reference(x, positions))
    assert torch.equal(rotary(x, positions)[1:], rotary(x[1:], positions[1:]))


@pytest.mark.parametrize("position_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("kind", KINDS)
def test_positions_may_be_int32_as_in_the_package_or_int64(kind: str, position_dtype: torch.dtype) -> None:
    rotary, positions = ours(kind, 64, **KINDS[kind]), sampled_positions(0)
    for given_, expected in zip(rotary.angles(positions.to(position_dtype)), rotary.angles(positions), strict=True):
        assert torch.equal(given_, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "cohere", "olmo2"])
def test_another_familys_product_gives_other_bits_in_half_precision(name: str, dtype: torch.dtype) -> None:
    family = FAMILIES[name]
    reference, x, positions = family.pair(D, 1e4)[0], torch.randn(1, 3, 24, D).to(dtype), sampled_positions(0)
    own = family.spec.get("product", "model")
    for product in ("model", "float32", "float32_rounded_angles"):
        rotary = ours(family.kind, D, theta=1e4, **{**family.spec, "product": product})
        assert torch.equal(rotary(x, positions), reference(x, positions)) is (product == own), product


# --- the faults -----------------------------------------------------------------------------------------------------


def fault_input() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(1, 8, 64, 512), torch.arange(1, 65)[None]


def test_the_contiguous_layout_is_off_by_8_247_and_ours_by_nothing() -> None:
    """What other projects ship for Gemma 4: proportional's own frequencies, but paired inside the first 128 of 512."""
    x, positions = fault_input()
    rope = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}
    reference = gemma4("full_attention", 512, **rope)(x, positions)
    rotary = ours("proportional", 512, factor=0.25, theta=1e6)
    contiguous = ours("partial", 512, factor=0.25, theta=1e6)
    cos, sin = rotary.angles(positions)
    wrong = contiguous.rotate(x, cos[..., :64], sin[..., :64])
    assert (wrong - reference).abs().max().item() == pytest.approx(8.247, abs=0.01)
    assert psnr(reference, wrong) == pytest.approx(15.4, abs=0.05)
    assert torch.equal(rotary(x, positions), reference)


def test_partial_with_its_own_frequencies_is_not_gemma_4s_rotary_either() -> None:
    x, positions = fault_input()
    right = ours("proportional", 512, factor=0.25, theta=1e6)(x, positions)
    wrong = ours("partial", 512, factor=0.25, theta=1e6)(x, positions)
    assert (wrong - right).abs().max().item() == pytest.approx(8.767, abs=0.01)


def test_bfloat16_frequencies_are_off_by_0_351_of_a_cosine_at_position_200_and_ours_cannot_become_so() -> None:
    rotary = ours("proportional", 512, factor=0.25, theta=1e6)
    positions = torch.tensor([[200]])
    exact_cos, exact_sin = rotary.angles(positions)
    inv_freq = inverse_frequencies(rotary.spec, 512)
    cast = (200.0 * inv_freq.to(torch.bfloat16).float()).cos()
    assert (cast - exact_cos).abs().max().item() == pytest.approx(0.351, abs=0.001)
    for spoil in (nn.Module.half, nn.Module.bfloat16, lambda module: module.to(torch.bfloat16), nn.Module.double):
        spoilt = spoil(nn.Sequential(ours("proportional", 512, factor=0.25, theta=1e6)))[0]
        cos, sin = spoilt.angles(positions)
        assert cos.dtype == sin.dtype == torch.float32
        assert torch.equal(cos, exact_cos)
        assert torch.equal(sin, exact_sin)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_lossy_precision_loses_what_it_says_and_is_float32_outside(precision: str) -> None:
    positions = torch.tensor([[200]])
    lossy = ours("proportional", 512, factor=0.25, theta=1e6, precision=precision, lossy=True)
    exact = ours("proportional", 512, factor=0.25, theta=1e6).angles(positions)[0]
    cos, sin = lossy.angles(positions)
    assert cos.dtype == sin.dtype == torch.float32
    assert torch.equal(cos, cos.to(getattr(torch, precision)).float())
    assert (cos - exact).abs().max() > {"bfloat16": 0.35, "float16": 0.02}[precision]


# --- which dimension turns with which -------------------------------------------------------------------------------


def traced_pairs(rotary: Rotary) -> set[tuple[int, int]]:
    """The dimensions that one basis vector each is spread over when it is turned."""
    size = rotary.head_dim
    turned = rotary(torch.eye(size).view(1, size, 1, size), torch.tensor([[3]])).view(size, size)
    return {tuple(torch.nonzero(row).flatten().tolist()) for row in turned if int((row != 0).sum()) > 1}


def test_full_pairs_the_halves_of_the_head() -> None:
    assert traced_pairs(ours("full", 16, theta=1e4)) == {(i, i + 8) for i in range(8)}


def test_interleaved_pairs_neighbours() -> None:
    assert traced_pairs(ours("full", 16, theta=1e4, pairing="interleaved")) == {(i, i + 1) for i in range(0, 16, 2)}
    partial = ours("partial", 16, theta=1e4, factor=0.5, pairing="interleaved")
    assert traced_pairs(partial) == {(i, i + 1) for i in range(0, 8, 2)}


def test_partial_pairs_within_the_start_and_proportional_across_the_head() -> None:
    partial, proportional = (ours(kind, 16, theta=1e4, factor=0.5) for kind in ("partial", "proportional"))
    assert traced_pairs(partial) == {(i, i + 4) for i in range(4)}
    assert traced_pairs(proportional) == {(i, i + 8) for i in range(4)}
    assert partial.inv_freq == pytest.approx([1e4 ** (-2 * i / 8) for i in range(4)])
    assert proportional.inv_freq == pytest.approx([1e4 ** (-2 * i / 16) for i in range(4)] + [0.0] * 4)


def test_nothing_turns_without_a_rotary() -> None:
    assert traced_pairs(ours("none", 16)) == set()


# --- properties -----------------------------------------------------------------------------------------------------

even = st.integers(4, 256).map(lambda half: 2 * half)
factors = st.floats(0.02, 1.0)
bases = st.floats(100.0, 1e7)
places = st.lists(st.integers(0, 131071), min_size=1, max_size=8)
searched = settings(max_examples=40, derandomize=True, deadline=None)


@searched
@given(head_dim=even, theta=bases, positions=places)
def test_any_full_rotary_equals_llamas(head_dim: int, theta: float, positions: list[int]) -> None:
    x, at = torch.randn(1, 2, len(positions), head_dim), torch.tensor([positions])
    assert torch.equal(ours("full", head_dim, theta=theta)(x, at), theirs("llama", head_dim, rope_theta=theta)(x, at))


@searched
@given(head_dim=even, factor=factors, theta=bases, positions=places)
def test_any_partial_rotary_equals_phi3s_and_glms(
    head_dim: int, factor: float, theta: float, positions: list[int]
) -> None:
    width = int(factor * head_dim)
    assume(width >= 2 and width % 2 == 0)
    x, at = torch.randn(1, 2, len(positions), head_dim), torch.tensor([positions])
    for family, pairing in (("phi3", "half"), ("glm", "interleaved")):
        rotary = ours("partial", head_dim, theta=theta, factor=factor, pairing=pairing)
        reference = theirs(family, head_dim, rope_theta=theta, partial_rotary_factor=factor)
        assert len(rotary.inv_freq) == width // 2
        assert torch.equal(rotary(x, at), reference(x, at))


@searched
@given(head_dim=even, factor=factors, theta=bases, positions=places)
def test_any_proportional_rotary_equals_gemma_4s(
    head_dim: int, factor: float, theta: float, positions: list[int]
) -> None:
    assume(int(factor * head_dim // 2) >= 1)
    x, at = torch.randn(1, 2, len(positions), head_dim), torch.tensor([positions])
    rotary = ours("proportional", head_dim, theta=theta, factor=factor)
    rope = {"rope_type": "proportional", "partial_rotary_factor": factor, "rope_theta": theta}
    assert torch.equal(rotary(x, at), gemma4("full_attention", head_dim, **rope)(x, at))


@searched
@given(
    factor=st.floats(1.0, 64.0),
    low=st.floats(0.5, 2.0),
    high=st.floats(2.5, 16.0),
    original=st.integers(16, 131072),
    theta=bases,
)
def test_any_llama3_scaling_equals_llamas(factor: float, low: float, high: float, original: int, theta: float) -> None:
    bands = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    reference = theirs(
        "llama", 96, rope_type="llama3", rope_theta=theta, original_max_position_embeddings=original, **bands
    )
    rotary = ours("full", 96, theta=theta, scaling={"kind": "llama3", "original_context": original, **bands})
    assert torch.equal(torch.tensor(rotary.inv_freq), reference.inv_freq)


@searched
@given(head_dim=even, theta=bases, positions=places)
def test_all_kinds_are_one_when_everything_turns(head_dim: int, theta: float, positions: list[int]) -> None:
    x, at = torch.randn(1, 2, len(positions), head_dim), torch.tensor([positions])
    full = ours("full", head_dim, theta=theta)(x, at)
    for kind in ("partial", "proportional"):
        assert torch.equal(ours(kind, head_dim, theta=theta, factor=1.0)(x, at), full)


@searched
@given(kind=st.sampled_from(list(KINDS)), position=st.integers(0, 131071))
def test_a_turn_keeps_the_length_of_every_head(kind: str, position: int) -> None:
    x = torch.randn(1, 2, 1, 96)
    turned = ours(kind, 96, **KINDS[kind])(x, torch.tensor([[position]]))
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5)


# --- what cannot reach the angles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_there_is_no_state_that_a_checkpoint_or_a_cast_could_reach(kind: str) -> None:
    rotary = ours(kind, 64, **KINDS.get(kind, {}))
    assert not rotary.state_dict()
    assert not list(rotary.parameters())
    assert not list(rotary.buffers())
    assert not [value for value in vars(rotary).values() if isinstance(value, Tensor)]


class Angles(nn.Module):
    """What a trace of the front sees."""

    def __init__(self, rotary: Rotary) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self.rotary.angles(positions)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("halved_first", [False, True])
@pytest.mark.parametrize("kind", [*KINDS, "none"])
def test_a_trace_gives_the_same_bits_at_other_positions_also_after_half(kind: str, halved_first: bool) -> None:
    rotary = ours(kind, D, **KINDS.get(kind, {}))
    positions = sampled_positions(7)
    expected = rotary.angles(positions)
    module = Angles(rotary).half() if halved_first else Angles(rotary)
    traced = torch.jit.trace(module, torch.arange(24)[None], check_trace=False).half()
    for found, right in zip(traced(positions), expected, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, right)


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16], ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_default_dtype_does_not_matter(name: str, default_dtype: torch.dtype) -> None:
    family, positions = FAMILIES[name], sampled_positions(3)
    x = torch.randn(1, 2, 24, D, dtype=torch.float32)
    rotary = ours(family.kind, D, theta=1e6, **family.spec)
    found = (torch.tensor(rotary.inv_freq, dtype=torch.float64), *rotary.angles(positions), rotary(x, positions))
    torch.set_default_dtype(torch.float32)
    rotary = ours(family.kind, D, theta=1e6, **family.spec)
    right = (torch.tensor(rotary.inv_freq, dtype=torch.float64), *rotary.angles(positions), rotary(x, positions))
    for one, other in zip(found, right, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_may_be_built_on_the_meta_device(name: str) -> None:
    family, positions, x = FAMILIES[name], sampled_positions(3), torch.randn(1, 2, 24, D)
    with torch.device("meta"):
        built = ours(family.kind, D, theta=1e6, **family.spec)
    rotary = ours(family.kind, D, theta=1e6, **family.spec)
    for module in (built, built.to("meta")):
        assert torch.equal(module(x, positions), rotary(x, positions))


# --- contracts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "pairs"), [("full", 32), ("partial", 16), ("proportional", 32), ("none", 0)], ids=lambda value: str(value)
)
def test_angles_are_float32_and_one_a_pair(kind: str, pairs: int) -> None:
    rotary = ours(kind, 64, **KINDS.get(kind, {}))
    assert isinstance(rotary, Rotary)
    positions = torch.tensor([[0, 5, 9], [1, 2, 131071]])
    for angle in rotary.angles(positions):
        assert angle.shape == (2, 3, pairs)
        assert angle.dtype == torch.float32
    for dtype in DTYPES:
        x = torch.randn(2, 5, 3, 64).to(dtype)
        turned = rotary(x, positions)
        assert turned.shape == x.shape
        assert turned.dtype == dtype
        assert torch.equal(turned, rotary.rotate(x, *rotary.angles(positions)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*FAMILIES, "none"])
def test_the_engines_layout_gives_the_same_bits(name: str, dtype: torch.dtype) -> None:
    """(H, D, 1, S) turned along axis 1, as attention does it, and (1, H, S, D) turned along the last."""
    rotary = ours("none", D) if name == "none" else FAMILIES[name].pair(D, 1e6)[1]
    x, positions = torch.randn(1, 3, 24, D).to(dtype), sampled_positions(5)
    cos, sin = (angle.transpose(1, 2).unsqueeze(2) for angle in rotary.angles(positions))  # (1, R/2, 1, S)
    in_engine = x[0].transpose(1, 2).unsqueeze(2)  # (H, D, 1, S)
    turned = rotary.rotate_along(in_engine, cos, sin, 1)
    assert turned.dtype == dtype
    assert torch.equal(turned.squeeze(2).transpose(1, 2)[None], rotary(x, positions))


def test_the_frequencies_are_those_of_the_formula() -> None:
    """Against plain Python, so that ours and transformers' cannot be wrong together."""
    rotary = ours("proportional", 512, factor=0.25, theta=1e6)
    expected = [math.pow(1e6, -2 * i / 512) if i < 64 else 0.0 for i in range(256)]
    assert list(rotary.inv_freq) == pytest.approx(expected, rel=1e-6)
    cos, _ = rotary.angles(torch.tensor([[4096]]))
    # float32 angles near 4096 radians are off by up to 2^-12
    assert cos[0, 0].tolist() == pytest.approx([math.cos(4096 * f) for f in expected], abs=1.5e-3)
