"""Chat templates that nobody means: good ones with pieces of others in them, and pieces put together."""

from hypothesis import strategies as st

CHATML = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are helpful.<|im_end|>
{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\\n\\n' %}\
{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}\
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}\
{{ '<start_of_turn>' + m['role'] + '\\n' + (first if loop.first else '') + m['content'] + '<end_of_turn>\\n' }}\
{% endfor %}"""
MACROS = """{% macro show(x, depth=0) %}{{ ' ' * depth }}{{ x | tojson }}{% endmacro %}\
{% set ns = namespace(n=0, text='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
{% set ns.text = ns.text ~ show(m, ns.n) %}{% endfor %}{{ ns.text }}\
{% generation %}{{ strftime_now('%Y') }}{% endgeneration %}"""
GOOD = [CHATML, GEMMA, MACROS]

VALUES = [
    *(
        "messages",
        "messages[0]",
        "bos_token",
        "loop",
        "loop.index",
        "ns",
        "namespace()",
        "dict",
        "range",
        "self",
        "cycler",
    ),
    *(
        "raise_exception",
        "strftime_now",
        "lipsum",
        "joiner",
        "tools",
        "nothing",
        "true",
        "none",
        "''",
        "'a'",
        "0",
        "-1",
    ),
    *(
        "1e400",
        "10 ** 9",
        "9 ** 9 ** 9",
        "2 ** 100000",
        "10 ** 5000",
        "'a' * 10 ** 9",
        "[0] * 10 ** 9",
        "range(10 ** 9)",
    ),
    *(
        "range(10 ** 5)",
        "'%s' % 'a'",
        "'%1000000000d' % 1",
        "'{:>1000000000}'.format(1)",
        "'a' ~ 'b'",
        "[[]] * 99",
        "{}",
    ),
    *(
        "''.__class__",
        "''.__class__.__mro__[1].__subclasses__()",
        "messages.__init__.__globals__",
        "dict.__class__",
        "'\\x1b[2J'",
    ),
    *(
        "namespace(__class__=1)",
        "('a' * 9999) | list",
        "caller()",
        "super()",
        "varargs",
        "kwargs",
        "{'a': 1}.items()",
        "'\\ud800'",
    ),
]
FILTERS = [
    *(
        "tojson",
        "trim",
        "length",
        "join",
        "list",
        "upper",
        "string",
        "int",
        "float",
        "first",
        "last",
        "sort",
        "reverse",
    ),
    *("center(10 ** 9)", "indent(10 ** 9)", "replace('', 'x' * 99)", "wordwrap(0)", "batch(10 ** 9)", "slice(10 ** 9)"),
    *(
        "slice(0)",
        "round(10 ** 9)",
        "xmlattr",
        "pprint",
        "groupby('role')",
        "map('upper')",
        "selectattr('role')",
        "unique",
    ),
    *(
        "tojson(indent=10 ** 9)",
        "tojson(separators=('x',))",
        "format(1)",
        "truncate(-1)",
        "urlize",
        "striptags",
        "sum",
        "attr('x')",
    ),
    *(
        "nosuch",
        "default(1)",
        "dictsort",
        "map(attribute='content')",
        "random",
        "filesizeformat",
        "escape",
        "safe",
        "abs",
        "items",
    ),
]
FRAMES = [
    *(
        "{{{{ {0} }}}}",
        "{{{{ {0} | {1} }}}}",
        "{{% for x in {0} %}}{2}{{% endfor %}}",
        "{{% for x in {0} recursive %}}{{{{ loop(x) }}}}{{% endfor %}}",
    ),
    *(
        "{{% if {0} %}}{2}{{% endif %}}",
        "{{% set x = {0} %}}{2}",
        "{{% set ns.x = {0} %}}{2}",
        "{{% set ns = namespace(x={0}) %}}{2}",
    ),
    *(
        "{{% macro f() %}}{2}{{{{ f() }}}}{{% endmacro %}}{{{{ f() }}}}",
        "{{% for x in {0} %}}{{% for y in {0} %}}{2}{{% endfor %}}{{% endfor %}}",
    ),
    *(
        "{{% filter {1} %}}{2}{{% endfilter %}}",
        "{{% call {0} %}}{2}{{% endcall %}}",
        "{{{{ raise_exception({0}) }}}}",
        "{{{{ strftime_now({0}) }}}}",
    ),
    *(
        "{{{{ {0}[{0}] }}}}",
        "{{{{ {0}({0}) }}}}",
        "{{{{ {0}.append({0}) }}}}",
        "{{{{ {0} is divisibleby(0) }}}}",
        "{{{{ {0} // 0 }}}}",
        "{{{{ {0} % 0 }}}}",
    ),
    *(
        "{{% include {0} %}}",
        "{{% import {0} as x %}}",
        "{{% extends {0} %}}",
        "{{% block x %}}{2}{{% endblock %}}",
        "{{% from {0} import y %}}",
    ),
    *(
        "{{% raw %}}{2}{{% endraw %}}",
        "{{# {2} #}}",
        "{{% with x = {0} %}}{2}{{% endwith %}}",
        "{{% autoescape {0} %}}{2}{{% endautoescape %}}",
    ),
    *(
        "{{% generation %}}{2}{{% endgeneration %}}",
        "{{% break %}}",
        "{{% for x in {0} %}}{{% continue %}}{{% endfor %}}",
        "{{% set x %}}{2}{{% endset %}}{{{{ x }}}}",
    ),
    *(
        "{{% do x %}}",
        "{{% trans %}}",
        "{{% endif %}}",
        "{{{{ {0}",
        "{{% {0} %}}",
        "{{{{ {0} if {0} }}}}",
        "{{{{ {0} in {0} }}}}",
        "{{{{ -{0} ** {0} }}}}",
    ),
    *(
        "{{% set a = [1] %}}{{% for i in {0} %}}{{% set a = a + a %}}{{% endfor %}}{{{{ a }}}}",
        "{{{{ {0} * {0} }}}}",
        "{{{{ {0} ~ {0} }}}}",
    ),
    *("{{% set n = namespace(x={0}) %}}{{% for i in range(90) %}}{{% set n.x = n.x ~ n.x %}}{{% endfor %}}",),
    *(
        "{{{{ {0} | map('{1}') | list }}}}",
        "{{{{ {0} | {1} | {1} }}}}",
        "{{% macro g(x) %}}{{{{ g(x ~ {0}) }}}}{{% endmacro %}}{{{{ g('') }}}}",
    ),
]
DEEP = [
    *(
        "{{" + "(" * 2000 + "1" + ")" * 2000 + "}}",
        "{% if 1 %}" * 600 + "{% endif %}" * 600,
        "{{ " + "1 + " * 5000 + "1 }}",
    ),
    *(
        "{{ " + "[" * 3000 + "]" * 3000 + " }}",
        "{{ x" + ".a" * 5000 + " }}",
        "{{ x" + " | trim" * 3000 + " }}",
        "{{ not " * 900 + "}}",
    ),
    *(
        "{% for x in messages %}" * 25 + "{% endfor %}" * 25,
        "a" * 2_000_000,
        "{{ '" + "a" * 2_000_000 + "' }}",
        "{{ 1" + "0" * 6000 + " }}",
    ),
    *(
        "{#" * 1000,
        "{% raw %}" * 1000,
        "\0",
        "\ud800",
        "{{ \u202e }}",
        "{% set " + "a, " * 3000 + "b = messages %}",
        "{{ -" * 3000,
    ),
]


@st.composite
def templates(draw: st.DrawFn) -> str:
    """The source of a template."""
    way = draw(st.sampled_from(["pieces"] * 4 + ["within", "torn", "deep"]))
    if way == "deep":
        return draw(st.sampled_from(DEEP))
    body = ""
    for _ in range(draw(st.integers(1, 4))):
        frame = draw(st.sampled_from(FRAMES))
        piece = frame.format(draw(st.sampled_from(VALUES)), draw(st.sampled_from(FILTERS)), body)
        body = piece if draw(st.booleans()) else body + piece
    if way == "pieces":
        return body
    good = draw(st.sampled_from(GOOD))
    at = draw(st.integers(0, len(good)))
    until = draw(st.integers(at, min(len(good), at + 30)))
    return good[:at] + (body if way == "within" else draw(st.text(max_size=8))) + good[until:]
