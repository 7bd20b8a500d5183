"""Calls of tools, in the form of each template that is known, as a model writes them piece by piece."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_bundle import CHATML, byte_level_tokenizer
from serving_models import reading_model, served
from tokenizers import AddedToken

from coreai_recipes.serving.tools import FORMS, ToolReader, form_of

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
]
CALL = ("get_weather", {"city": 'Ulm, "east"', "days": 3})
AS_JSON = json.dumps({"name": CALL[0], "arguments": CALL[1]})
WRITTEN = {
    "<tool_call><function=": (
        '<tool_call>\n<function=get_weather>\n<parameter=city>\nUlm, "east"\n</parameter>\n<parameter=days>\n3\n'
        "</parameter>\n</function>\n</tool_call>"
    ),
    "<tool_call>": f"<tool_call>\n{AS_JSON}\n</tool_call>",
    "[TOOL_CALLS]": f"[TOOL_CALLS] [{AS_JSON}]",
    "[TOOL_CALLS] with [ARGS]": f"[TOOL_CALLS]get_weather[ARGS]{json.dumps(CALL[1])}",
    "<|tool_call>": '<|tool_call>call:get_weather{city:<|"|>Ulm, "east"<|"|>,days:3}<tool_call|>',
    '"name": "parameters": ': json.dumps({"name": CALL[0], "parameters": CALL[1]}),
}


def read(sign: str, text: str) -> tuple[str, list[Any]]:
    """The text and the calls of an answer that comes a character at a time."""
    form = form_of("{{ tools }}" + sign.replace('"name": ', '{"name": " '))
    assert form is not None
    reader = ToolReader(form, TOOLS)
    shown = "".join(reader.add(character) for character in text)
    rest, calls = reader.finish()
    assert all(len(call["id"]) == 9 and call["type"] == "function" for call in calls)
    return shown + rest, [(each["function"]["name"], json.loads(each["function"]["arguments"])) for each in calls]


@pytest.mark.parametrize("sign", WRITTEN)
def test_each_form_is_read(sign: str) -> None:
    before = "" if sign.startswith('"') else "Let me see. "
    assert read(sign, before + WRITTEN[sign]) == (before, [CALL])


def test_every_form_is_tried() -> None:
    assert len({form.read for form in FORMS}) == 4
    assert len(FORMS) + 1 == len(WRITTEN)  # Mistral has written two


@pytest.mark.parametrize("sign", ["<tool_call>", "[TOOL_CALLS]", "<|tool_call>"])
def test_several_calls_are_told_apart(sign: str) -> None:
    assert read(sign, WRITTEN[sign] + "\n" + WRITTEN[sign]) == ("", [CALL, CALL])


@pytest.mark.parametrize(
    ("sign", "text"),
    [
        ("<tool_call>", "<tool_call>\nnothing of the kind\n</tool_call>"),
        ("<tool_call>", '<tool_call>{"name": "f", "arguments": {"x": 1'),
        ("<tool_call>", "a < b and <tool_"),
        ("<tool_call>", '<tool_call>{"name": 3}</tool_call>'),
        ("<|tool_call>", "<|tool_call>call:f{x:}<tool_call|>"),
        ("[TOOL_CALLS]", "[TOOL_CALLS]f[ARGS]{"),
        ('"name": "parameters": ', '{"name": "of no tool", "parameters": {}}'),
        ('"name": "parameters": ', 'The object {"name": "get_weather", "parameters": {}} is a call.'),
    ],
)  # fmt: skip
def test_what_is_no_call_is_text(sign: str, text: str) -> None:
    assert read(sign, text) == (text, [])


def test_a_template_without_tools_or_of_no_known_form_has_none() -> None:
    assert form_of(CHATML) is None
    assert form_of("<tool_call>") is None
    assert form_of("{{ tools }}") is None


TEMPLATE = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<tool_call><|im_end|>\n{% endif %}" + CHATML.replace(
    "message['content']",
    "message['content'] + (message.tool_calls[0].function.arguments.city if message.tool_calls else '')",
)


def test_a_conversation_with_a_tool_as_the_client_holds_it(tmp_path: Path) -> None:
    """The marks are special tokens here, which are no text in an answer without tools."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens([AddedToken("<tool_call>"), AddedToken("</tool_call>")])
    model, _ = reading_model(tmp_path, "So: " + WRITTEN["<tool_call>"], TEMPLATE, tokenizer)
    with served({"m": model}) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        asked: list[Any] = [{"role": "user", "content": "Weather?"}]
        given: dict[str, Any] = {"model": "m", "tools": TOOLS}
        choice = client.chat.completions.create(messages=asked, **given).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "So: ")
        (call,) = choice.message.tool_calls or []
        assert (call.function.name, json.loads(call.function.arguments)) == CALL
        stream = list(client.chat.completions.create(messages=asked, stream=True, **given))
        deltas = [chunk.choices[0].delta for chunk in stream]
        assert "".join(delta.content or "" for delta in deltas) == "So: "
        assert [each.function.name for delta in deltas for each in delta.tool_calls or []] == ["get_weather"]
        assert stream[-1].choices[0].finish_reason == "tool_calls"
        told = [*asked, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "sun"}]
        again = client.chat.completions.create(messages=told, **given)
        assert again.usage is not None
        assert again.usage.prompt_tokens > choice_tokens(model, asked)
        plain = client.chat.completions.create(messages=asked, tool_choice="none", **given).choices[0]
        assert (plain.finish_reason, plain.message.tool_calls) == ("stop", None)
        assert plain.message.content == f"So: \n{AS_JSON}\n"


def choice_tokens(model: Any, messages: list[Any]) -> int:
    return len(model.tokenizer.encode_chat(messages, tools=TOOLS))
