"""GGUF key-value pairs with their types, as they are written to a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gguf import GGUFValueType

Scalar: TypeAlias = "int | float | bool | str"

# numpy's type of each kind of number in a file
NUMBER_DTYPES = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True)
class Value:
    """One typed GGUF value; `element` is the type of an array's elements."""

    data: Scalar | Sequence[Scalar] | Sequence[bytes]
    type: GGUFValueType
    element: GGUFValueType | None = None


Metadata: TypeAlias = "dict[str, Value]"


def uint32(number: int) -> Value:
    return Value(int(number), GGUFValueType.UINT32)


def float32(number: float) -> Value:
    return Value(float(number), GGUFValueType.FLOAT32)


def boolean(flag: bool) -> Value:
    return Value(bool(flag), GGUFValueType.BOOL)


def string(text: str) -> Value:
    return Value(text, GGUFValueType.STRING)


def strings(texts: Sequence[str]) -> Value:
    return Value(list(texts), GGUFValueType.ARRAY, GGUFValueType.STRING)


def float32s(numbers: Sequence[float]) -> Value:
    return Value(list(numbers), GGUFValueType.ARRAY, GGUFValueType.FLOAT32)


def int32s(numbers: Sequence[int]) -> Value:
    return Value(list(numbers), GGUFValueType.ARRAY, GGUFValueType.INT32)


def booleans(flags: Sequence[bool]) -> Value:
    return Value(list(flags), GGUFValueType.ARRAY, GGUFValueType.BOOL)


def uint8s(data: bytes) -> Value:
    return Value(list(data), GGUFValueType.ARRAY, GGUFValueType.UINT8)


def joined(keys: Metadata, *more: Metadata) -> Metadata:
    """Return one mapping of all keys; raise ValueError where two share a key, which is a bug in this program."""
    whole = dict(keys)
    for part in more:
        if twice := whole.keys() & part.keys():
            raise ValueError(f"metadata keys written twice: {sorted(twice)}")
        whole.update(part)
    return whole
