"""Render Go templates as Ollama does: a small text/template, and what Ollama gives it.

The tests compare it with Go's own text/template (tests/golden/go_templates.json).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tritgguf.converter.ollama.go_functions import FUNCTIONS, Record, field_of, printed, truth
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


class GoTemplate:
    """A parsed template; raises GoTemplateError where Go would, or where it uses what isn't known here."""

    def __init__(self, source: str) -> None:
        self._nodes = parse(source)

    def render(self, data: Mapping[str, Any]) -> str:
        """Return the text for `data`, a Go map; lists, records, strings, numbers and booleans may be in it."""
        run = _Run(dict(data))
        run.nodes(self._nodes, run.root)
        return "".join(run.written)


class _Break(Exception):  # noqa: N818 (no error)
    pass


class _Continue(Exception):  # noqa: N818 (no error)
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
            case Constant(constant):
                return constant
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
