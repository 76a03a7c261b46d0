"""Render Go templates as Ollama does: a small text/template, and what Ollama gives it.

The tests compare it with Go's own text/template (tests/golden/go_templates.json).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tritgguf.converter.ollama.go_lexer import GoTemplateError, Text
from tritgguf.converter.ollama.go_parser import (
    Branch,
    Call,
    Constant,
    Dot,
    Field,
    Jump,
    Node,
    Operand,
    Pipeline,
    Variable,
    parse,
)

NO_VALUE = "<no value>"


class Record(dict[str, Any]):
    """A Go struct: a field that it doesn't have is an error, where a map gives no value."""


class GoTemplate:
    """A parsed template; raises GoTemplateError where Go would, or where it uses what isn't known here."""

    def __init__(self, source: str) -> None:
        self._nodes = parse(source)

    def render(self, data: Mapping[str, Any]) -> str:
        """Return the text for `data`, a Go map; lists, records, strings, numbers and booleans may be in it."""
        run = _Run(dict(data))
        run.nodes(self._nodes, run.root)
        return "".join(run.written)


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class _Run:
    """One execution: the text so far, and the variables in scope, innermost last."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.written: list[str] = []
        self.variables: list[list[Any]] = [["$", root]]

    def nodes(self, nodes: Sequence[Node], dot: object) -> None:
        depth = len(self.variables)
        try:
            for node in nodes:
                self._node(node, dot)
        finally:
            del self.variables[depth:]

    def _node(self, node: Node, dot: object) -> None:
        match node:
            case Text(text):
                self.written.append(text)
            case Jump(keyword):
                raise _Break if keyword == "break" else _Continue
            case Pipeline():
                value = self._pipeline(node, dot)
                if not node.declares:
                    self.written.append(printed(value))
            case Branch():
                depth = len(self.variables)
                self._branch(node, dot)
                del self.variables[depth:]

    def _branch(self, branch: Branch, dot: object) -> None:
        if branch.keyword == "range":
            self._range(branch, dot)
            return
        value = self._pipeline(branch.pipeline, dot)
        if truth(value):
            self.nodes(branch.body, value if branch.keyword == "with" else dot)
        else:
            self.nodes(branch.otherwise, dot)

    def _range(self, branch: Branch, dot: object) -> None:
        pipeline = branch.pipeline
        value = self._value(Pipeline(pipeline.commands), dot)
        pairs = list(_elements(value))
        if not pairs:
            self.nodes(branch.otherwise, dot)
        depth = len(self.variables)
        try:
            for index, element in pairs:
                del self.variables[depth:]
                values = (element,) if len(pipeline.declares) == 1 else (index, element)
                for name, part in zip(pipeline.declares, values, strict=False):
                    self._set(name, part, assigns=pipeline.assigns)
                try:
                    self.nodes(branch.body, element)
                except _Continue:
                    continue
        except _Break:
            return

    def _set(self, name: str, value: object, *, assigns: bool) -> None:
        if not assigns:
            self.variables.append([name, value])
            return
        next(entry for entry in reversed(self.variables) if entry[0] == name)[1] = value

    def _pipeline(self, pipeline: Pipeline, dot: object) -> object:
        value = self._value(pipeline, dot)
        for name in pipeline.declares:
            self._set(name, value, assigns=pipeline.assigns)
        return value

    def _value(self, operand: Operand, dot: object) -> object:
        match operand:
            case Constant(value):
                return value
            case Dot():
                return dot
            case Variable(name):
                return next(entry[1] for entry in reversed(self.variables) if entry[0] == name)
            case Field(owner, name):
                return field_of(self._value(owner, dot), name)
            case Call():
                return self._call(operand, dot, ())
            case Pipeline(commands):
                value: object = self._value(commands[0], dot)
                for command in commands[1:]:
                    assert isinstance(command, Call)
                    value = self._call(command, dot, (value,))
                return value

    def _call(self, call: Call, dot: object, piped: tuple[object, ...]) -> object:
        if call.name in ("and", "or"):  # once one argument decides, those after it aren't evaluated
            operands = (*call.arguments, *map(Constant, piped))
            if not operands:
                raise GoTemplateError(f"the Go template's call of {call.name} has no arguments")
            value: object = None
            for argument in operands:
                value = self._value(argument, dot)
                if truth(value) == (call.name == "or"):
                    break
            return value
        arguments = [*(self._value(argument, dot) for argument in call.arguments), *piped]
        try:
            return FUNCTIONS[call.name](*arguments)
        except (TypeError, LookupError) as error:
            raise GoTemplateError(f"the Go template's call of {call.name} fails: {error}") from error


def truth(value: object) -> bool:
    """Go's truth: false, 0, nil, and empty strings, lists and maps are false; structs are true."""
    return isinstance(value, Record) or bool(value)


def printed(value: object) -> str:
    """Return what an action with that value writes."""
    match value:
        case None:
            return NO_VALUE
        case bool():
            return "true" if value else "false"
        case str() | int():
            return str(value)
        case list():
            return f"[{' '.join(map(printed, value))}]"
    raise GoTemplateError(f"the Go template writes a {type(value).__name__}, which isn't known here")


def field_of(value: object, name: str) -> object:
    """Return a field of a struct, or a map's entry: no value where it has none."""
    if isinstance(value, Record):
        if name not in value:
            raise GoTemplateError(f"the Go template asks for .{name}; a message has {', '.join(value)}")
        return value[name]
    if isinstance(value, Mapping):
        return value.get(name)
    raise GoTemplateError(f"the Go template asks for .{name} of {printed(value)!r}, which has no fields")


def _elements(value: object) -> Iterable[tuple[object, object]]:
    match value:
        case None:
            return []
        case list():
            return enumerate(value)
        case bool() | str():
            raise GoTemplateError(f"the Go template ranges over {value!r}")
        case int():
            return ((number, number) for number in range(value))
        case Mapping() if not isinstance(value, Record):
            return sorted(value.items())
    raise GoTemplateError(f"the Go template ranges over a {type(value).__name__}")


# --- functions -------------------------------------------------------------------------------------------------------


def _kind(value: object) -> type:
    if type(value) not in (bool, int, float, str):
        raise TypeError(f"a {type(value).__name__} can't be compared")
    return type(value)


def _eq(first: object, *others: object) -> bool:
    if not others:
        raise TypeError("missing argument for comparison")
    for other in others:
        if first is None or other is None:
            if first is other:
                return True
        elif _kind(first) is not _kind(other):
            raise TypeError("incompatible types for comparison")
        elif first == other:
            return True
    return False


def _less(first: Any, second: Any) -> bool:
    if _kind(first) is not _kind(second) or isinstance(first, bool):
        raise TypeError("incompatible types for comparison")
    if isinstance(first, str):
        return bool(first.encode() < second.encode())
    return bool(first < second)


def _bytes_or_list(value: object) -> bytes | list[Any]:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return value
    raise TypeError(f"a {type(value).__name__} has no elements here")


def _len(value: object) -> int:
    return len(value) if isinstance(value, Mapping) else len(_bytes_or_list(value))


def _position(position: object, end: int) -> int:
    if type(position) is not int or not 0 <= position <= end:
        raise TypeError(f"index {position!r} out of range")
    return position


def _index(value: Any, *keys: object) -> object:
    for key in keys:
        if isinstance(value, Mapping) and not isinstance(value, Record):
            value = value.get(key)
        else:
            elements = _bytes_or_list(value)
            value = elements[_position(key, len(elements) - 1)]
    found: object = value
    return found


def _slice(value: object, *bounds: object) -> object:
    elements = _bytes_or_list(value)
    start = _position(bounds[0], len(elements)) if bounds else 0
    end = _position(bounds[1], len(elements)) if len(bounds) > 1 else len(elements)
    if len(bounds) > 2 or start > end:
        raise TypeError("slice bounds out of range")
    part = elements[start:end]
    return part.decode("utf-8", "replace") if isinstance(part, bytes) else part


def _print(*values: object) -> str:
    """Go puts a space between operands when neither is a string."""
    text = ""
    for number, value in enumerate(values):
        apart = number and not isinstance(value, str) and not isinstance(values[number - 1], str)
        text += (" " if apart else "") + ("<nil>" if value is None else printed(value))
    return text


def _println(*values: object) -> str:
    return " ".join("<nil>" if value is None else printed(value) for value in values) + "\n"


def _json(value: object) -> str:
    """Go's encoder escapes HTML's characters and two line separators, and leaves other letters as they are."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=not isinstance(value, Record))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


FUNCTIONS: dict[str, Callable[..., object]] = {
    "not": lambda value: not truth(value),
    "eq": _eq,
    "ne": lambda first, second: not _eq(first, second),
    "lt": _less,
    "le": lambda first, second: not _less(second, first),
    "gt": lambda first, second: _less(second, first),
    "ge": lambda first, second: not _less(first, second),
    "len": _len,
    "index": _index,
    "slice": _slice,
    "print": _print,
    "println": _println,
    "json": _json,
}
