"""The API as OpenAI's own client uses it, over a built bundle: the answers are those of `recipe run`."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving_models import reading_model, served

from coreai_recipes.bundle import Bundle
from coreai_recipes.generate import LanguageModel, Sampler, answer, open_model

PROMPT = "In the beginning"


def opened(bundle: Path) -> LanguageModel:
    return open_model(bundle, Bundle.open(bundle).manifest, "evaluator")


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> LanguageModel:
    return opened(tiny_bundle)


@pytest.fixture(scope="module")
def url(tiny_bundle: Path, gemma4_tiny_bundle: Path) -> Iterator[str]:
    with served({"tiny": opened(tiny_bundle), "drafting": opened(gemma4_tiny_bundle)}) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


def expected(model: LanguageModel, text: str = PROMPT, **given: Any) -> Any:
    result = answer(model, text, **given)
    list(result)
    return result


def said(message: str) -> Any:
    return [{"role": "user", "content": message}]


def test_models_are_listed_by_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "drafting"]
    assert client.models.retrieve("tiny").owned_by == "coreai-recipes"
    with pytest.raises(openai.NotFoundError, match="there is no model none: tiny, drafting"):
        client.models.retrieve("none")


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 7}])
def test_answers_are_those_of_run_token_for_token(
    client: openai.OpenAI, tiny: LanguageModel, sampling: dict[str, Any]
) -> None:
    theirs = expected(tiny, max_tokens=6, sampler=Sampler(**sampling))
    whole = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=6, logprobs=2, **sampling)
    stream = list(client.completions.create(model="tiny", prompt=PROMPT, max_tokens=6, stream=True, **sampling))
    choice = whole.choices[0]
    assert choice.text == theirs.text == "".join(chunk.choices[0].text for chunk in stream)
    assert choice.finish_reason == stream[-1].choices[0].finish_reason == theirs.finish_reason == "length"
    assert choice.logprobs.tokens == [tiny.tokenizer.text_of(token) for token in theirs.token_ids]
    assert "".join(choice.logprobs.tokens) == theirs.text
    places = zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True)
    assert all(theirs.text[at:].startswith(token) for at, token in places)
    assert whole.usage.completion_tokens == len(theirs.token_ids) == 6


def test_log_probabilities_are_those_of_the_logits(client: openai.OpenAI, tiny: LanguageModel) -> None:
    choice = client.chat.completions.create(
        model="tiny", messages=said(PROMPT), max_tokens=2, logprobs=True, top_logprobs=3
    ).choices[0]
    first = tiny.session.feed(tiny.tokenizer.encode(PROMPT)).float().log_softmax(0)
    values, ids = first.topk(3)
    content = choice.logprobs.content
    assert [each.token for each in content[0].top_logprobs] == [tiny.tokenizer.text_of(int(each)) for each in ids]
    assert [each.logprob for each in content[0].top_logprobs] == pytest.approx(values.tolist(), abs=1e-5)
    assert (content[0].token, content[0].logprob) == (content[0].top_logprobs[0].token, pytest.approx(float(values[0])))
    assert bytes(content[0].bytes).decode() == content[0].token
    assert len(content) == 2


def test_a_draft_is_used_and_changes_nothing(client: openai.OpenAI, url: str, gemma4_tiny_bundle: Path) -> None:
    theirs = expected(opened(gemma4_tiny_bundle), max_tokens=6)
    reply = client.chat.completions.create(model="drafting", messages=said(PROMPT), max_tokens=6)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (theirs.text, "length")
    with urllib.request.urlopen(f"{url}/metrics") as response:
        metrics = dict(line.rsplit(" ", 1) for line in response.read().decode().splitlines() if line[0] != "#")
    assert float(metrics['recipe_drafted_tokens_total{kind="drafted",model="drafting"}']) > 0
    assert float(metrics['recipe_tokens_total{kind="completion",model="drafting"}']) == 6


def test_a_stop_ends_an_answer_and_a_stream_counts(client: openai.OpenAI, tiny: LanguageModel) -> None:
    theirs = expected(tiny, max_tokens=6)
    word = theirs.text.split()[2]
    stream = list(
        client.chat.completions.create(
            model="tiny",
            messages=said(PROMPT),
            max_tokens=6,
            stop=[word],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == theirs.text[: theirs.text.index(word)]
    assert stream[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in stream[:-1] if chunk.choices[0].finish_reason] == ["stop"]
    assert (stream[-1].choices, stream[-1].usage.prompt_tokens) == ([], theirs.prompt_tokens)


def test_prompts_come_back_from_memory_and_say_the_same(client: openai.OpenAI, tiny: LanguageModel) -> None:
    texts = [f"{start} the LORD said unto Moses, and all the people heard it" for start in ("And", "Then", "Now")]
    for _ in range(2):
        replies = [client.completions.create(model="tiny", prompt=text, max_tokens=3) for text in texts]
        assert [reply.choices[0].text for reply in replies] == [
            expected(tiny, text, max_tokens=3).text for text in texts
        ]
    for reply in replies:
        assert reply.usage.prompt_tokens_details.cached_tokens == reply.usage.prompt_tokens - 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n": 2, "logit_bias": {"1": 2}}, "n, logit_bias: not supported here; leave it out"),
        ({"messages": []}, "messages: List should have at least 1 item after validation, not 0"),
        ({"temperature": -1, "max_tokens": 0}, "temperature: Input should be greater than or equal to 0; "
         "max_tokens: Input should be greater than or equal to 1"),
        ({"extra_body": {"temprature": 1}}, "temprature: unknown field"),
        ({"messages": said("LORD " * 300)}, "the prompt has 302 tokens, but the bundle's context is 256"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tiny takes no tools"),
        ({"extra_body": {"chat_template_kwargs": {"thinks": True}}}, "has no chat template for the variables thinks"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(client: openai.OpenAI, given: dict[str, Any], message: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "tiny", "messages": said("hi"), **given})
    assert message in refused.value.body["message"]
    assert refused.value.type == "invalid_request_error"


def ask(url: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and message of a response, without a client between."""
    named = {"content-type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, body, named), timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]


def test_what_is_no_request_is_a_sentence(url: str) -> None:
    chat = "/v1/chat/completions"
    assert ask(url, chat, b"{") == (
        400,
        "the body is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    )
    assert ask(url, chat, b"\xff")[1].startswith("the body is not JSON: 'utf-8' codec can't decode")
    assert ask(url, chat, b"[" * 9999) == (400, "the body is not JSON: it is nested too deeply: more than 100 levels")
    assert ask(url, chat, b"[]") == (400, "the body must be a JSON object")
    assert ask(url, chat, b'{"temperature": NaN}')[1] == "the body is not JSON: NaN is not a JSON number"
    assert ask(url, chat, b"{}", content_type="text/plain")[0] == 415
    assert ask(url, chat) == (405, f"{chat} does not take GET")
    assert ask(url, "/v2") == (404, "there is no path /v2")
    assert ask(url, "/v1/models", host="example.org") == (403, "without --api-key, only localhost is answered")
    assert ask(url, "/health", host="example.org")[0] == 200


def test_a_key_must_be_known(tmp_path: Path) -> None:
    model, _ = reading_model(tmp_path, "Yes.")
    with served({"m": model}, key="secret") as url:
        assert ask(url, "/v1/models") == (
            401,
            "the API key is missing or wrong: send `Authorization: Bearer KEY`",
        )
        assert ask(url, "/v1/models", authorization="Bearer secre")[0] == 401
        assert ask(url, "/v1/models", authorization="Bearer secret", host="example.org")[0] == 200
        assert ask(url, "/health")[0] == 200


def test_a_package_without_logits_says_what_to_leave_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = reading_model(tmp_path, "Yes.")
    monkeypatch.setattr(type(model.session), "gives_logits", False)
    with served({"m": model}) as url:
        body = {"model": "m", "messages": said("hi"), "min_p": 0.1, "temperature": 1, "logprobs": True}
        assert ask(url, "/v1/chat/completions", json.dumps(body).encode()) == (
            400,
            "m gives its best token and no logits: leave out temperature, min_p, logprobs",
        )
        plain = {"model": "m", "messages": said("hi")}
        assert ask(url, "/v1/chat/completions", json.dumps(plain).encode())[0] == 200
