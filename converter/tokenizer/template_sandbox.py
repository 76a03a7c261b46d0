"""Jinja for chat templates: what transformers gives them, without what a hostile template could do with it.

A template comes with a file from the internet. Jinja's sandbox keeps it from Python's objects; here everything that
can take long or grow is paid for from a budget (template_budget.py): each round of a loop, each call, and each text
or list that the template makes. What can't be foreseen is refused. It needs no signals, processes or clocks, so it is
the same on every system and in every thread.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, NoReturn, TypeAlias, cast

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Context, markup_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tritgguf.converter.tokenizer.template_budget import (
    CHARACTERS_PER_UNIT,
    MAX_SOURCE,
    UNITS_PER_CALL,
    TooMuchWorkError,
    budget,
    formatted_length,
    joined_length,
    product_length,
    replaced_length,
    require_small,
)
from tritgguf.converter.tokenizer.template_payments import COMPARE, CONCAT, ITERATE, KEEP, STEP, Payments

# Their work isn't foreseeable, no chat template needs them, and llama.cpp's own Jinja knows none of them.
_REFUSED = ("lipsum", "pprint", "striptags", "urlize", "wordwrap")
_REFUSED_METHODS = frozenset({"striptags", "unescape"})
# Functions and filters whose result can be much larger than what they are given, with a bound for its length.
_GROWS: dict[str, Callable[[Any, Sequence[Any]], int]] = {
    **dict.fromkeys(("batch", "center", "expandtabs", "indent", "ljust", "rjust", "round"), product_length),
    **dict.fromkeys(("slice", "to_bytes", "translate", "xmlattr", "zfill"), product_length),
    **dict.fromkeys(("format", "format_map"), formatted_length),
    "join": lambda separator, arguments: joined_length(separator, arguments[0] if arguments else ()),
    "replace": replaced_length,
    "sum": lambda *_: 0,
    "strftime_now": lambda _, arguments: 256 * sum(len(str(argument)) for argument in arguments),
}
# These look at a list's items but don't write them out.
_READS_LISTS = frozenset(
    {"count", "d", "default", "first", "items", "last", "length", "list", "map", "random", "reject", "rejectattr"}
    | {"reverse", "select", "selectattr"}
)
Function: TypeAlias = Callable[..., Any]


def template_environment(clock: Callable[[], datetime] = datetime.now) -> ImmutableSandboxedEnvironment:
    """Return an environment with the settings and functions of transformers' apply_chat_template.

    https://github.com/huggingface/transformers/blob/main/src/transformers/utils/chat_template_utils.py. Templates
    render within `budget_for`; `clock` tells them the time.
    """
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols], optimized=False
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now(clock)
    return environment


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks the text to train on; rendering keeps its content only."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it without ClassVar)

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox in which everything is paid for.

    `optimized` is off, and every filter takes the context, so that nothing is computed while a template is compiled.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 (those of jinja2)
        super().__init__(**settings, finalize=_shown)
        self.filters["tojson"] = _tojson
        for name in _REFUSED:
            self.filters.pop(name, None)
            self.globals.pop(name, None)
        self.filters = {name: _paid(name, function) for name, function in self.filters.items()}
        self.filters |= {STEP: _step, KEEP: _keep, ITERATE: _iterate, CONCAT: _concat, COMPARE: _compared}
        self.tests = {name: _paid_test(cast("Function", function)) for name, function in self.tests.items()}

    def from_string(self, source: Any, *arguments: Any, **options: Any) -> Template:  # noqa: ANN401 (as in jinja2)
        """Compile; TemplateError for whatever is wrong with the template."""
        if len(source) > MAX_SOURCE:
            raise TooMuchWorkError(f"it has {len(source)} characters, expected at most {MAX_SOURCE}")
        try:
            return super().from_string(source, *arguments, **options)
        except TemplateError:
            raise
        except Exception as error:  # of Python's own compiler, for what is nested too deeply
            raise TemplateError(f"Python can't compile it: {error}") from error

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:  # noqa: ANN401
        return super()._generate(Payments().visit(source), *arguments, **options)

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a template, a macro or a block wrote."""
        return "".join(_kept(piece) for piece in pieces)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:  # noqa: ANN401
        return attr not in _REFUSED_METHODS and super().is_safe_attribute(obj, attr, value)

    def getitem(self, obj: Any, argument: Any) -> Any:  # noqa: ANN401
        if isinstance(argument, tuple):  # whose hash reads all of it
            budget().keep(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        """Compute with a bound for the result's size."""
        if operator == "%" and isinstance(left, (str, bytes)):
            _spend_length(formatted_length(left, (right,)))
        elif operator in ("*", "**"):
            _foresee_product(operator, left, right)
        return _kept(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401, N805
        budget().spend(UNITS_PER_CALL)
        given = [argument for name, argument in kwargs.items() if not name.startswith("_")]
        _look_at_all((*args, *given))
        name = getattr(__obj, "__name__", "")
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        if isinstance(owner, (str, bytes, list, tuple)):  # their methods read all of them
            budget().keep(owner)
        if name in _GROWS:
            if name == "join":
                args = tuple(_as_list(argument) for argument in args)
            _spend_length(_GROWS[name](owner, (*args, *given)))
        return _kept(super().call(__context, __obj, *args, **kwargs))


@pass_context
def _step(_context: Context, units: int) -> None:
    budget().spend(units)


@pass_context
def _keep(_context: Context, value: Any, first: bool = False) -> Any:  # noqa: ANN401
    """Pay for `value`; with `first`, for a value that was put into a list so that it can't be a namespace."""
    _kept(value)
    return value[0] if first else value


@pass_context
def _iterate(_context: Context, value: Any) -> Any:  # noqa: ANN401
    """Pay for the items of a loop, also for those that its condition leaves out."""
    budget().look_at(value)
    return budget().metered(value) if isinstance(value, Iterator) else value


@pass_context
def _compared(_context: Context, value: Any) -> Any:  # noqa: ANN401
    """Pay for reading a value in a comparison; whether a dictionary has a key takes no reading."""
    if not isinstance(value, dict):
        budget().keep(value)
    return value


@pass_context
def _concat(context: Context, values: tuple[Any, ...]) -> str:
    """The operator ~."""
    for value in values:
        budget().keep(value)
    text: str = markup_join(values) if context.eval_ctx.autoescape else "".join(map(str, values))
    return text


@pass_context
def _shown(_context: Context, value: Any) -> Any:  # noqa: ANN401
    """Pay for a value before it is written out; `concat` pays for its text."""
    if not isinstance(value, str):
        budget().keep(value)
    return value


def _kept(value: Any) -> Any:  # noqa: ANN401
    budget().keep(value)
    return value


def _spend_length(n_characters: int) -> None:
    budget().spend(n_characters // CHARACTERS_PER_UNIT)


def _look_at_all(values: Iterable[object]) -> None:
    budget().spend(1)
    for value in values:
        if isinstance(value, tuple):  # whose hash reads all of it
            budget().keep(value)
        else:
            budget().look_at(value)


def _as_list(value: Any) -> Any:  # noqa: ANN401
    return list(budget().metered(value)) if isinstance(value, Iterator) else value


def _foresee_product(operator: str, left: Any, right: Any) -> None:  # noqa: ANN401
    if isinstance(left, int) and isinstance(right, int):
        require_small(left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length())
        return
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, (str, bytes, list, tuple)) and isinstance(count, int):
            budget().spend(max(0, count) * (1 + len(sequence)))


def _paid(name: str, function: Function) -> Callable[..., Any]:
    """Return the filter with payments for what it reads and what it makes."""
    kind = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @pass_context
    @functools.wraps(function)
    def run(context: Context, value: Any, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        _look_at_all((value, *arguments, *named.values()))
        if name not in _READS_LISTS and not isinstance(value, str):
            value = _as_list(value) if name in ("join", "slice", "batch", "string") else value
            budget().keep(value)
        if name in _GROWS:
            _spend_length(_filter_length(name, value, (*arguments, *named.values())))
        first = {"context": (context,), "eval_context": (context.eval_ctx,), "environment": (context.environment,)}
        return _kept(function(*first.get(kind, ()), value, *arguments, **named))

    return run


def _paid_test(function: Function) -> Callable[..., Any]:
    """Return the test with payments for what it reads."""
    kind = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @pass_context
    @functools.wraps(function)
    def run(context: Context, value: Any, *arguments: Any) -> Any:  # noqa: ANN401
        for operand in (value, *arguments):
            _compared(context, operand)
        return function(*((context.environment,) if kind == "environment" else ()), value, *arguments)

    return run


def _filter_length(name: str, value: Any, arguments: Sequence[Any]) -> int:  # noqa: ANN401
    if name == "join":  # the list comes before the separator
        return joined_length(arguments[0] if arguments else "", value)
    if name == "sum" and not all(isinstance(argument, (int, float, str)) for argument in arguments):
        return product_length(value, (value,))  # of lists, each of which is copied for the next one
    return _GROWS[name](value, arguments)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML characters, which would change the prompt."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is not None:
        _spend_length(product_length("", (indent,)))
    pieces: list[str] = []
    for piece in encoder.iterencode(value):
        _kept(piece)
        pieces.append(piece)
    return "".join(pieces)


def _raise_exception(message: object) -> NoReturn:
    budget().keep(message)
    raise TemplateError(str(message)[:1000])


def _strftime_now(clock: Callable[[], datetime]) -> Callable[[str], str]:
    def strftime_now(pattern: str) -> str:
        return clock().strftime(pattern)

    return strftime_now
