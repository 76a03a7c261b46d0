"""What a method is: a rule that makes ternary rows of floats that aren't ternary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.registry import offered
from tritgguf.converter.tensors import CodedRows, Float32Array


@dataclass(frozen=True)
class Method:
    """A lossy rule: `code(rows, group)` codes float32 rows, their length a multiple of `group`, with fp16 scales."""

    name: str
    code: Callable[[Float32Array, int], CodedRows]


def methods() -> dict[str, Method]:
    """Return every method by its name."""
    return {method.name: method for method in offered("tritgguf.converter.methods", "METHOD", Method)}


def method_named(name: str) -> Method:
    """Return the method of that name; raise UnsupportedError listing the names there are."""
    known = methods()
    if name not in known:
        raise UnsupportedError(f"unknown method {name!r}; expected one of {', '.join(known)}")
    return known[name]
