"""Packed codes of four levels, {-2, -1, 0, 1} · scale, or three, {-1, 0, 1} · scale: kept as codes, exactly.

Four levels become the codes -1 to 2 with the negative scale (quant/four_levels.py). Which of the two a tensor has shows
when it is asked, by a scan of its words that looks at all codes of a word at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tritgguf.converter.checkpoint.packed_integers import WORD_BITS
from tritgguf.converter.checkpoint.scaled_codes import PerBlock, ScaledTensor, Words
from tritgguf.converter.core.tensors import (
    ByteArray,
    CodedRows,
    CodedTensor,
    Float32Array,
    RowIndices,
    SourceTensor,
    row_chunks,
)
from tritgguf.converter.quant.four_levels import LEVELS as FOUR

SCANNED_WORDS = 1 << 18  # at a time
WordArray = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class FourLevelTensor(CodedTensor):
    """A tensor whose codes, as stored, are all among -2, -1, 0 and 1."""

    words: Words
    stored_scales: PerBlock

    @cached_property
    def _ternary(self) -> bool:
        return holds_only(self.words, -1)

    @property
    def levels(self) -> int:
        return 3 if self._ternary else FOUR

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        return [*self.words.on_disk(rows), *self.stored_scales.on_disk(rows)]

    def scales(self, rows: slice | RowIndices) -> Float32Array:
        found = self.stored_scales.read(rows, self.shape[0])
        return np.abs(found) if self._ternary else np.float32(0) - found

    def read_codes(self, rows: slice | RowIndices) -> CodedRows:
        codes = self.words.read(rows)
        if not self._ternary:
            return CodedRows(-codes, self.scales(rows), self.group)
        found = self.stored_scales.read(rows, self.shape[0])
        if (found < 0).any():
            codes = np.where(np.repeat(found < 0, self.group, axis=1), -codes, codes)
        return CodedRows(np.ascontiguousarray(codes), np.abs(found), self.group)


def word_tensor(name: str, dtype: str, words: Words, scales: PerBlock, rounded_to: str) -> SourceTensor:
    """Return the tensor of these words: as codes where they have 2 bits, or are found to have at most four levels."""
    shape = (words.stored.shape[0], words.n_columns)
    coded = FourLevelTensor(name, dtype, shape, scales.block[1], words.stored, words, scales)
    in_rows = scales.block[0] in (1, shape[0]) and shape[1] % scales.block[1] == 0
    if words.bits == 2 and in_rows:
        return coded
    container = words.bits == 4 and in_rows
    find = (lambda: coded if holds_only(words, -2) else None) if container else None
    return ScaledTensor(name, dtype, shape, words, scales, rounded_to, find_coded=find)


def holds_only(words: Words, lowest: int) -> bool:
    """Whether all codes are from `lowest`, -2 or -1, to 1."""
    n_words = words.stored.shape[1]
    filled = words.n_columns * words.bits == n_words * WORD_BITS
    for rows in row_chunks((words.stored.shape[0], n_words), n_values=SCANNED_WORDS):
        words.stored.read_now(rows)
        if filled:
            fits = _TESTS[words.bits, lowest](np.ascontiguousarray(words.bytes[rows]).view("<u4"))
        else:
            codes = words.read(rows)
            fits = bool(codes.min(initial=0) >= lowest and codes.max(initial=0) <= 1)
        words.stored.evict(rows)
        if not fits:
            return False
    return True


def _all_set(words: WordArray, mask: int) -> bool:
    """Whether all words have all bits of the mask set."""
    return int(np.bitwise_and.reduce(words, axis=None)) & mask == mask


def _two_bits_ternary(words: WordArray) -> bool:
    """Whether no pair of bits is 00, which is -2."""
    return _all_set(words | words >> np.uint32(1), 0x55555555)


def _four_bits_four_levels(words: WordArray) -> bool:
    """Whether all nibbles are 6 to 9: the highest bit differs from the next, and that equals the one after it."""
    changes = words ^ words >> np.uint32(1)
    return _all_set(changes, 0x44444444) and not int(np.bitwise_or.reduce(changes, axis=None)) & 0x22222222


def _four_bits_ternary(words: WordArray) -> bool:
    """Whether all nibbles are 7 to 9: of those above, only 6 has neither its lowest nor its highest bit set."""
    return _four_bits_four_levels(words) and _all_set(words | words >> np.uint32(3), 0x11111111)


_TESTS: dict[tuple[int, int], Callable[[WordArray], bool]] = {
    (2, -2): lambda words: True,
    (2, -1): _two_bits_ternary,
    (4, -2): _four_bits_four_levels,
    (4, -1): _four_bits_ternary,
}
