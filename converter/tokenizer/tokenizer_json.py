"""tokenizer.json as data to convert; in reference.py the tokenizers library loads it to encode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.tokenizer.files import (
    TOKENIZER_JSON,
    AddedToken,
    SideFiles,
    added_token,
    parse_object,
    read_text,
)
from tritgguf.converter.tokenizer.reference import Reference

KEEPS_SPACES = ("<unk>", "<s>", "<|endoftext|>")  # the added tokens of Phi-3 behind which spaces are kept


@dataclass(frozen=True)
class TokenizerJson:
    """A tokenizer.json whose parts aren't checked yet but for the added tokens; its "model" is an object."""

    structure: Mapping[str, Any]
    added_tokens: tuple[AddedToken, ...]
    reference: Reference

    def differences(self) -> list[str]:
        """Return what llama.cpp can't do with the added tokens: strip spaces beside one, or match whole words only."""
        texts = [
            token.text for token in self.added_tokens if token.strips_left or token.strips_right or token.single_word
        ]
        if texts and self._strips_as_phi_3():
            return ["llama.cpp strips spaces behind added tokens only in models with phi-3 in their name: name it so"]
        return (
            [f"{texts[0]!r} strips spaces beside it or matches whole words only; llama.cpp ignores that"]
            if texts
            else []
        )

    def _strips_as_phi_3(self) -> bool:
        """Whether spaces are stripped as llama.cpp does it for Phi-3, by the model's name (llama-vocab.cpp)."""
        named = {token.text for token in self.added_tokens}  # llama.cpp looks these up
        return named.issuperset({*KEEPS_SPACES, "</s>"}) and all(
            token.strips_right == (token.text not in KEEPS_SPACES) and not (token.strips_left or token.single_word)
            for token in self.added_tokens
        )

    @property
    def model(self) -> Mapping[str, Any]:
        model: Mapping[str, Any] = self.structure["model"]
        return model


@dataclass(frozen=True)
class BpeJson(TokenizerJson):
    """A tokenizer.json with a BPE model; `merges` are pairs, joined by a space, in order of rank."""

    vocab: Mapping[str, int]
    merges: list[str]

    def pairs(self) -> list[tuple[str, str]]:
        """Return the merges as pairs of pieces."""
        return [(left, right) for left, _, right in (merge.partition(" ") for merge in self.merges)]

    def ignores_merges(self) -> bool:
        return bool(self.structure["model"].get("ignore_merges", False))


def read_tokenizer_json(files: SideFiles) -> TokenizerJson:
    """Read tokenizer.json with the tokens that other files add; raise TokenizerError if it has no model."""
    structure = parse_object(read_text(files.folder / TOKENIZER_JSON), TOKENIZER_JSON)
    if not isinstance(structure.get("model"), Mapping):
        raise TokenizerError(f"{TOKENIZER_JSON}: the model is {structure.get('model')!r:.80}; expected an object")
    entries = structure.get("added_tokens") or []
    own = [added_token(entry, entry.get("id"), TOKENIZER_JSON) for entry in entries]
    return TokenizerJson(
        structure=structure,
        added_tokens=_with_side_tokens(own, files),
        reference=Reference(files.folder, own),
    )


def as_bpe(source: TokenizerJson) -> BpeJson:
    """Return the tokenizer with its vocabulary and merges; raise TokenizerError if it isn't plain BPE."""
    model = source.model
    if not isinstance(model.get("vocab"), Mapping) or "merges" not in model:
        raise TokenizerError(f"{TOKENIZER_JSON}: the BPE model lacks a vocab or merges; expected both")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise TokenizerError(
                f"{TOKENIZER_JSON}: the model sets {option} to {model[option]!r}; llama.cpp has no such option"
            )
    return BpeJson(
        structure=source.structure,
        added_tokens=source.added_tokens,
        reference=source.reference,
        vocab=model["vocab"],
        merges=_joined(model["merges"]),
    )


def words_beyond_merging(source: BpeJson) -> list[str]:
    """Return the vocabulary entries that no merges make: only with these does ignore_merges change ids."""
    model = tokenizers.models.BPE(dict(source.vocab), source.pairs())
    added = {token.text for token in source.added_tokens}
    return [
        word
        for word, token_id in source.vocab.items()
        if word not in added and [token.id for token in model.tokenize(word)] != [token_id]
    ]


def _joined(merges: Sequence[str | Sequence[str]]) -> list[str]:
    """Return each merge as "left right", as older files have it; newer ones have ["left", "right"]."""
    if set(map(type, merges)) == {list} and set(map(len, merges)) == {2}:  # the usual case, without a loop in Python
        joined = list(map(" ".join, merges))
        if "".join(joined).count(" ") == len(joined):  # one each
            return joined
    joined = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    for merge, text in zip(merges, joined, strict=True):
        if text.count(" ") != 1 or not (isinstance(merge, str) or len(merge) == 2):
            raise TokenizerError(
                f"{TOKENIZER_JSON}: merge {text!r:.80} isn't two pieces without spaces, which GGUF needs"
            )
    return joined


def _with_side_tokens(own: Sequence[AddedToken], files: SideFiles) -> tuple[AddedToken, ...]:
    """Add the tokens that only the files beside tokenizer.json name, as transformers does."""
    by_text = {token.text: token for token in own}
    for token in files.added_tokens:
        by_text.setdefault(token.text, token)
    return tuple(sorted(by_text.values(), key=lambda token: token.token_id))
