"""Tokenizer files for tests: small ones trained on the spot, and real ones put together from fetched files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from gguf import GGUFReader, TokenType
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers

from tritgguf.converter.tokenizer.battery import TEXTS

END, TURN_END, TOOL = "<|endoftext|>", "<|im_end|>", "<tool>"
CONFIG = {"eos_token_id": 0}
PREPEND = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_NO_CONTROL_CHARACTERS = [text for text in TEXTS if text.strip() and not any(ord(letter) < 32 for letter in text)]


def splitting(*expressions: str) -> dict[str, Any]:
    """The pre-tokenizer that splits by each expression and then writes bytes."""
    splits = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in expressions
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, _BYTES]}


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def byte_level_structure(**changes: Any) -> dict[str, Any]:
    """A byte-level tokenizer.json of about 2,100 tokens, with the GPT-2 pre-tokenizer unless `changes` say otherwise.

    It is trained with no pre-tokenizer on the very texts of the battery, so its merges run across spaces, digits and
    scripts: whoever splits a text in another place gets other ids.
    """
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=9000,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END, TURN_END],
    )
    trained.train_from_iterator([*TEXTS, *TEXTS], trainer)
    trained.add_tokens([AddedToken(TOOL, special=False)])
    structure: dict[str, Any] = json.loads(trained.to_str())
    structure["pre_tokenizer"] = {**_BYTES, "use_regex": True}
    return structure | changes


def sentencepiece_model(**options: Any) -> bytes:
    """A SentencePiece model as Llama's are made, trained on the battery's texts; `options` are the trainer's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_NO_CONTROL_CHARACTERS * 3),
        model_writer=model,
        minloglevel=2,
        **{
            "model_type": "bpe",
            "vocab_size": 1500,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True,
            "split_by_unicode_script": False,
            "character_coverage": 0.98,
            **options,
        },
    )
    return model.getvalue()


def unigram_model(**options: Any) -> bytes:
    """A SentencePiece model as T5's are made: unigram, NFKC by a precompiled charsmap, one space between words."""
    defaults = {
        "model_type": "unigram",
        "vocab_size": 600,
        "hard_vocab_limit": False,
        "byte_fallback": False,
        "normalization_rule_name": "nmt_nfkc",
        "remove_extra_whitespaces": True,
        "allow_whitespace_only_pieces": False,
    }
    return sentencepiece_model(**(defaults | options))


def metaspace(scheme: str, *, split: bool = True) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def normalizing(charsmap: bytes, *steps: Mapping[str, Any]) -> dict[str, Any]:
    """The normalizer that rewrites characters by a charsmap, unless it is empty, and then takes some steps."""
    encoded = base64.b64encode(charsmap).decode()
    first = [{"type": "Precompiled", "precompiled_charsmap": encoded}] if charsmap else []
    return {"type": "Sequence", "normalizers": [*first, *steps]}


STRIP = {"type": "Strip", "strip_left": False, "strip_right": True}
MERGE_SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}


def unigram_structure(
    pieces: Sequence[tuple[str, float]], normalizer: object, pre_tokenizer: object, **changes: Any
) -> dict[str, Any]:
    """The tokenizer.json that transformers makes of a SentencePiece unigram model; the first three are special."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": token_id, "content": pieces[token_id][0], **flags} for token_id in range(3)],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": list(map(list, pieces)), "byte_fallback": False, **changes},
    }


def trained_unigram_structure(charsmap: bytes) -> dict[str, Any]:
    """A Unigram tokenizer.json that the tokenizers library trained: its scores have 64 bits."""
    untrained = unigram_structure([("<unk>", 0.0)] * 3, normalizing(charsmap, STRIP, MERGE_SPACES), metaspace("always"))
    trained = tokenizers.Tokenizer.from_str(json.dumps(untrained | {"added_tokens": []}))
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=700, special_tokens=special, unk_token="<unk>", show_progress=False)
    trained.train_from_iterator(_NO_CONTROL_CHARACTERS * 3, trainer)
    structure: dict[str, Any] = json.loads(trained.to_str())
    return structure


def wordpiece_structure(*, lowercase: bool, strip_accents: bool | None = None) -> dict[str, Any]:
    """BERT's tokenizer.json, trained on the battery's texts; Chinese and emoji are unknown to it."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    trained.train_from_iterator([text for text in _NO_CONTROL_CHARACTERS if max(text) < "\u2000"] * 3, trainer)
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    structure: dict[str, Any] = json.loads(trained.to_str())
    return structure


def scored_pieces(model: bytes) -> list[tuple[str, float]]:
    """The pieces of a SentencePiece model by id."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [(processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.get_piece_size())]


def as_tokenizer_json(
    pieces: Sequence[tuple[str, float]], normalizer: object = PREPEND, pre_tokenizer: object = None
) -> dict[str, Any]:
    """The tokenizer.json that transformers makes of a SentencePiece BPE model: every split of a piece is a merge."""
    ids = {piece: token_id for token_id, (piece, _) in enumerate(pieces)}
    merges = []
    for piece, score in pieces:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = [(ids[left], ids[right], left, right) for left, right in splits if left in ids and right in ids]
        merges += [(-score, [left, right]) for _, _, left, right in sorted(pairs)]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": token_id, "content": pieces[token_id][0], **special} for token_id in range(3)],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": pieces[0][0],
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": [pair for _, pair in sorted(merges, key=lambda merge: merge[0])],
        },
    }


def write_from_vocab_file(
    gguf_file: Path, folder: Path, pre_tokenizer: Mapping[str, Any], normalizer: Mapping[str, Any] | None = None
) -> int:
    """Write the tokenizer.json whose vocabulary a GGUF file holds, with a pre-tokenizer given; returns n_vocab."""
    fields = GGUFReader(gguf_file).fields
    tokens: Sequence[str] = fields["tokenizer.ggml.tokens"].contents()
    types: Sequence[int] = fields["tokenizer.ggml.token_type"].contents()
    added = {
        token_id: token
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED) and not token.startswith("[PAD")
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    structure = {
        "version": "1.0",
        "added_tokens": [
            {"id": token_id, "content": token, **flags, "special": types[token_id] == TokenType.CONTROL}
            for token_id, token in added.items()
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens) if types[i] == TokenType.NORMAL or i in added},
            "merges": fields["tokenizer.ggml.merges"].contents(),
        },
    }
    write_json(folder / "tokenizer.json", structure)
    return len(tokens)
