"""Conversations as rows of token ids: what the model reads, and which ids it is judged by."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from vendor.demo_training.tokenizer import ASSISTANT, END, TEXT_END, USER

NOT_JUDGED = -100
REPEATS_OF_SHORT = 8  # short conversations are few, and what they say should stick
UNTIDY = 0.15  # the part of a user's turns that are read as people type: no capitals, no full stop

Turn = tuple[list[int], list[int]]  # ids as read, and as wanted


class RowMaker:
    """Makes rows of `length` + 1 ids; `seed` decides everything."""

    def __init__(self, tokenizer: Tokenizer, length: int, seed: int) -> None:
        self.tokenizer = tokenizer
        self.length = length
        self.random = random.Random(seed)
        self.roles = [self._id(USER), self._id(ASSISTANT)]
        self.end, self.text_end = self._id(END), self._id(TEXT_END)

    def batches(self, train: list[list[str]], short: list[list[str]], n_rows: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Ids and wanted ids, each (n_rows, length), for ever; conversations come in a new order each time round."""
        while True:
            pieces = [piece for turns in train for piece in self.pieces(turns, self.random.randrange(2))]
            pieces += [piece for turns in short * REPEATS_OF_SHORT for piece in self.pieces(turns)]
            self.random.shuffle(pieces)
            long_enough = [piece for piece in pieces if len(piece[0]) > 32]
            rows = list(self._packed(pieces, long_enough))
            for start in range(0, len(rows) - n_rows + 1, n_rows):
                yield self.arrays(rows[start : start + n_rows])

    def pieces(self, turns: Sequence[str], skipped: int = 0, untidy: float = UNTIDY) -> list[Turn]:
        """A conversation in pieces that fit a row; each starts with the user, whoever spoke."""
        pieces: list[Turn] = []
        read: list[int] = []
        wanted: list[int] = []
        speaker = 0
        for turn in turns[skipped:]:
            ids = self.tokenizer.encode(turn, add_special_tokens=False).ids
            if len(read) + len(ids) + 3 > self.length and read:
                pieces.append(([*read, self.text_end], [*wanted, self.text_end]))
                read, wanted, speaker = [], [], 0
            if speaker == 0 and self.random.random() < untidy:
                typed = self.tokenizer.encode(turn.lower().rstrip(".!?"), add_special_tokens=False).ids
                read += [self.roles[speaker], *typed, self.end]
                wanted += [NOT_JUDGED] * (len(typed) + 2)
            else:
                read += [self.roles[speaker], *ids, self.end]
                wanted += [NOT_JUDGED, *ids, self.end]
            speaker = 1 - speaker
        if read:
            pieces.append(([*read, self.text_end], [*wanted, self.text_end]))
        return pieces

    def arrays(self, rows: Sequence[Turn]) -> tuple[np.ndarray, np.ndarray]:
        """What is read and what is wanted one place on, padded to `length`."""
        read = np.full((len(rows), self.length), self.text_end, np.int64)
        wanted = np.full((len(rows), self.length), NOT_JUDGED, np.int64)
        for row, (ids, next_ids) in enumerate(rows):
            n = min(len(ids), self.length)
            read[row, :n] = ids[:n]
            following = next_ids[1 : self.length + 1]
            wanted[row, : len(following)] = following
        return read, wanted

    def _packed(self, pieces: list[Turn], fillers: list[Turn]) -> Iterator[Turn]:
        """Each piece in a row of its own or with others; the rest of a row is filled with the start of another one."""
        read: list[int] = []
        wanted: list[int] = []
        for piece in pieces:
            if len(read) + len(piece[0]) > self.length + 1:
                filler = self.random.choice(fillers)
                yield (read + filler[0])[: self.length + 1], (wanted + filler[1])[: self.length + 1]
                read, wanted = [], []
            read, wanted = read + piece[0], wanted + piece[1]
        if read:
            yield read, wanted

    def _id(self, token: str) -> int:
        token_id = self.tokenizer.token_to_id(token)
        assert token_id is not None
        return token_id
