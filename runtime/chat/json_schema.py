"""JSON Schema as a grammar of llama.cpp's (GBNF), so that an answer can only be JSON that the schema allows.

https://json-schema.org/draft/2020-12 and https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md. What the
grammar allows, the schema allows too; not always the other way round: an object's properties come in the schema's
order, and only those that it names. A keyword that isn't known here is an error, since ignoring it would allow what the
schema doesn't. llama-cpp-python's own converter ignores them, and lets raw line ends into JSON's texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.chat.grammar_texts import literal, one_of
from tritgguf.runtime.chat.integer_range import integer_range

ANY_OBJECT: dict[str, Any] = {"type": "object"}
MAX_SCHEMA = 100_000  # characters; larger ones take seconds to parse and for each token
MAX_RULES = 5_000
MAX_REPEATS = 2_000  # llama.cpp's own limit

_ANNOTATIONS = {
    *("title", "description", "default", "examples", "example", "$schema", "$id", "$comment", "$defs", "definitions"),
    *("deprecated", "readOnly", "writeOnly", "strict", "contentEncoding", "contentMediaType"),
}
_KEYWORDS = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": (),
    "boolean": (),
    "null": (),
}
_PRIMITIVES = {
    "ws": r'("\n" [ \t]{0,20} | " ")?',
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})',
    "string": r'"\"" char* "\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": 'integer ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "pair": 'string ws ":" ws value',
    "object": '"{" ws (pair (ws "," ws pair)*)? ws "}"',
    "array": '"[" ws (value (ws "," ws value)*)? ws "]"',
    "date": '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])',
    "time": 'clock ("." [0-9]{1,6})? ("Z" | [-+] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])',
    "clock": '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9]',
}
# Days 29 to 31 of a month depend on the month and year: they are left out.
_FORMATS = {
    "date": r'"\"" date "\""',
    "time": r'"\"" time "\""',
    "date-time": r'"\"" date "T" time "\""',
    "uuid": r'"\"" [0-9a-f]{8} ("-" [0-9a-f]{4}){3} "-" [0-9a-f]{12} "\""',
}


def grammar_of_schema(schema: object, *, before: str = "", after: str = "") -> str:
    """Return the grammar of JSON that `schema` allows, between two texts; EngineError where that can't be said."""
    try:
        if len(json.dumps(schema)) > MAX_SCHEMA:
            raise EngineError(f"the JSON schema has more than {MAX_SCHEMA} characters")
        rules = _Rules(schema)
        root = rules.of(schema, "the schema")
    except RecursionError:
        raise EngineError("the JSON schema is nested too deeply") from None
    texts = [literal(text) for text in (before, after)]
    lines = [f"root ::= {texts[0]} {root} {texts[1]}"]
    lines += [f"{name} ::= {body}" for name, body in {**_PRIMITIVES, **rules.bodies}.items()]
    return "\n".join(lines)


class _Rules:
    """The grammar's rules by name; those of $ref are made once, so that schemas may contain themselves."""

    def __init__(self, root: object) -> None:
        self.bodies: dict[str, str] = {}
        self._root = root
        self._refs: dict[str, str] = {}

    def of(self, schema: object, place: str) -> str:
        """Return the name of a rule for what `schema` allows."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise EngineError(f"{place} is {json.dumps(schema)[:40]}, expected a JSON schema")
        used = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
        for key, make in self._makers().items():
            if key in used:
                return make(used, place)
        return self._typed(used, place)

    def _makers(self) -> dict[str, Callable[[dict[str, Any], str], str]]:
        return {
            "$ref": self._ref,
            "const": self._const,
            "enum": self._enum,
            "anyOf": self._union,
            "oneOf": self._union,
            "allOf": self._all,
        }

    def _add(self, body: str, name: str | None = None) -> str:
        if name is None:
            if len(self.bodies) >= MAX_RULES:
                raise EngineError(f"the JSON schema needs more than {MAX_RULES} rules")
            name = f"r{len(self.bodies)}"
        self.bodies[name] = body
        return name

    def _ref(self, schema: dict[str, Any], place: str) -> str:
        _only(schema, ("$ref",), place)
        ref = schema["$ref"]
        if ref not in self._refs:
            target = self._target(ref, place)
            self._refs[ref] = self._add("")  # its name, before what it contains is looked at
            self.bodies[self._refs[ref]] = self.of(target, str(ref))
        return self._refs[ref]

    def _target(self, ref: object, place: str) -> object:
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise EngineError(f"{place}: $ref {json.dumps(ref)[:60]} isn't in this schema, which starts with #")
        target = self._root
        for part in ref.removeprefix("#").split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or part not in target:
                raise EngineError(f"{place}: $ref {ref!r} leads nowhere")
            target = target[part]
        return target

    def _const(self, schema: dict[str, Any], place: str) -> str:
        return self._enum({**{key: schema[key] for key in schema if key != "const"}, "enum": [schema["const"]]}, place)

    def _enum(self, schema: dict[str, Any], place: str) -> str:
        _only(schema, ("enum", "type"), place)
        values = schema["enum"]
        if not isinstance(values, list) or not values:
            raise EngineError(f"{place}: enum is no list of values")
        return self._add(one_of(json.dumps(value, ensure_ascii=False) for value in values))

    def _union(self, schema: dict[str, Any], place: str) -> str:
        key = "anyOf" if "anyOf" in schema else "oneOf"
        _only(schema, (key,), place)
        members = schema[key]
        if not isinstance(members, list) or not members:
            raise EngineError(f"{place}: {key} is no list of schemas")
        if all(isinstance(member, Mapping) and set(member) - _ANNOTATIONS == {"const"} for member in members):
            return self._enum({"enum": [member["const"] for member in members]}, place)
        names = [self.of(member, f"{place}.{key}[{index}]") for index, member in enumerate(members)]
        return self._add(" | ".join(dict.fromkeys(names)))

    def _all(self, schema: dict[str, Any], place: str) -> str:
        merged = {key: value for key, value in schema.items() if key != "allOf"}
        members = schema["allOf"] if isinstance(schema["allOf"], list) else []
        for member in members:
            seen = set()
            while isinstance(member, Mapping) and set(member) - _ANNOTATIONS == {"$ref"} and member["$ref"] not in seen:
                seen.add(member["$ref"])
                member = self._target(member["$ref"], place)
            for key, value in (member if isinstance(member, Mapping) else {"allOf": member}).items():
                merged[key] = _merged(key, merged[key], value, place) if key in merged else value
        return self.of(merged, place)

    def _typed(self, schema: dict[str, Any], place: str) -> str:
        kind = schema.get("type")
        if kind is None:
            fitting = [name for name, keys in _KEYWORDS.items() if set(schema) & set(keys)]
            if len(fitting) != 1:
                known = ", ".join(sorted(schema)) or "nothing"
                raise EngineError(f"{place} has no type, and {known} doesn't tell one")
            kind = fitting[0]
        kinds = kind if isinstance(kind, list) else [kind]
        for name in kinds:
            if not isinstance(name, str) or name not in _KEYWORDS:
                raise EngineError(f"{place}: type is {json.dumps(name)[:40]}, expected one of {', '.join(_KEYWORDS)}")
        _only(schema, ("type", *(key for name in kinds for key in _KEYWORDS[name])), place)
        makers = {"object": self._object, "array": self._array, "string": self._string, "integer": self._integer}
        names = [makers[name](schema, place) if name in makers else name for name in kinds]
        return names[0] if len(names) == 1 else self._add(" | ".join(names))

    def _object(self, schema: dict[str, Any], place: str) -> str:
        properties = dict(schema.get("properties") or {})
        required = schema.get("required") or []
        for name in required:
            properties.setdefault(name, True)
        if not properties:
            return self._dictionary(schema.get("additionalProperties", True), place)
        pairs = [
            (
                self._add(
                    f'{literal(json.dumps(name, ensure_ascii=False))} ws ":" ws {self.of(value, f"{place}.{name}")}'
                ),
                name in required,
            )
            for name, value in properties.items()
        ]
        # Two rules for each place in the list: what may follow where a pair was written before, and where none was.
        after, first = '""', '""'
        for pair, is_required in reversed(pairs):
            following = self._add(f'ws "," ws {pair} {after}' + ("" if is_required else f" | {after}"))
            first = self._add(f"{pair} {after}" + ("" if is_required else f" | {first}"))
            after = following
        return self._add(f'"{{" ws {first} ws "}}"')

    def _dictionary(self, values: object, place: str) -> str:
        if values is False:
            return self._add('"{" ws "}"')
        if values is True or values == {}:
            return "object"
        pair = self._add(f'string ws ":" ws {self.of(values, f"{place}.additionalProperties")}')
        return self._add(f'"{{" ws ({pair} (ws "," ws {pair})*)? ws "}}"')

    def _array(self, schema: dict[str, Any], place: str) -> str:
        first = schema.get("prefixItems") or []
        names = [self.of(item, f"{place}[{index}]") for index, item in enumerate(first)]
        low, high = _bounds(schema, "minItems", "maxItems", place)
        if names:
            if low > len(names) or (high is not None and high < len(names)) or schema.get("items", False) is not False:
                raise EngineError(f"{place}: prefixItems with further items isn't supported")
            return self._add('"[" ws ' + ' ws "," ws '.join(names) + ' ws "]"')
        item = self.of(schema.get("items", True), f"{place}[]")
        if high == 0:
            return self._add('"[" ws "]"')
        more = f'(ws "," ws {item}){{{max(low - 1, 0)},{"" if high is None else high - 1}}}'
        body = f"{item} {more}" if low else f"({item} {more})?"
        return self._add(f'"[" ws {body} ws "]"')

    def _string(self, schema: dict[str, Any], place: str) -> str:
        low, high = _bounds(schema, "minLength", "maxLength", place)
        form = schema.get("format")
        if form in _FORMATS:
            if low or high is not None:
                raise EngineError(f"{place}: a format with a length isn't supported")
            return self._add(_FORMATS[form])
        if not low and high is None:
            return "string"
        return self._add(rf'"\"" char{{{low},{"" if high is None else high}}} "\""')

    def _integer(self, schema: dict[str, Any], place: str) -> str:
        low, high = schema.get("minimum"), schema.get("maximum")
        if (above := schema.get("exclusiveMinimum")) is not None:
            low = above + 1 if isinstance(above, int) and low is None else "both"
        if (below := schema.get("exclusiveMaximum")) is not None:
            high = below - 1 if isinstance(below, int) and high is None else "both"
        for bound in (low, high):
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int) or abs(bound) >= 10**15):
                raise EngineError(f"{place}: an integer's bounds are whole numbers below 10**15, each given once")
        if low is None and high is None:
            return "integer"
        if low is not None and high is not None and low > high:
            raise EngineError(f"{place}: minimum {low} is above maximum {high}")
        return self._add(integer_range(low, high))


def _bounds(schema: Mapping[str, Any], low_name: str, high_name: str, place: str) -> tuple[int, int | None]:
    low, high = schema.get(low_name, 0), schema.get(high_name)
    for name, bound in ((low_name, low), (high_name, high)):
        if bound is not None and (
            isinstance(bound, bool) or not isinstance(bound, int) or not 0 <= bound <= MAX_REPEATS
        ):
            raise EngineError(f"{place}: {name} is {json.dumps(bound)[:40]}, supported is 0 to {MAX_REPEATS}")
    if high is not None and low > high:
        raise EngineError(f"{place}: {low_name} {low} is above {high_name} {high}")
    return low, high


def _merged(key: str, left: object, right: object, place: str) -> object:
    if left == right or key in _ANNOTATIONS:
        return left
    if key == "required" and isinstance(left, list) and isinstance(right, list):
        return [*left, *(name for name in right if name not in left)]
    if key == "properties" and isinstance(left, Mapping) and isinstance(right, Mapping):
        both = [name for name in left if name in right and left[name] != right[name]]
        if not both:
            return {**left, **right}
    raise EngineError(f"{place}: allOf has two different {key}, which isn't supported")


def _only(schema: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    for key in schema:
        if key not in known:
            raise EngineError(f"{place}: {key} isn't supported here; leave it out, or say it in the prompt")
