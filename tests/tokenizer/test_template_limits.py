"""A template that would not end, or grow without end, is stopped; one that cannot be compiled is a sentence."""

import time

import pytest

from coreai_recipes.errors import BundleError
from coreai_recipes.tokenizer.template import ChatTemplate, TemplateLimitError

CHAT = [{"role": "user", "content": "Why?"}]
DOUBLED = "{% set ns = namespace(x='a', l=[1]) %}{% for i in range(100) %}{% set ns.DO %}{% endfor %}{{ ns.x == ns.l }}"
BIG = "'b' * 100000"


def render(source: str) -> str:
    return ChatTemplate(source, {}, "bundle").render(CHAT)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "it takes more than 8,000,000 steps",
        ),
        (
            "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
            "it takes more than 8,000,000 steps",
        ),
        ("{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}", "it makes more than 256 MiB of text"),
        (
            "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else 'x' * 900 }}{% endmacro %}{{ f(40) }}",
            "it makes more than",
        ),
        ("{{ 'a' * 10 ** 10 }}", "it makes a text of more than 33,554,432 characters"),
        ("{{ [1] * 10 ** 10 }}", "it makes a text of more than"),
        ("{{ 10 ** 99999 }}", "it makes a number of more than 16,384 bits"),
        (DOUBLED.replace("DO", "x = ns.x + ns.x"), "it makes a text of more than"),
        (DOUBLED.replace("DO", "x = ns.x ~ ns.x"), "it makes a text of more than"),
        (DOUBLED.replace("DO", "x = ns.x|replace('a', 'aa')"), "it makes a text of more than"),
        (DOUBLED.replace("DO", "l = [ns.l, ns.l]"), "it makes a text of more than"),
        (DOUBLED.replace("DO", "l = (ns.l, ns.l)"), "it makes a text of more than"),
        (DOUBLED.replace("DO", "l = {'a': ns.l, 'b': ns.l}"), "it makes a text of more than"),
        (DOUBLED.replace("DO", "l = dict(a=ns.l, b=ns.l)"), "it makes a text of more than"),
        (DOUBLED.replace("DO", "l = namespace(a=ns.l, b=ns.l)"), "it takes more than"),
        (DOUBLED.replace("set ns.DO", "set ns.x %}{{ ns.x }}{{ ns.x }}{% endset"), "it makes a text of more than"),
        ("{{ 'a'|center(10 ** 9) }}", "it gives center the number 1,000,000,000"),
        ("{{ 'a'.ljust(10 ** 9) }}", "it gives ljust the number 1,000,000,000"),
        ("{{ [1]|batch(10 ** 9, 'x')|list }}", "it gives batch the number 1,000,000,000"),
        ("{{ ('a\n' * 1000)|indent(10 ** 6) }}", "it makes a text of more than"),
        (f"{{{{ ('a' * 10000)|replace('a', {BIG}) }}}}", "it makes a text of more than"),
        (f"{{% filter replace('a', {BIG}) %}}{{{{ 'a' * 10000 }}}}{{% endfilter %}}", "it makes a text of more than"),
        (f"{{{{ range(99999)|join({BIG}) }}}}", "it makes a text of more than"),
        (f"{{{{ ({BIG}).join(range(9999)|map('string')) }}}}", "it makes a text of more than"),
        ("{{ '%9999999999d' % 1 }}", "it makes a text of more than"),
        ("{{ ('%99999d' * 1000)|format(1) }}", "it makes a text of more than"),
        ("{{ '{:>9999999999}'.format(1) }}", "it makes a text of more than"),
        ("{{ ['{:>9999999999}']|map('format', 1)|list }}", "it makes a text of more than"),
        ("{{ '{:{}}'.format(1, 10 ** 5) }}", "it computes the width of a format"),
        (f"{{{{ ('{{a}}' * 9999).format_map({{'a': {BIG}}}) }}}}", "it makes a text of more than"),
        ("{{ range(999)|list|tojson(indent=99999) }}", "it makes a text of more than"),
        (f"{{{{ range(9999)|list|tojson(separators=({BIG}, ':')) }}}}", "it makes a text of more than"),
        ("{{ 1.5|round(999999) }}", "it gives round the number 999,999"),
        ("{{ ('a.' * 999999)|urlize }}", "it gives urlize more than 262,144 characters"),
        ("{{ strftime_now('%Y' * 999) }}", "it formats a date by more than 256 characters"),
        ("{% for i in range(99999) %}{{ (range(9999)|list)|sort|first }}{% endfor %}", "it takes more than"),
        (
            "{% set l = range(99999)|list %}{% for i in l %}{% if -1 in l %}{% endif %}{% endfor %}",
            "it takes more than",
        ),
        ("{% set l = range(99999)|list %}{% for i in l %}{% set m = l[:] %}{% endfor %}", "it takes more than"),
    ],
)
def test_a_template_without_end_is_stopped(source: str, reason: str) -> None:
    started = time.process_time()
    with pytest.raises(TemplateLimitError) as caught:
        render(source)
    (problem,) = caught.value.problems
    assert problem.startswith(f"bundle: its chat template was stopped: {reason}")
    assert time.process_time() - started < 20  # seconds; without limits it is hours, or all memory


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ 1|nofilter }}", "line 1: No filter named 'nofilter'."),
        ("{{ 1 is notest }}", "line 1: No test named 'notest'."),
        ("a\n{% for %}", "line 2: Expected an expression"),
        ("{{ " + "(" * 1000 + "1" + ")" * 1000 + " }}", "maximum recursion depth exceeded"),
        ("{{ " + "not " * 5000 + "1 }}", "maximum recursion depth exceeded"),
        ("{% for a in [1] %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
        ("{% if 1 %}" * 150 + "{% endif %}" * 150, "too many levels of indentation"),
        ("{{ " + "9" * 5000 + " }}", "Exceeds the limit (4300 digits)"),
        ("{% break %}", "'break' outside loop"),
        ("{% macro a(a, a) %}{% endmacro %}", "duplicate argument"),
        ("x" * 300_000, "it has 300,000 characters, and 262,144 are allowed"),
        ("{{ a }}" * 30_000, "it has 30,001 parts, and 20,000 are allowed"),
    ],
)
def test_what_does_not_compile_is_a_sentence(source: str, reason: str) -> None:
    with pytest.raises(BundleError) as caught:
        ChatTemplate(source, {}, "bundle")
    (problem,) = caught.value.problems
    assert problem.startswith("bundle: its chat template is invalid: ")
    assert reason in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
        ("{% set a = namespace() %}{% set a.x = a %}{{ a }}", "maximum recursion depth exceeded"),
        ("{{ [1]|tojson(indent=[1]) }}", "can't multiply sequence"),
        ("{{ {1: 2, 'a': 3}|tojson(sort_keys=true) }}", "not supported between instances"),
        ("{{ range|tojson }}", "is not JSON serializable"),
        ("{{ strftime_now(5) }}", "object of type 'int' has no len()"),
        ("{{ raise_exception() }}", "missing 1 required positional argument"),
        ("{% include 'x' %}", "no loader"),
        ("{{ 1e999 }}", "name 'inf' is not defined"),
        ("{% for a in 5 %}{% endfor %}", "'int' object is not iterable"),
    ],
)
def test_what_a_template_raises_is_a_sentence(source: str, reason: str) -> None:
    with pytest.raises(BundleError, match=r"^bundle: its chat template fails on the conversation: ") as caught:
        render(source)
    assert reason in str(caught.value)


def test_limits_are_for_one_rendering_each() -> None:
    template = ChatTemplate("{% for i in range(99999) %}{% endfor %}{{ messages[0].content }}", {}, "bundle")
    assert [template.render(CHAT) for _ in range(3)] == ["Why?"] * 3


LOOKS_BACK = """{% for message in messages %}{% set ns = namespace(last=true) %}{% for other in messages[loop.index:] %}
{%- if other.role == message.role %}{% set ns.last = false %}{% endif %}{% endfor %}
{{- message.role ~ ': ' ~ message.content|trim ~ ('.' if ns.last else ',') }}{{ (messages|length) - loop.index0 }}
{% endfor %}{{ messages|tojson(indent=2) }}"""


def test_a_thousand_messages_are_rendered_as_by_transformers() -> None:
    """Also where each looks at all that follow it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = [{"role": ("user", "assistant")[i % 2], "content": f" number {i} \u00e9 " * 20} for i in range(1000)]
    theirs, _ = render_jinja_template([chat], chat_template=LOOKS_BACK, add_generation_prompt=True)
    assert ChatTemplate(LOOKS_BACK, {}, "bundle").render(chat) == theirs[0]


@pytest.mark.parametrize(
    "source",
    [
        "{% autoescape true %}{{ '<' ~ '&' }}{{ messages[0].role|safe ~ '&' }}{% endautoescape %}{{ '<' ~ '&' }}",
        "{% for a in [1, 2, 3] if a > 1 %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ a }}{% else %}no"
        "{% endfor %}",
        "{% for a in [] %}{% else %}none{% endfor %}{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}",
        "{% for a in [[1, [2]], 3] recursive %}{{ loop(a) if a is iterable else a }}{{ loop.depth }}{% endfor %}",
        "{% macro m(x, y='z') %}{{ x ~ y }}{{ caller() if caller }}{% endmacro %}{{ m(1) }}{% call m(2) %}c"
        "{% endcall %}",
        "{% set x %}a{{ 1 }}{% endset %}{% filter upper %}{{ x }}b{% endfilter %}{% with y = x ~ 1 %}{{ y }}"
        "{% endwith %}",
        "{{ messages|map(attribute='role')|join(', ') }}{{ [3, 1, 2]|sort|join }}{{ 'abc'|join('-') }}"
        "{{ '-'.join('abc') }}",
        "{{ messages[::-1]|length }}{{ 'abcdef'[1:4] }}{{ 'a,b'.split(',') }}{{ {'a': [1, 2.5, none, true]}|tojson }}",
        "{{ [1, 2, 3]|batch(2, 0)|list }}{{ [1, 2, 3]|sum }}{{ [[1], [2]]|sum(start=[]) }}{{ [1, 1, 2]|unique|list }}",
        "{{ '%05.1f|%s' % (1.25, 'x') }}{{ '{:>5}|{a}'.format(1, a=2) }}{{ '%s'|format(3) }}{{ 'a\\nb'|indent(2) }}",
        "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ -7 / 2 }}{{ 'ab' * 3 }}{{ [1] + [2] }}{{ 1 < 2 < 3 }}"
        "{{ 'a' not in 'b' }}",
        "{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}"
        "{{ ns is mapping }}",
        "{{ messages|groupby('role') }}{{ messages|selectattr('role', 'eq', 'user')|list }}"
        "{{ 'x y'|wordcount }}{{ u|d('e') }}",
        "{% for a in 'abcd' %}{% if a == 'b' %}{% continue %}{% elif a == 'd' %}{% break %}{% endif %}{{ a }}"
        "{% endfor %}",
        "{{ cycler('a', 'b').next() }}{{ joiner('x')() }}{{ 'a'.center(5) }}{{ 'a-b'|title }}{{ 'http://a.b'|urlize }}",
        "{% generation %}{{ messages[0]['content'] }}{% endgeneration %}{{ dict(a=1).a }}"
        "{{ dict.fromkeys(['k'], 2).k }}",
    ],
)
def test_what_is_counted_is_rendered_as_by_transformers(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    theirs, _ = render_jinja_template([CHAT], chat_template=source, add_generation_prompt=True)
    assert render(source) == theirs[0]
