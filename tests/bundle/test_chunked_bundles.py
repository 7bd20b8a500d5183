"""`export.chunks` and `export.table`: bundles of several packages, and of a host's table, say what one package says."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from running.chunks import assert_same, rounds

from coreai_recipes import build
from coreai_recipes.bundle.opened import Bundle
from coreai_recipes.errors import BundleError, RecipeError

TINY = Path(__file__).parents[1] / "checkpoints/tiny-llama"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _on_small_tensors(small_tensors: None) -> None:
    pass


def cut(out: Path, *overrides: str, name: str = "tiny-llama", checkpoint: Path | None = TINY) -> Bundle:
    return build(name, checkpoint, out, overrides=overrides, verified=False)


@pytest.fixture(scope="module")
def in_three(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return cut(tmp_path_factory.mktemp("three"), "export.chunks=3")


@pytest.fixture(scope="module")
def gemma_in_three(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The second package begins with a layer whose cache later ones share; the head is the third."""
    return cut(tmp_path_factory.mktemp("gemma"), "export.chunks=3", name="gemma4-tiny", checkpoint=None)


def test_three_packages_say_what_one_says(tiny_bundle: Path, in_three: Bundle) -> None:
    programs = in_three.described.programs
    assert [(each.file, each.role, each.layers) for each in programs] == [
        ("model_1.mlpackage", "layers", (0, 1)),
        ("model_2.mlpackage", "layers", (1, 3)),
        ("model_3.mlpackage", "layers", (3, 4)),
    ]
    assert list(in_three.described.states) == ["kv_full_1", "kv_full_2", "kv_full_3"]
    assert_same(Bundle.open(tiny_bundle), in_three)


def test_a_host_hands_in_rows_of_the_table(tiny_bundle: Path, tmp_path: Path) -> None:
    hosted = cut(tmp_path, "export.table=host", "export.chunks=2")
    (table,) = hosted.described.tables
    assert (table.input, table.file, table.dtype, table.shape) == ("embedding", "embedding.bin", "float16", (512, 96))
    inputs = hosted.described.functions["prefill"].inputs
    assert {name: port.shape for name, port in inputs.items()} == {
        "embedding": (1, 16, 96),
        "position": (1,),
        "count": (1,),
    }
    assert_same(Bundle.open(tiny_bundle), hosted)


@pytest.mark.parametrize("form", ["{kind: int8}", "{kind: palettize, bits: 4}"])
def test_a_hosts_rows_are_those_of_the_compressed_table(tmp_path: Path, form: str) -> None:
    """Palettes are no rows that a host reads: they lie in the file as float16, with the same numbers."""
    overrides = f"compress={{default: {form}}}"
    one, hosted = cut(tmp_path / "one", overrides), cut(tmp_path / "two", overrides, "export.table=host")
    assert hosted.described.tables[0].dtype == ("int8" if "int8" in form else "float16")
    assert_same(one, hosted)


def test_layers_that_share_caches_and_a_draft_say_the_same(gemma4_tiny_bundle: Path, gemma_in_three: Bundle) -> None:
    one, programs = Bundle.open(gemma4_tiny_bundle), gemma_in_three.described.programs
    assert [(each.role, each.layers) for each in programs] == [("layers", (0, 2)), ("layers", (2, 8)), ("head", (8, 8))]
    assert [each.layers for each in programs if "draft" in each.functions] == [(2, 8)]
    assert_same(one, gemma_in_three)
    prompt = [(7 * index + 3) % 2048 for index in range(40)]
    assert rounds(one, prompt, 24) == rounds(gemma_in_three, prompt, 24)


def test_layers_read_caches_of_a_package_before_theirs(gemma4_tiny_bundle: Path, tmp_path: Path, run: Run) -> None:
    """Layers 4 to 7 read those of layers 2 and 3, of a ring and of a full cache, which return them with each call."""
    one = Bundle.open(gemma4_tiny_bundle)
    handing = "export.chunks={count: 4, share: pass}"
    in_four = cut(tmp_path, handing, name="gemma4-tiny", checkpoint=None)
    programs = in_four.described.programs
    assert [each.layers for each in programs] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    taken = [{port for port in each.functions["decode"].inputs if "keys" in port} for each in programs]
    assert taken == [set(), set(), {"handed_keys_2"}, {"handed_keys_2", "handed_keys_3"}]
    keys = programs[3].functions["decode"].inputs["handed_keys_2"]
    assert keys.shape == programs[1].functions["decode"].outputs["handed_keys_2"].shape
    assert [each.layers for each in programs if "draft" in each.functions] == [(2, 4)]  # where the caches are
    assert_same(one, in_four)
    prompt = [(7 * index + 3) % 2048 for index in range(40)]
    assert rounds(one, prompt, 24) == rounds(in_four, prompt, 24)
    assert run("lint", in_four.path)[0] == 0


def test_every_command_takes_several_packages(in_three: Bundle, run: Run) -> None:
    status, out, err = run("verify", in_three.path, "--checkpoint", TINY, "--stage", "package", "--stage", "tokenizer")
    assert (status, err) == (0, "")
    assert out.splitlines()[1].startswith("package")
    assert run("audit", in_three.path)[0] == 0
    assert run("lint", in_three.path)[0] == 0


def test_a_lost_or_a_foreign_package_is_a_sentence(in_three: Bundle, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    shutil.copytree(in_three.path, lost)
    shutil.rmtree(lost / "model_2.mlpackage")
    with pytest.raises(BundleError) as caught:
        Bundle.open(lost).check_package()
    assert caught.value.problems[0] == f"{lost}: missing since it was built: model_2.mlpackage/{MODEL}"
    foreign = tmp_path / "foreign"
    shutil.copytree(in_three.path, foreign)
    shutil.rmtree(foreign / "model_1.mlpackage")
    shutil.copytree(in_three.path / "model_3.mlpackage", foreign / "model_1.mlpackage")
    with pytest.raises(BundleError, match=r"foreign: modified since it was built: model_1\.mlpackage/"):
        Bundle.open(foreign).check_package()


MODEL = "Data/com.apple.CoreML/model.mlmodel"


def test_a_build_replaces_packages_of_another_number(tmp_path: Path) -> None:
    cut(tmp_path, "export.chunks=2")
    one = cut(tmp_path)
    assert sorted(path.name for path in one.path.glob("*.mlpackage")) == ["model.mlpackage"]


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ("9", ": 9 packages cannot be made of it: 5 is the most"),
        ("{count: 9}", ".count: 9 packages cannot be made of it: 5 is the most"),
        (
            "{max_bytes: 100000}",
            ".max_bytes: 100000 is less than the embedding table with layer 0 (`export.table: host` leaves it outside) "
            "takes; the smallest that can be is 274496",
        ),
    ],
)
def test_packages_that_cannot_be_are_refused(tmp_path: Path, chunks: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        cut(tmp_path, f"export.chunks={chunks}")
    assert str(caught.value) == f"tiny-llama: export.chunks{said}"
