"""A Go template as a tree of nodes; define, block, template and methods with arguments aren't known here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from tritgguf.converter.ollama.go_lexer import Action, GoTemplateError, Text, Token, pieces

FUNCTIONS = frozenset(
    {"and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "len", "index", "slice", "print", "println", "json"}
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


@dataclass(frozen=True)
class Constant:
    value: object


@dataclass(frozen=True)
class Dot:
    pass


@dataclass(frozen=True)
class Variable:
    name: str


@dataclass(frozen=True)
class Field:
    """`.Name` of what `owner` gives."""

    owner: Operand
    name: str


@dataclass(frozen=True)
class Call:
    """A function's name and its arguments."""

    name: str
    arguments: tuple[Operand, ...]


Operand: TypeAlias = "Constant | Dot | Variable | Field | Call | Pipeline"


@dataclass(frozen=True)
class Pipeline:
    """Commands of which each gets the value before it as its last argument, and where the result goes."""

    commands: tuple[Operand, ...]
    declares: tuple[str, ...] = ()
    assigns: bool = False


@dataclass
class Branch:
    """if, with or range: a pipeline, and what follows in either case."""

    keyword: str
    pipeline: Pipeline
    body: list[Node] = field(default_factory=list)
    otherwise: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Jump:
    """break or continue."""

    keyword: str


Node: TypeAlias = "Text | Pipeline | Branch | Jump"


def parse(source: str) -> list[Node]:
    """Return the template's nodes; raise GoTemplateError on what Go refuses at this stage, or isn't known here."""
    return _Parser(list(pieces(source))).template()


class _Parser:
    def __init__(self, parts: list[Text | Action]) -> None:
        self.parts = iter(parts)
        self.scopes: list[set[str]] = [{"$"}]
        self.loops = 0

    def template(self) -> list[Node]:
        nodes, closing = self._nodes()
        if closing is not None:
            raise GoTemplateError(f"the Go template has {{{{{closing[0].text}}}}} without a beginning")
        return nodes

    def _nodes(self) -> tuple[list[Node], Action | None]:
        """Return nodes up to an else or end, and that action."""
        nodes: list[Node] = []
        for part in self.parts:
            if isinstance(part, Text):
                nodes.append(part)
                continue
            if not part:
                raise GoTemplateError("the Go template has an empty action")
            word = part[0].text if part[0].kind == "word" else ""
            if word in ("else", "end"):
                return nodes, part
            nodes.append(self._node(word, part))
        return nodes, None

    def _node(self, word: str, part: Action) -> Node:
        if word in ("if", "with", "range"):
            return self._branch(word, part[1:])
        if word in ("break", "continue"):
            if not self.loops or len(part) > 1:
                raise GoTemplateError(f"the Go template has {word} outside of range")
            return Jump(word)
        return self._pipeline(part)

    def _branch(self, keyword: str, tokens: Action) -> Branch:
        self.scopes.append(set())
        branch = Branch(keyword, self._pipeline(tokens, in_range=keyword == "range"))
        self.loops += keyword == "range"
        self.scopes.append(set())
        branch.body, closing = self._nodes()
        self.scopes.pop()
        self.loops -= keyword == "range"
        if closing is not None and closing[0].text == "else":
            if len(closing) > 1:
                if closing[1].text not in ("if", "with") or closing[1].text != keyword:
                    raise GoTemplateError(f"the Go template has else {closing[1].text} after {keyword}")
                branch.otherwise = [self._branch(keyword, closing[2:])]
                self.scopes.pop()
                return branch
            self.scopes.append(set())
            branch.otherwise, closing = self._nodes()
            self.scopes.pop()
        if closing is None or closing[0].text != "end" or len(closing) > 1:
            raise GoTemplateError(f"the Go template has no end for {keyword}")
        self.scopes.pop()
        return branch

    def _pipeline(self, tokens: Action, *, in_range: bool = False) -> Pipeline:
        declares, assigns, rest = _targets(tokens, in_range)
        if assigns:
            for name in declares:
                self._require_variable(name)
        pipeline = _Commands(rest, self._require_variable).pipeline()
        self.scopes[-1].update(() if assigns else declares)
        return Pipeline(pipeline.commands, declares, assigns)

    def _require_variable(self, name: str) -> None:
        if not any(name in scope for scope in self.scopes):
            raise GoTemplateError(f"the Go template uses {name}, which isn't declared")


def _targets(tokens: Action, in_range: bool) -> tuple[tuple[str, ...], bool, Action]:
    """Split `$a, $b :=` or `$a =` off."""
    for count in (1, 3):
        names, sign = tokens[:count], tokens[count : count + 1]
        if sign and sign[0].text in (":=", "=") and all(t.kind == "variable" for t in names[::2]):
            if count == 3 and (names[1].text != "," or not in_range):
                raise GoTemplateError("the Go template declares two variables outside of range")
            return tuple(token.text for token in names[::2]), sign[0].text == "=", tokens[count + 1 :]
    return (), False, tokens


class _Commands:
    """Reads commands from the tokens of one pipeline."""

    def __init__(self, tokens: Action, require_variable: Callable[[str], None]) -> None:
        self.tokens = tokens
        self.position = 0
        self.require_variable = require_variable

    def pipeline(self) -> Pipeline:
        """Return the whole pipeline."""
        pipeline = self._pipeline()
        if self.position < len(self.tokens):
            raise GoTemplateError(f"the Go template has {self.tokens[self.position].text!r} where an action should end")
        return pipeline

    def _next(self) -> Token | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None

    def _pipeline(self) -> Pipeline:
        commands = [self._command()]
        while (token := self._next()) and token.text == "|" and token.kind == "sign":
            self.position += 1
            commands.append(self._command())
            if not isinstance(commands[-1], Call):
                raise GoTemplateError("the Go template pipes a value into what is no function")
        return Pipeline(tuple(commands))

    def _command(self) -> Operand:
        operands = list(self._operands())
        if not operands:
            raise GoTemplateError("the Go template has a command without a value")
        first, *rest = operands
        if isinstance(first, Call) and not first.arguments:
            return Call(first.name, tuple(rest))
        if rest:
            raise GoTemplateError("the Go template gives arguments to what is no function")
        return first

    def _operands(self) -> Iterator[Operand]:
        while (token := self._next()) and not (token.kind == "sign" and token.text in (")", "|")):
            operand = self._operand(token)
            while (token := self._next()) and token.kind == "field" and not token.spaced:
                self.position += 1
                operand = Field(operand, token.text[1:])
            yield operand

    def _operand(self, token: Token) -> Operand:
        self.position += 1
        match token.kind:
            case "string":
                return Constant(_unquoted(token.text))
            case "number":
                return Constant(int(token.text))
            case "variable":
                self.require_variable(token.text)
                return Variable(token.text)
            case "field":
                return Field(Dot(), token.text[1:])
            case "word":
                return _word(token.text)
        if token.text == ".":
            return Dot()
        if token.text == "(":
            inner = self._pipeline()
            closing = self._next()
            if closing is None or closing.text != ")":
                raise GoTemplateError("the Go template has an unclosed parenthesis")
            self.position += 1
            return inner
        raise GoTemplateError(f"the Go template has an unexpected {token.text!r}")


def _word(word: str) -> Operand:
    constants = {"true": True, "false": False, "nil": None}
    if word in constants:
        return Constant(constants[word])
    if word in FUNCTIONS:
        return Call(word, ())
    raise GoTemplateError(
        f"the Go template uses {word}, which isn't known here; known are {', '.join(sorted(FUNCTIONS))}"
    )


def _unquoted(text: str) -> str:
    """Return what a Go string means."""
    if text.startswith("`"):
        return text[1:-1].replace("\r", "")
    return _ESCAPE.sub(_escape, text[1:-1])


def _escape(match: re.Match[str]) -> str:
    code = match[1]
    if code in _ESCAPES:
        return _ESCAPES[code]
    if len(code) > 1:
        return chr(int(code[1:], 16))
    raise GoTemplateError(f"the Go template has the escape {match[0]} in a string, which isn't known here")
