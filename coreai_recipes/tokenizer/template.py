"""Chat templates, rendered as transformers renders them (transformers.utils.chat_template_utils), without importing it.

A template comes with the checkpoint and is not trusted: it runs in jinja2's sandbox and sees strings alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from coreai_recipes.errors import BundleError

Message = Mapping[str, str]


class TemplateFault(Exception):
    """What is wrong with a template, or with what it made of a conversation; without its place."""


class TemplateLimitError(BundleError):
    """A template that would not end, or whose text would grow without end."""


class ChatTemplate:
    """`source` compiled; `place` begins every error, `special_tokens` are bos_token and the like by name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], place: str) -> None:
        self._place = place
        self._special_tokens = dict(special_tokens)
        try:
            self._template = compile_template(source)
        except TemplateFault as error:
            raise BundleError(f"{place}: its chat template is not a template: {error}") from None

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the model knows it, up to where its answer begins. Raises BundleError when refused."""
        variables = {
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            return self._template.render({**variables, **self._special_tokens})
        except _Refusal as error:
            raise BundleError(f"{self._place}: its chat template refuses the conversation: {error}") from None
        except Exception as error:  # a template's own arithmetic, indexing and calls can raise anything
            raise BundleError(f"{self._place}: its chat template fails on the conversation: {_reason(error)}") from None


def compile_template(source: str) -> Template:
    """The template, ready to be rendered. Raises TemplateFault."""
    try:
        return _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise TemplateFault(f"line {error.lineno}: {_reason(error)}") from None
    except Exception as error:  # jinja, and Python's compiler on what jinja wrote, have their limits
        raise TemplateFault(_reason(error)) from None


def _reason(error: Exception) -> str:
    """What went wrong, on one line."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:297]}..."


class _Refusal(TemplateError):
    """raise_exception was called."""


class _GenerationTag(Extension):
    """`{% generation %}` marks what a training mask covers; here its body is all that it says."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TemplateDict:
    """`dict` without a way to the class itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _TemplateNamespace(Namespace):
    """jinja2's namespace without underscored attributes, which lead to Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may say namespace(self=...)
        self, *rest = args
        given = dict(*rest, **kwargs)
        for name in given:
            _refuse_underscore(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace must not have the attribute {name}")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    helpers: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _TemplateDict(),
        "namespace": _TemplateNamespace,
    }
    environment.globals.update(helpers)
    environment.filters["tojson"] = _to_json
    return environment


def _raise_exception(message: str) -> None:
    raise _Refusal(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
