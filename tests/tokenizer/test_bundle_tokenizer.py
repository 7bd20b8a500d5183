"""Tokens and templates against transformers' own tokenizer on the same files."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_bundle import CHATML, byte_fallback_tokenizer, byte_level_tokenizer, write_tokenizer
from tokenizers import processors
from transformers import AutoTokenizer

from coreai_recipes.errors import BundleError
from coreai_recipes.tokenizer.bundle_tokenizer import BundleTokenizer

USER = {"role": "user", "content": '  What is 1 < 2 & "three"? <b>é你</b>  '}
CHATS = {
    "one": [USER],
    "system": [{"role": "system", "content": "Be brief."}, USER],
    "turns": [
        USER,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
        {"role": "user", "content": "Why?"},
    ],
}
# What the families' templates use, one form of each.
TEMPLATES = {
    "chatml": CHATML,
    "smollm2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%b %Y") %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" + system_message }}
{%- if tools is not none %}{{- "Tools" }}{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n\\n' }}{%- endif %}
""",
    "qwen3": """{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string
        and not(message.content.startswith('x')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{{- messages | tojson }}{{ messages | tojson(indent=2, sort_keys=true) }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- 'no' }}{%- endif %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
""",
    "mistral": """{{ bos_token }}
    {% for message in messages %}
        {% if message['role'] == 'system' %}
            {% continue %}
        {% endif %}
        {% if message['role'] == 'assistant' %}
            {% generation %}
            {{ message['content'] + eos_token }}
            {% endgeneration %}
        {% else %}
            [INST] {{ message['content'] }} [/INST]
        {% endif %}
        {% set info = dict(role=message['role']) %}
        {{ info.role }}{{ dict.fromkeys(['a'], 1) }}{{ pad_token is defined }}
        {% if loop.index > 2 %}{% break %}{% endif %}
    {% endfor %}
""",
}


def render_theirs(folder: Path, messages: list[dict[str, str]]) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_the_tokens_that_transformers_makes(tmp_path: Path, name: str, chat: str) -> None:
    folder = write_tokenizer(tmp_path, TEMPLATES[name])
    ours = BundleTokenizer(folder)
    assert ours.has_template
    assert ours.encode_chat(CHATS[chat]) == render_theirs(folder, CHATS[chat])


@pytest.mark.parametrize("form", ["list", "jinja", "jinja over config"])
def test_the_template_is_found_where_transformers_finds_it(tmp_path: Path, form: str) -> None:
    wanted, other = TEMPLATES["smollm2"], "{{ 'another' }}"
    if form == "list":
        named = [{"name": "rag", "template": other}, {"name": "default", "template": wanted}]
        folder = write_tokenizer(tmp_path, named)
    else:
        folder = write_tokenizer(tmp_path, None if form == "jinja" else other)
        (folder / "chat_template.jinja").write_text(wanted)
    assert BundleTokenizer(folder).encode_chat([USER]) == render_theirs(folder, [USER])


def test_a_processors_chat_template_json_is_used_where_there_is_no_other(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, None)
    (folder / "chat_template.json").write_text(
        json.dumps({"chat_template": "{{ bos_token }}{{ messages[0].content }}"})
    )
    ours = BundleTokenizer(folder)
    expected = byte_level_tokenizer().encode("<|endoftext|>" + USER["content"], add_special_tokens=False).ids
    assert ours.encode_chat([USER]) == expected


def test_without_a_template_the_messages_are_lines(tmp_path: Path) -> None:
    ours = BundleTokenizer(write_tokenizer(tmp_path, None))
    assert not ours.has_template
    assert ours.encode_chat(CHATS["turns"]) == ours.encode("\n".join(m["content"] for m in CHATS["turns"]))


def test_special_tokens_may_be_mappings(tmp_path: Path) -> None:
    token = {"__type": "AddedToken", "content": "<|im_start|>", "special": True, "lstrip": False, "rstrip": False,
             "normalized": False, "single_word": False}  # fmt: skip
    folder = write_tokenizer(tmp_path, "{{ bos_token }}!", bos_token=token)
    assert BundleTokenizer(folder).encode_chat([USER]) == render_theirs(folder, [USER])


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": True},
        {"add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": False},
        {"add_bos_token": True, "bos_token": None},
    ],
)
@pytest.mark.parametrize("has_bos", [True, False])
def test_plain_text_gets_the_special_tokens_that_transformers_adds(
    tmp_path: Path, config: dict[str, Any], has_bos: bool
) -> None:
    tokenizer = byte_level_tokenizer()
    if has_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    folder = write_tokenizer(tmp_path, tokenizer=tokenizer, **config)
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in ("In the beginning", "", " é<|im_end|>\n你"):
        assert BundleTokenizer(folder).encode(text) == theirs(text).input_ids


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    tokenizer = byte_fallback_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=64)
    ours = BundleTokenizer(write_tokenizer(tmp_path, tokenizer=tokenizer))
    assert len(ours.encode("ab" * 10)) == 21  # and the mark of the first space


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{{ raise_exception('Roles must alternate') }}",
            "its chat template refuses the conversation: Roles must alternate",
        ),
        ("{{ messages[7].content }}", "its chat template fails on the conversation: list object has no element 7"),
        ("{{ 1 + 'a' }}", "its chat template fails on the conversation: unsupported operand"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "a namespace must not have the attribute _x"),
        ("{{ messages.append(1) }}", "its chat template fails on the conversation: "),
        ("{{ dict.__class__.__mro__ }}", "its chat template fails on the conversation: "),
        ("a\n{% if %}", "its chat template is invalid: line 2: "),
    ],
)
def test_a_template_that_fails_is_a_sentence(tmp_path: Path, template: str, message: str) -> None:
    ours = BundleTokenizer(write_tokenizer(tmp_path, template))
    with pytest.raises(BundleError) as caught:
        ours.encode_chat([USER])
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path}: ")
    assert message in problem


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing: build the bundle again"),
        ("tokenizer.json", b"{}", "tokenizer.json: not a tokenizer: "),
        ("tokenizer_config.json", b"{", "tokenizer_config.json is not JSON: "),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json holds a list, not an object"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja cannot be read: "),
    ],
)
def test_a_file_that_cannot_be_read_is_a_sentence(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    folder = write_tokenizer(tmp_path)
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=message):
        BundleTokenizer(folder)


def test_a_template_is_given_variables_but_not_the_conversation() -> None:
    from coreai_recipes.tokenizer.template import ChatTemplate

    template = ChatTemplate(
        "{{ enable_thinking is false }} {{ messages | length }} {{ bos_token }}", {"bos_token": "B"}, "t"
    )
    assert template.render([], {"enable_thinking": False, "messages": [1], "bos_token": "X"}) == "True 0 B"
