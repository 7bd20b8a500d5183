"""A tokenizer of pieces with scores, made of a GGUF file's metadata: Llama's and Gemma's."""

from pathlib import Path

from gguf_tokenizers import SAMPLES, TEXT, tiny
from tokenizers import Tokenizer

from coreai_recipes.checkpoint.gguf.metadata import Metadata
from coreai_recipes.checkpoint.gguf.tokenizer import build_tokenizer


def sentencepiece_metadata(prefix: bool, architecture: str = "llama") -> Metadata:
    """A small vocabulary whose scores, like Llama's, fall with the order of merging."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁a",
        "▁▁",
        "he",
        "ll",
        "hell",
        "hello",
    ]
    pieces += ["▁hello", "▁", "a", "h", "e", "l", "o", "w", "r", "d"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * 16]
    scores = [0.0] * 259 + [-float(i) for i in range(16)]
    return tiny(
        model="llama",
        tokens=pieces,
        token_type=kinds,
        scores=scores,
        merges=None,
        pre=None,
        unknown_token_id=0,
        padding_token_id=None,
        add_space_prefix=prefix,
        **{"general.architecture": architecture},
    )


def pieces_of(tokenizer: Tokenizer, text: str) -> list[str]:
    return tokenizer.encode(text, add_special_tokens=False).tokens


def test_sentencepiece_text_begins_with_a_space_unless_the_file_says_otherwise():
    with_prefix, without = (build_tokenizer(sentencepiece_metadata(prefix)) for prefix in (True, False))
    assert pieces_of(with_prefix, "hello a") == ["▁hello", "▁a"]
    assert pieces_of(without, "hello a") == ["hello", "▁a"]
    assert pieces_of(with_prefix, "<s>hello</s>a") == ["<s>", "▁hello", "</s>", "▁a"]
    assert with_prefix.encode("hello").ids[0] == 1  # a sentencepiece vocabulary has <s> by default
    for tokenizer in (with_prefix, without):
        assert tokenizer.decode(tokenizer.encode("hello  a é\n").ids) == "hello  a é\n"
    assert pieces_of(without, "é") == ["<0xC3>", "<0xA9>"]


def test_sentencepiece_merges_follow_the_scores_or_for_gemma_the_ids():
    """`▁▁` comes after `▁a` in both orders of `  a`, unless the scores say otherwise."""
    by_id = build_tokenizer(sentencepiece_metadata(False, "gemma2"))
    assert pieces_of(by_id, "  a") == ["▁", "▁a"]
    metadata = sentencepiece_metadata(False)
    scores = list(metadata.values["tokenizer.ggml.scores"])
    scores[260] = 1.0  # ▁▁ before ▁a
    metadata = Metadata(metadata.path, {**metadata.values, "tokenizer.ggml.scores": scores})
    assert pieces_of(build_tokenizer(metadata), "  a") == ["▁▁", "a"]
    gemma = Metadata(metadata.path, {**metadata.values, "general.architecture": "gemma2"})
    assert pieces_of(build_tokenizer(gemma), "  a") == ["▁", "▁a"]


def test_gemmas_runs_of_spaces_are_found_although_they_are_stored_with_real_spaces():
    metadata = sentencepiece_metadata(False, "gemma2")
    tokens, kinds = list(metadata.values["tokenizer.ggml.tokens"]), list(metadata.values["tokenizer.ggml.token_type"])
    tokens[tokens.index("▁▁")], kinds[260] = "  ", 4
    metadata = Metadata(
        metadata.path, {**metadata.values, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    )
    tokenizer = build_tokenizer(metadata)
    assert pieces_of(tokenizer, "h  h") == ["h", "▁▁", "h"]
    assert tokenizer.decode([260]) == "  "


def test_sentencepiece_itself_agrees(tmp_path: Path):
    """Held against the library that such vocabularies come from."""
    import sentencepiece

    (tmp_path / "text.txt").write_text(TEXT * 3, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "model"),
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "model.model"))
    indices = range(theirs.GetPieceSize())
    metadata = tiny(
        model="llama",
        tokens=[theirs.IdToPiece(i) for i in indices],
        scores=[theirs.GetScore(i) for i in indices],
        token_type=[
            2 if theirs.IsUnknown(i) else 3 if theirs.IsControl(i) else 6 if theirs.IsByte(i) else 1 for i in indices
        ],
        merges=None,
    )
    ours = build_tokenizer(metadata)
    for sample in SAMPLES[:-1]:  # sentencepiece does not look for control tokens in a text
        assert ours.encode(sample, add_special_tokens=False).ids == theirs.encode(sample), sample
