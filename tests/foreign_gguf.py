"""GGUF files with other programs' tensor types, written element by element from their specifications.

Nothing here is shared with the reader: loops over single values, and a GGUF writer of its own, since gguf's takes only
the types that it knows. docs/formats.md ("Types of other programs") has the layouts.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests import bitnet_model

HIDDEN, FFN, HEADS, KV_HEADS, VOCAB = 256, 256, 4, 2, bitnet_model.VOCAB
SHAPES = {
    "token_embd": (VOCAB, HIDDEN),
    "output": (VOCAB, HIDDEN),
    "blk.0.attn_q": (HIDDEN, HIDDEN),
    "blk.0.attn_k": (HIDDEN // 2, HIDDEN),
    "blk.0.attn_v": (HIDDEN // 2, HIDDEN),
    "blk.0.attn_output": (HIDDEN, HIDDEN),
    "blk.0.ffn_gate": (FFN, HIDDEN),
    "blk.0.ffn_up": (FFN, HIDDEN),
    "blk.0.ffn_down": (HIDDEN, FFN),
}
NORMS = ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")
Stored = tuple[Sequence[int], int, bytes]  # shape, type's number, bytes

Row = Sequence[int]  # codes


def half(value: float) -> bytes:
    return struct.pack("<e", value)


def q2_0_g128(codes: Row, scales: Sequence[float]) -> bytes:
    """34 bytes per 128: the scale, then element j at bits 2 (j mod 4) of byte j / 4."""
    out = b""
    for block in range(len(codes) // 128):
        packed = [0] * 32
        for j in range(128):
            packed[j // 4] |= (codes[128 * block + j] + 1) << 2 * (j % 4)
        out += half(scales[block]) + bytes(packed)
    return out


def q2_0_g64(codes: Row, scales: Sequence[float]) -> bytes:
    """llama.cpp's own: 18 bytes per 64."""
    out = b""
    for block in range(len(codes) // 64):
        packed = [0] * 16
        for j in range(64):
            packed[j // 4] |= (codes[64 * block + j] + 1) << 2 * (j % 4)
        out += half(scales[block]) + bytes(packed)
    return out


def base3_byte(trits: Sequence[int]) -> int:
    """Return the byte b of which trit n is ((b · 3ⁿ mod 256) · 3) >> 8: found by trying all."""
    for byte in range(256):
        if all((byte * 3**n % 256 * 3 >> 8) == trit for n, trit in enumerate(trits)):
            return byte
    raise AssertionError(trits)


BASE3 = {
    tuple((number // 3**n) % 3 for n in range(5)): base3_byte([(number // 3**n) % 3 for n in range(5)])
    for number in range(243)
}
# The four trits of IQ1_BN's last byte in 64: of byte · 81, byte · 27, byte · 9 and byte · 3.
EXTRA = {tuple((byte * m % 256 * 3 >> 8) for m in (81, 27, 9, 3)): byte for byte in reversed(range(256))}


def ptq1_0(codes: Row, scales: Sequence[float]) -> bytes:
    """28 bytes per 128: elements 16n + m in byte m, 80 + 8n + m in byte 16 + m, 120 + 2n + h in byte 24 + h; scale."""
    out = b""
    for block in range(len(codes) // 128):
        digits = [code + 1 for code in codes[128 * block : 128 * block + 128]]
        packed = [BASE3[tuple(digits[n * 16 + m] for n in range(5))] for m in range(16)]
        packed += [BASE3[tuple(digits[80 + 8 * n + m] for n in range(5))] for m in range(8)]
        packed += [BASE3[(*(digits[120 + 2 * n + h] for n in range(4)), 0)] for h in range(2)]
        out += bytes(packed) + half(scales[block])
    return out


def stq1_0(codes: Row, scales: Sequence[float]) -> bytes:
    """42 bytes per 256: a nibble and a sign for elements 64 (g / 16) + g mod 16 + 16 p, p = 0 to 3; then the scale."""
    out = b""
    for block in range(len(codes) // 256):
        nibbles, signs = [0] * 32, [0] * 8
        for g in range(64):
            four = [codes[256 * block + 64 * (g // 16) + g % 16 + 16 * p] for p in range(4)]
            zero = four.index(0)
            first, second, third = (four[p] for p in range(4) if p != zero)
            slot = zero << 2 | (2 if third != first else 0) | (1 if second != first else 0)
            nibbles[g // 2] |= slot << 4 * (g % 2)
            signs[g // 8] |= (1 if first < 0 else 0) << g % 8
        out += bytes(nibbles) + bytes(signs) + half(scales[block])
    return out


def i2_s(codes: Row, scales: Sequence[float]) -> bytes:
    """32 bytes per 128: byte p has p, 32 + p, 64 + p and 96 + p, the first highest."""
    out = b""
    for block in range(len(codes) // 128):
        packed = [0] * 32
        for j in range(128):
            packed[j % 32] |= (codes[128 * block + j] + 1) << 6 - 2 * (j // 32)
        out += bytes(packed)
    return out


def iq1_bn(codes: Row, scales: Sequence[float]) -> bytes:
    """The row's fp16 scale, then 13 bytes per 64."""
    out = half(scales[0])
    for block in range(len(codes) // 64):
        digits = [code + 1 for code in codes[64 * block : 64 * block + 64]]
        packed = []
        for i in range(4):
            for k in range(3):
                # the multipliers 81, 27, 9, 3, 1 take the first element from the lowest digit
                packed.append(BASE3[tuple(digits[16 * i + 5 * k + j] for j in reversed(range(5)))])
        extra = [digits[16 * i + 15] for i in range(4)]
        out += bytes([*packed, EXTRA[tuple(extra)]])
    return out


def iq2_bn(codes: Row, scales: Sequence[float]) -> bytes:
    """The row's float32 scale, then 16 bytes per 64: byte j has j, 16 + j, 32 + j and 48 + j, the first lowest."""
    out = struct.pack("<f", scales[0])
    for block in range(len(codes) // 64):
        packed = [0] * 16
        for j in range(64):
            packed[j % 16] |= (codes[64 * block + j] + 1) << 2 * (j // 16)
        out += bytes(packed)
    return out


@dataclass(frozen=True)
class Kind:
    """How to write a type: `group` columns share a scale, 0 for a row; `tensor_scale` for one scale behind the rows."""

    number: int
    pack: Callable[[Row, Sequence[float]], bytes]
    group: int
    tensor_scale: bool = False
    one_zero_in_four: bool = False

    def tensor(self, codes: np.ndarray, scales: np.ndarray) -> Stored:
        rows = [self.pack(row, own) for row, own in zip(codes.tolist(), scales.tolist(), strict=True)]
        tail = struct.pack("<f", scales[0, 0]) + b"\xa5" * 28 if self.tensor_scale else b""
        return codes.shape, self.number, b"".join(rows) + tail


KINDS = {
    "Q2_0-g128": Kind(42, q2_0_g128, 128),
    "PQ2_0": Kind(142, q2_0_g128, 128),
    "PTQ1_0": Kind(143, ptq1_0, 128),
    "STQ1_0": Kind(42, stq1_0, 256, one_zero_in_four=True),
    "STQ1_0 (43)": Kind(43, stq1_0, 256, one_zero_in_four=True),
    "I2_S": Kind(36, i2_s, 0, tensor_scale=True),
    "IQ1_BN": Kind(134, iq1_bn, 0),
    "IQ2_BN": Kind(135, iq2_bn, 0),
}


def scale_of(rng: np.random.Generator, shape: tuple[int, ...], *, fp16: bool) -> np.ndarray:
    scales = rng.uniform(0.02, 0.08, shape).astype(np.float32)
    return scales.astype(np.float16).astype(np.float32) if fp16 else scales


def coded(kind: Kind, shape: tuple[int, int], seed: int, *, fp16: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return seeded codes, and scales of shape (n_rows, n_groups), of a matrix that the type stores."""
    rng = np.random.default_rng(seed)
    n_rows, n_columns = shape
    codes = rng.integers(-1, 2, shape).astype(np.int8)
    if kind.one_zero_in_four:
        lanes = rng.choice(np.array([-1, 1], np.int8), (n_rows * n_columns // 64, 4, 16))
        zero = rng.integers(0, 4, (len(lanes), 16))
        np.put_along_axis(lanes, zero[:, None], 0, axis=1)
        codes = lanes.reshape(shape)
    scales = scale_of(rng, (n_rows, n_columns // (kind.group or n_columns)), fp16=fp16)
    return codes, np.full_like(scales, scales[0, 0]) if kind.tensor_scale else scales


def weights(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return codes * np.repeat(scales, codes.shape[1] // scales.shape[1], axis=1)


def model(kind: Kind, *, fp16: bool = True) -> tuple[dict[str, Stored], dict[str, np.ndarray]]:
    """Return a small llama's matrices, all of that type, and the weights that they are."""
    stored, values = {}, {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        codes, scales = coded(kind, shape, number, fp16=fp16)
        stored[f"{name}.weight"] = kind.tensor(codes, scales)
        values[f"{name}.weight"] = weights(codes, scales)
    return stored, values


def base_file(path: Path, architecture: str = "llama", *, hidden: int = HIDDEN, ffn: int = FFN) -> Path:
    """Write the model's keys, its norms, and nothing else."""
    writer = gguf.GGUFWriter(path, architecture)
    bitnet_model.add_numbers(writer, architecture, hidden, ffn, 1, HEADS, KV_HEADS, context=256)
    bitnet_model._add_vocabulary(writer)
    rng = np.random.default_rng(99)
    for name in NORMS:
        writer.add_tensor(f"{name}.weight", 1 + rng.standard_normal(hidden, np.float32) / 8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tensors(
    base: Path,
    out: Path,
    tensors: Mapping[str, Stored],
    *,
    keys: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
    alignment: int = 32,
) -> Path:
    """Write `base` again with more tensors before its own and more keys; keys in `without` are left out."""
    reader = gguf.GGUFReader(base)
    fields = {
        name: b"".join(part.tobytes() for part in field.parts)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name not in without
    }
    for name, value in (keys or {}).items():
        fields[name] = _string(name) + _value(value)
    everything = dict(tensors)
    for tensor in reader.tensors:
        data = np.ascontiguousarray(tensor.data).tobytes()
        everything[tensor.name] = ([int(n) for n in reversed(tensor.shape)], int(tensor.tensor_type), data)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(everything), len(fields)) + b"".join(fields.values())
    body = b""
    for name, (shape, number, data) in everything.items():
        dims = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += _string(name) + struct.pack("<I", len(shape)) + dims + struct.pack("<IQ", number, len(body))
        body += data + bytes(-len(data) % alignment)
    out.write_bytes(head + bytes(-len(head) % alignment) + body)
    return out


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        element = _value(value[0]) if value else _value(0)
        return (
            struct.pack("<I", 9) + element[:4] + struct.pack("<Q", len(value)) + b"".join(_value(v)[4:] for v in value)
        )
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Ii", 5, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<I", 8) + _string(value)
