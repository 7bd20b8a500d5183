"""A Gemma 4 with every mechanism and a draft, folded and scaled, as it is saved: what it computes and what it holds."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import gemma4
from figures import psnr
from gemma4_drafts import gemma4_draft
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from programs import block_of, read_model, type_words
from sessions import CONTEXT, FLOOR, PREFILL, SCORE, WINDOW, Session, Subject, rounded

from coreai_recipes.checkpoint import Checkpoint, open_checkpoint
from coreai_recipes.decoder.draft import Draft
from coreai_recipes.decoder.filling import bind_weights, fill_from
from coreai_recipes.decoder.model import build_decoder, exported_form
from coreai_recipes.evaluate import Program
from coreai_recipes.export.cache import FragmentCache
from coreai_recipes.recipe.schema import DRAFT, MODEL, Recipe
from coreai_recipes.running.tables import Table, Tables
from coreai_recipes.storage.chunks import Chunk
from coreai_recipes.targets.coreml.exporter import export_package
from coreai_recipes.verification import run_stages

pytestmark = pytest.mark.xdist_group(__name__)

PACKAGE, TABLE = "model.mlpackage", "per_layer_table.bin"
LAYERS, OWN, SIZE = 6, 4, 12  # layers, those that own a cache, columns that each takes of the second table


@dataclass(frozen=True)
class Built:
    """The package, and the checkpoints that it was made of."""

    recipe: Recipe
    folder: Path
    subject: Subject

    @property
    def package(self) -> Path:
        return self.folder / PACKAGE

    @property
    def target(self) -> Checkpoint:
        return open_checkpoint(self.folder / "target")

    @property
    def draft(self) -> Checkpoint:
        return open_checkpoint(self.folder / "draft")


def write(recipe: Recipe, folder: Path, cache: FragmentCache) -> None:
    """The package of the checkpoints in `folder`."""
    form = exported_form(recipe)
    decoder, draft = build_decoder(recipe, form), Draft.build(recipe, form)
    bindings = bind_weights(decoder, open_checkpoint(folder / "target"))
    of_draft = bind_weights(draft, open_checkpoint(folder / "draft"))
    bindings |= {f"draft.{name}": binding for name, binding in of_draft.items()}
    export_package([decoder, draft], bindings, folder / PACKAGE, cache)


@pytest.fixture(scope="module")
def built(made: Any, cache: FragmentCache) -> Built:
    pair = rounded(gemma4(context=CONTEXT, functions={"prefill": PREFILL, "score": SCORE}))
    recipe, draft = gemma4_draft(pair)
    recipe = Recipe.model_validate(
        recipe.model_dump() | {"export": {**recipe.export.model_dump(), "residual_scale": 2.0**-5}}
    )
    assert recipe.export.fold

    def make(folder: Path) -> None:
        pair.model.save_pretrained(folder / "target")
        draft.half().save_pretrained(folder / "draft")
        write(recipe, folder, cache)

    folder = made("gemma4-with-draft", make)
    tokens = torch.randint(0, recipe.model.vocab_size, (CONTEXT,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = pair.model(tokens[None]).logits[0]
    return Built(recipe, folder, Subject(Program(folder / PACKAGE), tokens, theirs, tables(folder)))


def tables(folder: Path) -> Tables:
    return Tables({"per_layer": Table(folder / TABLE, LAYERS * SIZE)})


@pytest.fixture
def session(built: Built) -> Session:
    return built.subject.session()


# --- what the functions compute ---------------------------------------------------------------------------------------


def test_decoding_alone_is_transformers_up_to_the_end_of_the_context(session: Session) -> None:
    for _ in range(CONTEXT):
        session.take("decode")


@pytest.mark.parametrize(
    "lengths",
    [[16, 16, 16, 16], [1, 15, 1, 16, 2, 14, 15], [6, 1, 1, 16, 3, 16, 5, 16], [7, 11, 12, 2, 7, 11, 9]],
    ids=str,
)
def test_chunks_longer_than_the_window_and_across_its_wrap_are_transformers(
    session: Session, lengths: list[int]
) -> None:
    assert max(lengths) > WINDOW
    session.take_all(lengths)


@pytest.mark.parametrize("before", [0, 5, 20])
def test_a_prefill_of_any_count_then_decode_is_transformers(built: Built, before: int) -> None:
    """And whatever the padding is, to the bit."""
    for count in range(1, PREFILL + 1):
        answers = []
        for padding in (0, 130):
            session = built.subject.session()
            session.take_all([16] * (before // 16) + [before % 16] * (before % 16 > 0))
            answers.append([session.take("prefill", count, padding), session.take("decode"), session.take("decode")])
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*answers, strict=True))


@pytest.mark.parametrize("right", range(1, SCORE + 1))
def test_a_rejected_tail_of_a_score_is_rolled_back_by_position(built: Built, right: int) -> None:
    """By up to N - 1 tokens, before and across the ring's wrap, the caches that others share among them."""
    for start in (3, 9, 37):
        session = built.subject.session()
        session.take_all([16] * (start // 16) + [start % 16] * (start % 16 > 0))
        session.draft(right)
        session.take("decode")
        session.draft(right)
        session.take("prefill", 9)
        session.take("score", SCORE)


@seed(0)
@settings(max_examples=6, deadline=None, database=None)
@given(
    plan=st.lists(
        st.one_of(
            st.just(("decode", 1)),
            st.tuples(st.just("prefill"), st.integers(1, PREFILL)),
            st.tuples(st.just("score"), st.integers(1, SCORE)),
            st.tuples(st.just("draft"), st.integers(1, SCORE)),
        ),
        min_size=4,
        max_size=12,
    ),
    padding=st.integers(0, 130),
)
def test_any_plan_of_calls_is_transformers(built: Built, plan: list[tuple[str, int]], padding: int) -> None:
    session = built.subject.session()
    for function, count in plan:
        left = CONTEXT - session.position
        if left == 0:
            break
        if function == "draft":
            session.draft(count)
        else:
            session.take(function, min(count, left), padding)


class Fragments(FragmentCache):
    """A cache of fragments alone: a linked program is known by its recipe, which a changed decoder is not."""

    def get_or_make(self, key: str, make: Callable[[], bytes]) -> bytes:
        return make() if getattr(make, "__name__", "") == "link" else super().get_or_make(key, make)


def test_a_cache_of_another_layer_than_the_last_owner_would_be_noticed(
    built: Built, cache: FragmentCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that share read place 1 of the states, that of the last owner; place 0 is the first owner's."""
    right = Chunk.slot

    def share_the_first(chunk: Chunk, layer: int) -> int:
        assert right(chunk, layer) == (0, 0, 2, 2, 2, 2)[layer]
        return (0, 0, 2, 2, 0, 0)[layer]

    monkeypatch.setattr(Chunk, "slot", share_the_first)
    for name in ("target", "draft"):
        (tmp_path / name).symlink_to(built.folder / name)
    write(built.recipe, tmp_path, Fragments(cache.root))
    wrong = Subject(Program(tmp_path / PACKAGE), built.subject.tokens, built.subject.theirs, tables(tmp_path)).session()
    assert psnr(built.subject.theirs[15:16], wrong.call("prefill", built.subject.tokens[:16])) < 60


# --- what they hold ---------------------------------------------------------------------------------------------------


def operations_of_layer(model: Any, function: str, index: int) -> Counter[str]:
    """A layer's operations with what they give, constants aside."""
    prefix = f"layer_{index}_"
    return Counter(
        f"{op.type} -> {', '.join(map(type_words, op.outputs))}"
        for op in block_of(model, function).operations
        if op.type != "const"
        and any(out.name.startswith(prefix) or out.name == f"hidden_{index + 1}" for out in op.outputs)
    )


def has_axis(words: str, size: int) -> bool:
    return str(size) in words.partition("(")[2].rstrip(")").split(", ")


def test_layers_that_share_are_run_for_one_token_in_a_prefill(built: Built) -> None:
    model = read_model(built.package)
    for index in range(LAYERS):
        prefill, decode = (operations_of_layer(model, function, index) for function in ("prefill", "decode"))
        assert prefill
        assert any(has_axis(words, PREFILL) for words in prefill) == (index < OWN)
        if index >= OWN:
            # the very operations of a single token; a ring is cut anew, for here its rows are written behind the owner
            assert decode <= prefill
            assert {words.split(" ")[0] for words in prefill - decode} <= {"read_state", "slice_by_index", "reshape"}
            assert not any(words.startswith("write_state") for words in prefill)
    score = operations_of_layer(model, "score", OWN)
    assert any(has_axis(words, SCORE) for words in score)  # it gives the logits of every token


def test_a_prefill_costs_fewer_operations_for_layers_that_share(built: Built) -> None:
    model = read_model(built.package)
    own, shared = (sum(operations_of_layer(model, "prefill", index).values()) for index in (OWN - 2, OWN))
    assert shared < own


def test_the_second_table_is_the_checkpoints_rows_and_no_part_of_the_package(built: Built) -> None:
    table = built.target.read("model.embed_tokens_per_layer.weight")
    stored = np.fromfile(built.folder / TABLE, np.float16).reshape(tuple(table.shape))
    assert torch.equal(torch.from_numpy(stored), table.half())
    weights = built.package / "Data/com.apple.CoreML/weights/weight.bin"
    assert weights.stat().st_size < 2 * sum(t.numel() for t in map(torch.empty, shapes(built))) + 64 * 400
    for function in ("prefill", "decode", "score"):
        inputs = {
            port.name: type_words(port) for port in read_model(built.package).mlProgram.functions[function].inputs
        }
        queries = built.recipe.export.functions.queries[function]
        assert inputs["per_layer"] == f"float16(1, {queries}, {LAYERS * SIZE})"


def shapes(built: Built) -> list[tuple[int, ...]]:
    """Of everything that lies in weight.bin."""
    decoder, draft = build_decoder(built.recipe), Draft.build(built.recipe)
    kept = [p for name, p in decoder.named_parameters() if name not in decoder.tables] + list(draft.parameters())
    return [tuple(parameter.shape) for parameter in kept]


def test_only_kinds_that_own_a_cache_have_states(built: Built) -> None:
    for function in ("prefill", "decode", "score", "draft"):
        ports = read_model(built.package).mlProgram.functions[function].inputs
        states = {port.name: type_words(port) for port in ports if port.type.WhichOneof("type") == "stateType"}
        assert states == {
            "kv_sliding": "state float16(4, 2, 32, 20)",
            "kv_full": "state float16(4, 3, 96, 36)",
        }


# --- its stages -------------------------------------------------------------------------------------------------------


def test_its_package_and_its_draft_pass_their_stages(built: Built) -> None:
    report = run_stages(
        built.recipe,
        {MODEL: built.target, DRAFT: built.draft},
        built.package,
        stages=["rotary", "torch", "package", "draft"],
    )
    assert report.passed, report.to_json()
    package, draft = report.stages[2:]
    assert package.detail["tensors"] == LAYERS + 2
    assert draft.detail["equal"] == {"torch": True, "package": True}
    assert (draft.psnr_db or 0) >= 100


def test_the_logits_of_a_prefill_are_those_of_a_decoder_that_runs_every_layer_for_every_token(built: Built) -> None:
    session = built.subject.session()
    decoder = build_decoder(built.recipe, exported_form(built.recipe))
    fill_from(decoder, bind_weights(decoder, built.target))
    plain = decoder(built.subject.tokens[None])[0]
    for count in (16, 9, 16, 1):
        end = session.position + count
        assert psnr(plain[end - 1 : end], session.take("prefill", count)) >= FLOOR
