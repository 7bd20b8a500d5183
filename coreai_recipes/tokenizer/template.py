"""Chat templates, rendered as transformers renders them (transformers.utils.chat_template_utils), without importing it.

A template comes with the checkpoint and is not trusted: it runs in jinja2's sandbox and sees strings alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes, pass_environment
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from coreai_recipes.errors import BundleError
from coreai_recipes.tokenizer.meter import LimitError, Meter
from coreai_recipes.tokenizer.sandbox import MeteredEnvironment

Message = Mapping[str, Any]  # role and content are strings; what is beside them is JSON
MAX_SOURCE = 1 << 18  # the longest of 169 released templates has 30,000
MAX_DATE = 256


class TemplateFault(Exception):
    """What is wrong with a template, or with what it made of a conversation; without its place."""


class TemplateLimitError(BundleError):
    """A template that would not end, or whose text would grow without end; `reason` says so without a place."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.reason = reason


class ChatTemplate:
    """`source` compiled; `place` begins every error, `special_tokens` are bos_token and the like by name."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], place: str) -> None:
        self._place = place
        self._special_tokens = dict(special_tokens)
        try:
            self._template = compile_template(source)
        except TemplateFault as error:
            raise BundleError(f"{place}: its chat template is invalid: {error}") from None

    def render(
        self,
        messages: Sequence[Message],
        extra: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The conversation as the model knows it, up to where its answer begins. Raises BundleError when refused."""
        variables = {
            **(extra or {}),
            "messages": [dict(message) for message in messages],
            "tools": None if tools is None else [dict(tool) for tool in tools],
            "documents": None,
            "add_generation_prompt": True,
        }
        cast(MeteredEnvironment, self._template.environment).meter = Meter()
        try:
            return self._template.render({**variables, **self._special_tokens})
        except _Refusal as error:
            raise BundleError(f"{self._place}: its chat template refuses the conversation: {_reason(error)}") from None
        except LimitError as error:
            raise TemplateLimitError(self._place, f"its chat template was stopped: {error}") from None
        except Exception as error:  # a template's own arithmetic, indexing and calls can raise anything
            raise BundleError(f"{self._place}: its chat template fails on the conversation: {_reason(error)}") from None


def compile_template(source: str) -> Template:
    """The template, ready to be rendered. Raises TemplateFault."""
    if len(source) > MAX_SOURCE:
        raise TemplateFault(f"it has {len(source):,} characters, and {MAX_SOURCE:,} are allowed")
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


def _environment() -> MeteredEnvironment:
    environment = MeteredEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
    helpers: dict[str, Callable[..., Any]] = {
        "raise_exception": _raise_exception,
        "strftime_now": _now,
        "dict": _TemplateDict(),
        "namespace": _TemplateNamespace,
    }
    environment.globals.update(helpers)
    environment.filters["tojson"] = _to_json
    environment.seal()
    return environment


def _now(form: str) -> str:
    if len(form) > MAX_DATE:
        raise LimitError(f"it formats a date by more than {MAX_DATE:,} characters")
    return datetime.now().strftime(form)


def _raise_exception(message: str) -> None:
    raise _Refusal(message)


@pass_environment
def _to_json(
    environment: MeteredEnvironment,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which no model was trained on."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    size, pieces = 0, []
    for piece in encoder.iterencode(value):  # deep values under a wide indent grow faster than they weigh
        size += len(piece)
        environment.meter.expect(size)
        environment.meter.charge(1)
        pieces.append(piece)
    return "".join(pieces)
