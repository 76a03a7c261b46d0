"""JSON Schema as a grammar: what llama.cpp's sampler makes of it is what the schema allows (by `jsonschema`)."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
from hypothesis import given, seed
from hypothesis import strategies as st

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.chat.integer_range import integer_range
from tritgguf.runtime.chat.json_schema import grammar_of_schema
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.sampler import Grammar

NEXT = {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
NODE = {"type": "object", "properties": {"next": NEXT}, "required": ["next"]}
LIST = {"$ref": "#/$defs/node", "$defs": {"node": NODE}}
INTEGERS = {"type": "array", "items": {"type": "integer"}}
BOTH = {"type": "object", "allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 2}}}]}
PAIR = {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2}
AT_LEAST_1 = {"type": "object", "properties": {"x": {"type": "number", "minimum": 1}}}
OPTIONAL = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": ["boolean", "null"]}},
    "required": ["b"],
}


@pytest.fixture(scope="module")
def vocab(random_model):
    with Model(random_model, vocab_only=True) as model:
        yield model.vocab


def accepts(vocab, grammar: str, text: str) -> bool:
    """Whether llama.cpp's grammar sampler lets the bytes of `text` through one by one, and then the end."""
    sampler = Grammar(vocab, grammar)
    try:
        for byte in text.encode():
            token = vocab.tokenize(bytes([byte]).decode("latin-1"), special=False)[0] if byte < 128 else byte
            if not sampler.allows(token):
                return False
            sampler.accept(token)
        return sampler.allows(vocab.eos)
    finally:
        sampler.close()


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string"}, ['"a"', '"\\n\\u00e9"', '""', '"é"'], ['"', '"a\n"', "a", '"\\x"', '"\t"']),
        ({"type": "number"}, ["0", "-1.5", "12e3", "1.25E-7"], ["01", "1.", ".5", "+1", "NaN", "-"]),
        ({"type": "integer"}, ["0", "-7", "123"], ["1.5", "00", "1e3"]),
        ({"type": "integer", "minimum": -3, "exclusiveMaximum": 12}, ["-3", "0", "11"], ["-4", "12", "111"]),
        ({"type": "boolean"}, ["true", "false"], ["True", "null"]),
        ({"enum": ['a"b', 3, None, "ß"]}, ['"a\\"b"', "3", "null", '"ß"'], ['"a"', "4"]),
        (
            {"enum": ["a", "ab", "abc", "b", "", "abd", "a"]},
            ['"a"', '"ab"', '"abd"', '""', '"b"'],
            ['"abcd"', '"c"', '"ba"'],
        ),
        ({"anyOf": [{"const": "x1"}, {"const": 1}, {"const": "x2"}]}, ['"x1"', '"x2"', "1"], ['"x"', '"x12"', "11"]),
        ({"const": {"a": [1]}}, ['{"a": [1]}'], ['{"a": [2]}']),
        ({"type": "object"}, ["{}", '{"a": {"b": [1, true, null]}}'], ["[]", '{"a"}', '{"a": 1,}']),
        (
            OPTIONAL,
            ['{"b": "x"}', '{"a": 1, "b": "x", "c": null}'],
            ["{}", '{"a": 1}', '{"b": "", "d": 1}', '{"b": 1}'],
        ),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ['{"x": 1}', "{}"], ['{"x": "y"}']),
        ({"type": "object", "additionalProperties": False}, ["{}"], ['{"x": 1}']),
        ({**INTEGERS, "minItems": 1, "maxItems": 2}, ["[1]", "[1, 2]"], ["[]", "[1,2,3]"]),
        ({"type": "array", "items": True, "maxItems": 0}, ["[]"], ["[1]"]),
        (PAIR, ['[1, "a"]'], ["[1]"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"abc"'], ['"a"', '"abcd"']),
        ({"type": "string", "format": "date"}, ['"2024-02-28"'], ['"2024-13-01"', '"x"']),
        ({"type": "string", "format": "date-time"}, ['"2024-02-28T23:59:59Z"'], ['"2024-02-28"']),
        ({"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123"']),
        (LIST, ['{"next": {"next": null}}'], ['{"next": 1}']),
        (BOTH, ['{"a": 1, "b": 2}'], ['{"a": 2}']),
        (True, ["[]", "1"], ["x"]),
    ],
)
def test_what_the_grammar_allows(vocab, schema, good, bad):
    grammar = grammar_of_schema(schema)
    for text in good:
        assert accepts(vocab, grammar, text), text
        jsonschema.validate(json.loads(text), schema)
    for text in bad:
        assert not accepts(vocab, grammar, text), text


def test_a_thousand_values(vocab):
    """Each is written from where it differs from those before: no more alternatives anywhere than there are digits."""
    values = [f"value {number * number % 100_003}" for number in range(1000)]
    grammar = grammar_of_schema({"enum": values})
    for value in values[::97]:
        assert accepts(vocab, grammar, json.dumps(value))
        assert not accepts(vocab, grammar, json.dumps(value + "0")) or value + "0" in values
    (rule,) = (line for line in grammar.splitlines() if '"\\"value ' in line)
    assert rule.count("value ") == 1
    assert max(group.count("|") for group in re.findall(r"[(]([^()]*)[)]", rule)) < 10


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        (3, "the schema is 3, expected a JSON schema"),
        ({"type": "text"}, '"text"'),
        ({"type": "string", "pattern": "^a$"}, "pattern isn't supported"),
        (AT_LEAST_1, "the schema.x: minimum isn't supported"),
        ({"$ref": "https://example.com/schema"}, "isn't in this schema"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"not": {}}, "not doesn't tell one"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "above"),
        ({"type": "string", "maxLength": 10**9}, "maxLength"),
        ({"type": "integer", "minimum": 5, "maximum": 2}, "above"),
        ({"type": "integer", "minimum": 1.5}, "whole numbers"),
        ({"enum": []}, "no list of values"),
        ({"anyOf": {}}, "no list of schemas"),
        ({"description": "x" * 200_000, "type": "string"}, "100000 characters"),
        ({"type": "array", "prefixItems": [True], "items": True, "minItems": 1}, "prefixItems"),
    ],
)
def test_what_cannot_be_said_is_named(schema, part):
    with pytest.raises(EngineError, match="schema") as caught:
        grammar_of_schema(schema)
    assert part in str(caught.value)


def test_a_schema_nested_too_deeply_or_in_itself(vocab):
    deep: dict = {"type": "string"}
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(EngineError, match="nested too deeply"):
        grammar_of_schema(deep)
    with pytest.raises(EngineError, match="grammar isn't valid"):
        Grammar(vocab, grammar_of_schema({"$ref": "#"}))


@seed(20)
@given(st.integers(-2000, 2000), st.integers(0, 3000), st.lists(st.integers(-6000, 6000), max_size=20))
def test_ranges_of_integers(low, size, numbers):
    import re

    high = low + size
    pattern = re.compile(integer_range(low, high).replace('"', "").replace(" ", ""))
    for number in [*numbers, low - 1, low, high, high + 1]:
        assert (pattern.fullmatch(str(number)) is not None) == (low <= number <= high), (low, high, number)
