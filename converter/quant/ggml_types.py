"""Teach the package gguf the tensor type Q2_0, which llama.cpp has and gguf 0.19.0 doesn't know, and to read Q1_0.

Importing this module is enough: from then on GGUFWriter, GGUFReader and gguf.quants.dequantize take Q2_0 tensors. Where
a later gguf knows a type itself, its own entries are kept. The numbers are those of ggml.h (GGML_TYPE_Q2_0), llama.h
(LLAMA_FTYPE_MOSTLY_Q2_0) and ggml-common.h (block_q2_0).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, quants

from tritgguf.converter.core.tensors import ByteArray, Float32Array

Member = TypeVar("Member", bound=IntEnum)


def member(kind: type[Member], name: str, value: int) -> Member:
    """Return the enum's member of that value, which gets `name` if there is none; raise ValueError on a name in use."""
    try:
        return kind(value)
    except ValueError:
        if name in kind.__members__:
            raise ValueError(f"{kind.__name__}.{name} is {kind[name]:d}; expected {value}") from None
    # Enum offers no way to add a member: these are the places where it looks one up, from Python 3.10 to 3.14.
    added = int.__new__(kind, value)
    added._name_, added._value_ = name, value
    setattr(kind, name, added)
    kind._member_names_.append(name)
    kind._member_map_[name] = added
    kind._value2member_map_[value] = added
    getattr(kind, "_hashable_values_", []).append(value)  # from Python 3.13 on: what `value in kind` looks at
    return added


Q2_0 = member(GGMLQuantizationType, "Q2_0", 42)
MOSTLY_Q2_0 = member(LlamaFileType, "MOSTLY_Q2_0", 41)
GGML_QUANT_SIZES.setdefault(Q2_0, (64, 18))

# gguf.quants finds a type's class through its base class, which has no public name.
_Quant: Any = quants.Q4_0.__base__

if Q2_0 not in quants._type_traits:

    class _Q2_0(_Quant, qtype=Q2_0):  # type: ignore[misc, call-arg]  # noqa: N801
        @classmethod
        def dequantize_blocks(cls, blocks: ByteArray) -> Float32Array:
            scale, packed = np.hsplit(blocks, [2])
            digits = packed[..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3
            values = digits.reshape(len(blocks), -1).astype(np.float32) - 1
            return values * scale.view("<f2").astype(np.float32)


if GGMLQuantizationType.Q1_0 not in quants._type_traits:

    class _Q1_0(_Quant, qtype=GGMLQuantizationType.Q1_0):  # type: ignore[misc, call-arg]  # noqa: N801
        """A scale and 128 signs; gguf has the type, but can't read it."""

        @classmethod
        def dequantize_blocks(cls, blocks: ByteArray) -> Float32Array:
            scale, packed = np.hsplit(blocks, [2])
            signs = np.unpackbits(packed, axis=1, bitorder="little").astype(np.float32) * 2 - 1
            return signs * scale.view("<f2").astype(np.float32)
