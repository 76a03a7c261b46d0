"""Gemma's tokens of several spaces: their merges aren't in the order of the pieces that they make.

SentencePiece takes the longest run of spaces at once. tokenizer.json has a merge for each way to split a run, ordered
by the length of the left part, all before any other merge of spaces. So a run grows from its left end to the longest
piece. In llama.cpp it does the same where each run's score is above all others and grows with its length.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tritgguf.converter.tokenizer.spaces import SPACE

SPACES_NOTE = f"texts with the character {SPACE} itself get other token ids in llama.cpp, which takes it for a space"


def longest_run(pairs: Sequence[tuple[str, str]]) -> int:
    """Return the length of the longest run of spaces, 0 unless the merges of `pairs` are ordered as Gemma's."""
    ranks = {(len(left), len(right)): rank for rank, (left, right) in enumerate(pairs) if _is_run(left + right)}
    longest = max((sum(lengths) for lengths in ranks), default=0)
    expected = [(left, right) for left in range(longest - 1, 0, -1) for right in range(longest - left, 0, -1)]
    if sorted(ranks, key=ranks.__getitem__) != expected:
        return 0
    last = max(ranks.values(), default=0)
    earlier = (left + right for left, right in pairs[:last])
    return longest if all(_is_run(piece) or SPACE not in piece for piece in earlier) else 0


def runs_of_spaces(pairs: Sequence[tuple[str, str]], added: Collection[str]) -> dict[str, float]:
    """Return the score of each run of several spaces; none unless they are added tokens and merge as Gemma's."""
    if SPACE * 2 not in added:
        return {}
    return {SPACE * length: float(length) for length in range(2, longest_run(pairs) + 1)}


def cut_out_before_merging(piece: str, added: Collection[str]) -> bool:
    """Whether a piece is cut out of every text before merging; a text's spaces become SPACE only after that."""
    return piece in added and SPACE not in piece


def _is_run(piece: str) -> bool:
    return set(piece) == {SPACE}
