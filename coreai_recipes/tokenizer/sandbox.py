"""jinja2's sandbox with a meter: every loop, operation, call, filter and piece of text is counted as it happens."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from jinja2 import nodes, pass_context
from jinja2.nodes import EvalContext
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_eval_context
from jinja2.visitor import NodeTransformer

from coreai_recipes.tokenizer.meter import CALL, LimitError, Meter

# Names that no template can write, for what its tree is rewritten to.
TICK, READ, MADE, JOINED, WRITTEN = "~tick", "~read", "~made", "~joined", "~written"
# These look at a part of their value only, or at each item as it is asked for.
CHEAP = frozenset(
    ("length", "count", "first", "last", "default", "d", "attr", "abs", "int", "float", "safe", "string", "list")
).union(("map", "select", "reject", "selectattr", "rejectattr", "items"))
# These take everything at once, so an iterator is a list for them.
WHOLE = frozenset(("join", "sum", "batch", "slice", "sort", "unique", "groupby", "min", "max"))
# These run a pattern over a text again and again, or lay out a whole value: no conversation is long in them.
SLOW = frozenset(
    ("urlize", "wordwrap", "striptags", "pprint", "xmlattr", "title", "urlencode", "escape", "e", "forceescape")
)
MAX_SLOW = 1 << 18
MAX_NODES = 20_000  # a template of 30,000 characters has some 4,000
MAX_COUNT = 1_000_000  # as wide, deep or often as a template may ask for at once
MAX_DIGITS = 1_000  # that a number is rounded to
NUMBER = re.compile(r"\d+")
STAR = re.compile(r"%[^a-zA-Z%]*\*")  # a width that is a value
NESTED = re.compile(r"\{[^{}]*\{")  # likewise


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """`meter` is that of the rendering that goes on."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, **options: Any) -> None:
        # nothing is computed when a template is compiled, neither by the optimizer nor for its output
        super().__init__(**options, optimized=False, finalize=_write_out)
        self.meter = Meter()
        self.globals.pop("lipsum")  # random text, of which no prompt is made

    def seal(self) -> None:
        """Count what every filter and test that is there by now reads and makes."""
        self.filters = {name: self._metered(name, filter_) for name, filter_ in self.filters.items()}
        self.tests = {
            name: self._metered(name, cast(Callable[..., Any], test), limits=False) for name, test in self.tests.items()
        }
        self.filters |= {
            TICK: lambda value: self.meter.tick(value),
            READ: lambda value: self.meter.read(value),
            MADE: lambda value: self.meter.made(value),
            WRITTEN: lambda size: self.meter.write(size),
            JOINED: _joiner(self),
        }

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = self.meter
        if operator == "+":
            meter.expect(meter.weigh(left) + meter.weigh(right))
        elif operator == "*" and isinstance(left, int) != isinstance(right, int):
            times, value = (left, right) if isinstance(left, int) else (right, left)
            meter.expect(meter.weigh(value) * max(times, 0) if not isinstance(value, float) else 0)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            meter.expect_bits(left.bit_length() * max(right, 0))
        elif operator == "%" and isinstance(left, str):
            _expect_format(meter, left, (right,))
        return meter.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = __self.meter
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        subject, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(subject, str | bytes | int) and not isinstance(subject, bool):
            if name == "join":
                args = tuple(list(meter.count(value)) if isinstance(value, Iterator) else value for value in args)
            _check(meter, name, subject, args, kwargs)
        meter.charge(CALL)
        found = super().call(__context, __obj, *args, **kwargs)
        return meter.look(found) if isinstance(subject, Mapping) else meter.made(found)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        size = sum(1 for _ in source.find_all(nodes.Node))
        if size > MAX_NODES:
            raise LimitError(f"it has {size:,} parts, and {MAX_NODES:,} are allowed")
        return super()._generate(cast(nodes.Template, _Counting().visit(source)), *args, **kwargs)

    def _metered(self, name: str, function: Callable[..., Any], limits: bool = True) -> Callable[..., Any]:
        """The filter or test, with what it reads and makes counted; `limits` are on the numbers that it is given."""
        first = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            meter = self.meter
            if name in CHEAP:
                return meter.look(function(*args, **kwargs))
            given = list(args)
            if name in WHOLE and len(given) > first and isinstance(given[first], Iterator):
                given[first] = list(meter.count(given[first]))
            value, rest = given[first] if len(given) > first else None, tuple(given[first + 1 :])
            if name in SLOW and meter.weigh(value) > MAX_SLOW:
                raise LimitError(f"it gives {name} more than {MAX_SLOW:,} characters")
            if limits:
                _check(meter, name, value, rest, kwargs)
            else:
                for each in (value, *rest):
                    meter.read(each)
            return meter.made(function(*given, **kwargs))

        return counted


class _Counting(NodeTransformer):
    """Wraps what jinja compiles to plain Python in filters that count."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_filter(nodes.Const(1), TICK, node), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(_filter(nodes.Const(True), TICK, node), node.test, lineno=node.lineno)
        return node

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:
        size = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        self.generic_visit(node)
        if not size:
            return [node]
        return [nodes.ExprStmt(_filter(nodes.Const(size), WRITTEN, node), lineno=node.lineno), node]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.Tuple(node.nodes, "load", lineno=node.lineno), JOINED, node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filter(node.expr, READ, node)
        for operand in node.ops:
            operand.expr = _filter(operand.expr, READ, node)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, MADE, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, MADE, node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, MADE, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, MADE, node) if node.ctx == "load" else node


def _filter(value: nodes.Expr, name: str, place: nodes.Node) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None, lineno=place.lineno)


@pass_context
def _write_out(context: Context, value: Any) -> Any:
    """What jinja does with a value before it becomes text: here, count it."""
    meter: Meter = context.environment.meter  # type: ignore[attr-defined]
    meter.write(meter.weigh(value))
    return value


def _joiner(environment: MeteredEnvironment) -> Callable[..., str]:
    @pass_eval_context
    def join(context: EvalContext, parts: tuple[Any, ...]) -> str:
        environment.meter.expect(sum(environment.meter.weigh(part) for part in parts))
        return cast(str, environment.meter.made(markup_join(parts) if context.autoescape else str_join(parts)))

    return join


def _check(meter: Meter, name: str, subject: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Charge for what a method or filter reads, and refuse what would make too much, before it is made."""
    given = (*args, *kwargs.values())
    meter.read(subject)
    for value in given:
        meter.read(value)
    counts = [abs(value) for value in given if isinstance(value, int)]
    most, weight = max(counts, default=0), meter.weigh(subject)
    widest = max((meter.weigh(value) for value in given), default=0)
    if most > MAX_COUNT or (name == "round" and most > MAX_DIGITS):
        raise LimitError(f"it gives {name} the number {most:,}")
    if name in ("format", "format_map"):
        _expect_format(meter, str(subject), given)
    elif name == "replace":
        old, new = (str(each) for each in (*given[:2], "", "")[:2])
        text = str(subject)
        meter.expect(len(text) + (text.count(old) if old else len(text) + 1) * max(0, len(new) - len(old)))
    elif name == "join":
        # of a list and a text between its items, whichever is which
        texts = [len(value) for value in (subject, *args[:1], *kwargs.values()) if isinstance(value, str)]
        items = [len(value) for value in (subject, *args[:1]) if isinstance(value, list | tuple | str | Mapping)]
        meter.expect(weight + widest + max(texts, default=0) * max(items, default=0) * (len(items) + len(texts) > 1))
    elif name in ("indent", "expandtabs", "wordwrap", "translate"):
        meter.expect(weight * max(8, most, widest))
    elif name in ("sort", "dictsort", "groupby", "unique"):
        meter.charge(weight)  # it compares again and again
    elif name == "sum" and any(not isinstance(value, int | float | str) for value in given):
        meter.charge(weight * len(subject) // 256)


def _expect_format(meter: Meter, form: str, given: tuple[Any, ...]) -> None:
    """Refuse a format whose result would be too long: by its widths, or by values that it names again and again."""
    if STAR.search(form) or NESTED.search(form):
        raise LimitError("it computes the width of a format")
    widths = sum(int(number) if len(number) < 9 else MAX_COUNT**2 for number in NUMBER.findall(form))
    values = sum(meter.weigh(value) for value in given)
    meter.expect(len(form) + widths + (form.count("%") + form.count("{")) * values)
