"""Read fields of a SentencePiece model file that its Python package doesn't offer, from the protobuf message itself.

Field numbers (ModelProto, TrainerSpec, NormalizerSpec, SentencePiece):
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

UNIGRAM_MODEL, BPE_MODEL = 1, 2
# Appended to a model, this turns add_dummy_prefix off: protobuf merges a message given twice, the last value wins.
WITHOUT_DUMMY_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3, 0])
LAST_KIND = 6
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceProto:
    """Pieces by id, whose `kind` has the numbers of GGUF's token types; the rest are the options of those names."""

    pieces: tuple[Piece, ...]
    model_type: int
    byte_fallback: bool
    whitespace_is_suffix: bool
    charsmap: bytes
    adds_dummy_prefix: bool
    removes_extra_whitespaces: bool
    escapes_whitespaces: bool


_SCORE = struct.Struct("<f")


def parse_model(data: bytes) -> SentencePieceProto:
    """Parse a model file; raise ValueError if the bytes aren't one."""
    pieces = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_message(value)))
        elif number == 2:
            trainer |= dict(_fields(_message(value)))
        elif number == 3:
            normalizer |= dict(_fields(_message(value)))
    if not pieces or not trainer:
        raise ValueError("no pieces or no trainer settings")
    return SentencePieceProto(
        pieces=tuple(pieces),
        model_type=_number(trainer.get(3, 1)),
        byte_fallback=bool(trainer.get(35, 0)),
        whitespace_is_suffix=bool(trainer.get(24, 0)),
        charsmap=_message(normalizer.get(2, b"")),
        adds_dummy_prefix=bool(normalizer.get(3, 1)),
        removes_extra_whitespaces=bool(normalizer.get(4, 1)),
        escapes_whitespaces=bool(normalizer.get(5, 1)),
    )


def model_with_charsmap(charsmap: bytes) -> bytes:
    """Return a model file that does nothing but rewrite characters by a precompiled charsmap."""
    unknown = _bytes_field(1, _bytes_field(1, b"<unk>") + bytes([3 << 3, 2]))
    letter = _bytes_field(1, _bytes_field(1, b"a") + bytes([3 << 3, 1]))
    trainer = _bytes_field(2, bytes([3 << 3, UNIGRAM_MODEL]))
    no_spaces = bytes([3 << 3, 0, 4 << 3, 0, 5 << 3, 0])  # no dummy prefix, none removed, none escaped
    return unknown + letter + trainer + _bytes_field(3, _bytes_field(2, charsmap) + no_spaces)


def _bytes_field(number: int, data: bytes) -> bytes:
    length, head = len(data), bytearray([number << 3 | 2])
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(head) + bytes([length]) + data


def _piece(data: bytes) -> Piece:
    # Nearly all pieces have this form: a text of less than 128 bytes, a score, no type.
    if len(data) > 6 and data[0] == 0x0A and data[1] == len(data) - 7 < 0x80 and data[-5] == 0x15:
        return Piece(data[2:-5].decode("utf-8"), _SCORE.unpack_from(data, len(data) - 4)[0], 1)
    fields = dict(_fields(data))
    (score,) = _SCORE.unpack(_message(fields.get(2, bytes(4))))
    kind = _number(fields.get(3, 1))
    if not 1 <= kind <= LAST_KIND:
        raise ValueError(f"a piece of type {kind}")
    return Piece(_message(fields.get(1, b"")).decode("utf-8"), score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield field numbers and values of one message: varints as int, other wire types as bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire_type == 2:
            length, at = _varint(data, at)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type}")
        if at + length > len(data):
            raise ValueError("cut short")
        yield tag >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("cut short")
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where a message was expected")
    return value


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number was expected")
    return value
