"""Add to the package gguf the tensor type Q2_0, which llama.cpp has and gguf 0.19.0 lacks, and a reader for Q1_0.

Importing this module is enough: from then on GGUFWriter, GGUFReader and gguf.quants.dequantize accept Q2_0 tensors. If
a later gguf has a type itself, its own entries stay. The numbers are those of llama.cpp's ggml.h (GGML_TYPE_Q2_0),
llama.h (LLAMA_FTYPE_MOSTLY_Q2_0) and ggml-common.h (block_q2_0).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, quants

from tritgguf.converter.core.tensors import ByteArray, Float32Array

Member = TypeVar("Member", bound=IntEnum)


def member(kind: type[Member], name: str, value: int) -> Member:
    """Return the enum's member of that value; add it as `name` if there is none.

    Raise ValueError if a member of another value has that name.
    """
    try:
        return kind(value)
    except ValueError:
        if name in kind.__members__:
            raise ValueError(f"{kind.__name__}.{name} is {kind[name]:d}; expected {value}") from None
    # Enum has no way to add a member, so enter it everywhere that Enum looks one up, from Python 3.10 to 3.14.
    added = int.__new__(kind, value)
    added._name_, added._value_ = name, value
    setattr(kind, name, added)
    kind._member_names_.append(name)
    kind._member_map_[name] = added
    kind._value2member_map_[value] = added
    getattr(kind, "_hashable_values_", []).append(value)  # `value in kind` reads this since Python 3.13
    return added


Q2_0 = member(GGMLQuantizationType, "Q2_0", 42)
MOSTLY_Q2_0 = member(LlamaFileType, "MOSTLY_Q2_0", 41)
GGML_QUANT_SIZES.setdefault(Q2_0, (64, 18))

# gguf.quants registers the subclasses of this base class, which has no public name.
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
        """A scale and 128 signs; gguf knows the type, but can't dequantize it."""

        @classmethod
        def dequantize_blocks(cls, blocks: ByteArray) -> Float32Array:
            scale, packed = np.hsplit(blocks, [2])
            signs = np.unpackbits(packed, axis=1, bitorder="little").astype(np.float32) * 2 - 1
            return signs * scale.view("<f2").astype(np.float32)
