"""Answers and conversations of a model that says what it was told to say."""

import subprocess
import sys
from pathlib import Path

import pytest
from fake_bundle import VOCAB, byte_level_tokenizer, fake_session, scripted_model, write_tokenizer

from coreai_recipes.errors import BundleError, UserError
from coreai_recipes.generate import Chat, LanguageModel, Sampler, answer
from coreai_recipes.tokenizer.bundle_tokenizer import BundleTokenizer

SCRIPT = "Paris 🙂."


def test_an_answer_streams_its_text_and_then_tells_what_it_was(tmp_path: Path) -> None:
    model, runtime = scripted_model(tmp_path, SCRIPT)
    result = answer(model, "hi")
    assert (result.text, result.finish_reason, runtime.calls) == ("", None, [])
    pieces = list(result)
    assert "".join(pieces) == result.text == SCRIPT
    assert "🙂" in pieces
    assert result.token_ids == byte_level_tokenizer().encode(SCRIPT).ids
    assert result.finish_reason == "stop"
    assert result.prompt_tokens == len(model.tokenizer.encode_chat([{"role": "user", "content": "hi"}]))
    assert result.seconds_to_first_token is not None
    assert result.tokens_per_second is not None
    assert list(result) == []  # it is made once
    decodes = [call for call in runtime.calls if call[0] == "decode"]
    assert len(decodes) == len(result.token_ids)


def test_the_json_and_the_summary(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path, SCRIPT)
    result = answer(model, "hi", max_tokens=2)
    list(result)
    assert result.to_json() == {
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": "length",
        "prompt_tokens": result.prompt_tokens,
        "seconds_to_first_token": result.seconds_to_first_token,
        "tokens_per_second": result.tokens_per_second,
    }
    result.seconds_to_first_token, result._seconds = 0.84, 1.09
    assert result.summary() == "2 tokens, 4.0 tokens/s, first after 0.8 s, length"


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_max_tokens_ends_it_with_length_and_no_call_too_many(tmp_path: Path, max_tokens: int) -> None:
    model, runtime = scripted_model(tmp_path, SCRIPT, chunk=64)
    result = answer(model, "hi", max_tokens=max_tokens)
    list(result)
    assert (len(result.token_ids), result.finish_reason) == (max_tokens, "length")
    assert len(runtime.calls) == max_tokens
    assert (result.tokens_per_second is None) == (max_tokens == 1)


def test_a_half_character_at_the_end_is_shown_as_such(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path, "🙂")
    assert "".join(answer(model, "hi", max_tokens=2)) == "\N{REPLACEMENT CHARACTER}"


def test_the_end_of_the_context_ends_it_with_length(tmp_path: Path) -> None:
    model, runtime = scripted_model(tmp_path, "x", context=40, eos=False)
    prompt = "a" * 36
    result = answer(model, prompt, raw=True)
    list(result)
    assert (result.prompt_tokens, len(result.token_ids), result.finish_reason) == (36, 5, "length")
    assert runtime.calls[-1] == ("decode", 39, 1)


def test_a_prompt_may_fill_the_context_and_gets_one_token(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path, SCRIPT, context=40)
    result = answer(model, "a" * 40, raw=True)
    list(result)
    assert (len(result.token_ids), result.finish_reason) == (1, "length")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "a" * 600,
            {"raw": True},
            "the prompt has 600 tokens, but the bundle's context is 512: "
            "shorten it, or build with --set export.context=1024",
        ),
        ("", {"raw": True}, "the prompt is empty: give some text"),
        ("a", {"max_tokens": 0}, "max_tokens 0 is below 1"),
        (
            "a",
            {"raw": True, "system": "b"},
            "--system needs the chat template, which --raw leaves out: use only one of them",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_before_any_call(
    tmp_path: Path, text: str, options: dict[str, bool], message: str
) -> None:
    model, runtime = scripted_model(tmp_path, SCRIPT)
    with pytest.raises(UserError) as caught:
        answer(model, text, **options)  # type: ignore[arg-type]
    assert caught.value.problems == (message,)
    assert runtime.calls == []


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    session, _ = fake_session([(68, None)])
    model = LanguageModel(tmp_path, BundleTokenizer(write_tokenizer(tmp_path)), session, frozenset(), VOCAB)
    with pytest.raises(UserError, match=f"its tokenizer produced token .*, but the model has {VOCAB} tokens"):
        answer(model, "hello")


def test_raw_and_a_tokenizer_without_a_template_continue_the_text_itself(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path / "template", SCRIPT)
    assert answer(model, "hi", raw=True).prompt_tokens == 2
    assert answer(model, "hi", system="b").prompt_tokens > 10
    bare, _ = scripted_model(tmp_path / "bare", SCRIPT, chat_template=None)
    assert answer(bare, "hi").prompt_tokens == 2
    for ask in (lambda: answer(bare, "hi", system="b"), lambda: Chat(bare, system="b")):
        with pytest.raises(
            UserError, match="--system needs a chat template, and its tokenizer has none: put the text into the prompt"
        ):
            ask()


def test_a_template_that_refuses_does_so_before_any_call(tmp_path: Path) -> None:
    model, runtime = scripted_model(tmp_path, SCRIPT, chat_template="{{ raise_exception('no system role') }}")
    with pytest.raises(BundleError, match="its chat template refuses the conversation: no system role"):
        answer(model, "hi", system="x")
    assert runtime.calls == []


def test_a_closed_answer_says_interrupted(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path, SCRIPT)
    result = answer(model, "hi")
    next(iter(result))
    assert result.summary().endswith("unfinished")
    result.close()
    assert (result.finish_reason, list(result)) == ("interrupted", [])


def test_an_interrupted_call_leaves_a_model_that_answers(tmp_path: Path) -> None:
    model, runtime = scripted_model(tmp_path, SCRIPT)
    runtime.interrupt_at = 4
    result = answer(model, "hi")
    with pytest.raises(KeyboardInterrupt):
        list(result)
    assert result.finish_reason == "interrupted"
    assert "".join(answer(model, "hi")) == SCRIPT


def test_a_chat_feeds_only_what_is_new(tmp_path: Path) -> None:
    model, runtime = scripted_model(tmp_path, SCRIPT, chunk=64)
    chat = Chat(model, system="Be brief.")
    assert "".join(chat.reply("hi")) == SCRIPT
    runtime.calls.clear()
    assert "".join(chat.reply("and?")) == SCRIPT
    new = "<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\n"
    first, *rest = runtime.calls
    assert (first[0], first[2]) == ("prefill", len(byte_level_tokenizer().encode(new).ids))
    assert [call[0] for call in rest] == ["decode"] * len(byte_level_tokenizer().encode(SCRIPT).ids)
    assert runtime.resets == 0
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert chat.messages[-1]["content"] == SCRIPT


def test_a_chat_sees_what_a_single_prompt_sees(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path, SCRIPT)
    chat = Chat(model)
    list(chat.reply("one"))
    list(chat.reply("two"))
    tokens = model.session.token_ids
    asked = [*chat.messages[:3]]
    assert list(tokens[: len(model.tokenizer.encode_chat(asked))]) == model.tokenizer.encode_chat(asked)


def test_an_interrupted_turn_stays_in_the_history_with_what_it_had(tmp_path: Path) -> None:
    model, runtime = scripted_model(tmp_path, SCRIPT, chunk=64)
    chat = Chat(model)
    runtime.interrupt_at = 3
    with pytest.raises(KeyboardInterrupt):
        list(chat.reply("hi"))
    assert [message["content"] for message in chat.messages] == ["hi", chat._latest.text]  # type: ignore[union-attr]
    assert SCRIPT.startswith(chat.messages[-1]["content"])
    assert "".join(chat.reply("go on")) == SCRIPT
    assert len(chat.messages) == 4


def test_a_turn_without_a_word_leaves_no_trace(tmp_path: Path) -> None:
    model, runtime = scripted_model(tmp_path, SCRIPT, chunk=64)
    chat = Chat(model)
    chat.reply("never read")
    runtime.interrupt_at = 0
    with pytest.raises(KeyboardInterrupt):
        list(chat.reply("hi"))
    assert chat.messages == []


def test_an_answer_that_is_left_is_closed_by_the_next(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path, SCRIPT)
    chat = Chat(model)
    left = chat.reply("hi")
    piece = next(iter(left))
    assert "".join(chat.reply("again")) == SCRIPT
    assert left.finish_reason == "interrupted"
    assert [message["content"] for message in chat.messages] == ["hi", piece, "again", SCRIPT]


def test_a_conversation_that_is_too_long_keeps_its_history(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path, SCRIPT, context=128)
    chat = Chat(model)
    list(chat.reply("hi"))
    before = chat.messages
    with pytest.raises(UserError, match=r"context is 128: shorten it, or build with --set export\.context=256"):
        chat.reply("a" * 100)
    assert chat.messages == before
    assert "".join(chat.reply("b")) == SCRIPT


def test_a_seeded_sampler_makes_the_same_answer(tmp_path: Path) -> None:
    model, _ = scripted_model(tmp_path, SCRIPT)

    def draw(seed: int) -> list[int]:
        result = answer(model, "hi", max_tokens=8, sampler=Sampler(temperature=5.0, seed=seed))
        list(result)
        return result.token_ids

    assert draw(1) == draw(1) != draw(2)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, coreai_recipes.generate as g; print(sorted({'torch','jinja2','tokenizers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
