"""Turn a GGUF file's tokenizer keys back into tokenizer.json and tokenizer_config.json, as transformers reads them.

The text that is written gives the ids that llama.cpp gives: what the GGUF file doesn't hold, such as a normalizer that
composes accents, stays out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf import Keys, TokenType

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer, as_pre_tokenizer
from tritgguf.converter.tokenizer.spaces import SPACE
from tritgguf.converter.tokenizer.template_keys import DEFAULT

ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
# Names that llama.cpp treats as those of PRE_TOKENIZERS (llama_vocab::impl::load in
# https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp).
SAME_AS = {
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "stablelm2", "hunyuan"), "qwen2"),
    **dict.fromkeys(("starcoder", "refact", "command-r"), "smollm"),
    **dict.fromkeys(("olmo", "phi-2", "gigachat", "mellum"), "gpt-2"),
    **dict.fromkeys(("llama4", "kanana2"), "gpt-4o"),
    "hunyuan-dense": "deepseek-v3",
}
ADDS_BOS = ("llama-bpe", "tekken")


@dataclass(frozen=True)
class TokenizerKeys:
    """The keys of a vocabulary: tokens and their types by id, and the special ids by name."""

    keys: Metadata
    tokens: Sequence[str]
    types: Sequence[int]

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.keys[key].data) if key in self.keys else default

    def text(self, key: str) -> str:
        return str(self.keys[key].data) if key in self.keys else ""

    def text_of(self, key: str) -> str | None:
        """Return the token whose id a key holds, None where there is none."""
        token_id = self.keys[key].data if key in self.keys else None
        return self.tokens[token_id] if isinstance(token_id, int) and 0 <= token_id < len(self.tokens) else None


def tokenizer_files(keys: Metadata) -> dict[str, dict[str, Any]]:
    """Return tokenizer.json and tokenizer_config.json for a file's keys, as objects by the file's name.

    Raises UnsupportedError where the tokenizer is of a kind that isn't known here.
    """
    vocabulary = _vocabulary(keys)
    kind = vocabulary.text(Keys.Tokenizer.MODEL)
    if kind == "gpt2":
        structure = _byte_level(vocabulary)
    elif kind == "llama":
        structure = _sentencepiece(vocabulary)
    else:
        raise UnsupportedError(f"{Keys.Tokenizer.MODEL} is {kind!r:.40}; only gpt2 and llama become a tokenizer.json")
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added_tokens(vocabulary),
            **structure,
            "post_processor": _post_processor(vocabulary),
        },
        "tokenizer_config.json": _tokenizer_config(vocabulary),
    }


def _vocabulary(keys: Metadata) -> TokenizerKeys:
    tokens = keys[Keys.Tokenizer.LIST].data if Keys.Tokenizer.LIST in keys else []
    types = keys[Keys.Tokenizer.TOKEN_TYPE].data if Keys.Tokenizer.TOKEN_TYPE in keys else None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UnsupportedError(f"{Keys.Tokenizer.LIST} isn't a list of texts in UTF-8, which tokenizer.json needs")
    if types is None:
        types = [TokenType.NORMAL.value] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens):
        raise UnsupportedError(f"{Keys.Tokenizer.TOKEN_TYPE} doesn't have a number for each of {len(tokens)} tokens")
    return TokenizerKeys(keys, tokens, types)


def _byte_level(vocabulary: TokenizerKeys) -> dict[str, Any]:
    row = _row(vocabulary.text(Keys.Tokenizer.PRE))
    merges = vocabulary.keys[Keys.Tokenizer.MERGES].data if Keys.Tokenizer.MERGES in vocabulary.keys else []
    assert isinstance(merges, list)
    in_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": as_pre_tokenizer(row.steps),
        "decoder": in_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": row.merges_ignored,
            "vocab": _ids(vocabulary),
            "merges": [list(str(merge).split(" ", 1)) for merge in merges],
        },
    }


def _row(name: str) -> PreTokenizer:
    wanted = SAME_AS.get(name, name)
    for row in PRE_TOKENIZERS:
        if row.name == wanted:
            return row
    raise UnsupportedError(f"{Keys.Tokenizer.PRE} is {name!r:.40}, whose expressions aren't known here")


def _sentencepiece(vocabulary: TokenizerKeys) -> dict[str, Any]:
    prefixed = vocabulary.flag(Keys.Tokenizer.ADD_PREFIX, True)
    escape = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    unescape = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders: list[dict[str, Any]] = [unescape, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefixed:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": {"type": "Sequence", "normalizers": [prepend, escape] if prefixed else [escape]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _unknown(vocabulary),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": _ids(vocabulary),
            "merges": _merges(vocabulary),
        },
    }


def _unknown(vocabulary: TokenizerKeys) -> str | None:
    named = vocabulary.text_of(Keys.Tokenizer.UNK_ID)
    typed = (t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == TokenType.UNKNOWN)
    return named or next(typed, None)


def _merges(vocabulary: TokenizerKeys) -> list[list[str]]:
    """Return the merges that give what scores give: each way to split a piece into two, the best piece first.

    As transformers' SentencePieceExtractor makes them of a SentencePiece model.
    """
    scores = vocabulary.keys[Keys.Tokenizer.SCORES].data if Keys.Tokenizer.SCORES in vocabulary.keys else None
    n_tokens = len(vocabulary.tokens)
    if not isinstance(scores, list) or len(scores) != n_tokens:
        raise UnsupportedError(f"{Keys.Tokenizer.SCORES} doesn't have a number for each of {n_tokens} tokens")
    ids = {token: i for i, token in enumerate(vocabulary.tokens) if vocabulary.types[i] == TokenType.NORMAL}
    merges = []
    for piece, token_id in ids.items():
        splits = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        pairs = [(ids[left], ids[right], left, right) for left, right in splits if left in ids and right in ids]
        merges += [(-scores[token_id], token_id, [left, right]) for _, _, left, right in sorted(pairs)]
    return [pair for _, _, pair in sorted(merges, key=lambda merge: merge[:2])]


def _ids(vocabulary: TokenizerKeys) -> dict[str, int]:
    """Return the ids of all tokens; the tokenizers library gives an added token that isn't among them a new id."""
    return {token: i for i, token in enumerate(vocabulary.tokens) if vocabulary.types[i] != TokenType.UNUSED}


def _added_tokens(vocabulary: TokenizerKeys) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": token, **flags, "special": vocabulary.types[i] != TokenType.USER_DEFINED}
        for i, token in enumerate(vocabulary.tokens)
        if vocabulary.types[i] in ADDED
    ]


def _post_processor(vocabulary: TokenizerKeys) -> dict[str, Any] | None:
    """Return what adds bos and eos to a text where the keys say so, or by llama.cpp's default where they are silent."""
    kind, pre = (vocabulary.text(key) for key in (Keys.Tokenizer.MODEL, Keys.Tokenizer.PRE))
    by_default = kind == "llama" or SAME_AS.get(pre, pre) in ADDS_BOS
    bos = vocabulary.text_of(Keys.Tokenizer.BOS_ID) if vocabulary.flag(Keys.Tokenizer.ADD_BOS, by_default) else None
    eos = vocabulary.text_of(Keys.Tokenizer.EOS_ID) if vocabulary.flag(Keys.Tokenizer.ADD_EOS, False) else None
    if bos is None and eos is None:
        return None
    ids = {token: vocabulary.tokens.index(token) for token in (bos, eos) if token is not None}

    def around(sequence: str, number: int) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = [{"Sequence": {"id": sequence, "type_id": number}}]
        before = [] if bos is None else [{"SpecialToken": {"id": bos, "type_id": number}}]
        after = [] if eos is None else [{"SpecialToken": {"id": eos, "type_id": number}}]
        return [*before, *steps, *after]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in ids.items()},
    }


def _tokenizer_config(vocabulary: TokenizerKeys) -> dict[str, Any]:
    named = {
        "bos_token": vocabulary.text_of(Keys.Tokenizer.BOS_ID),
        "eos_token": vocabulary.text_of(Keys.Tokenizer.EOS_ID),
        "unk_token": _unknown(vocabulary),
        "pad_token": vocabulary.text_of(Keys.Tokenizer.PAD_ID),
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{name: token for name, token in named.items() if token is not None},
    }
    templates = _chat_templates(vocabulary.keys)
    if set(templates) == {DEFAULT}:
        config["chat_template"] = templates[DEFAULT]
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    return config


def _chat_templates(keys: Metadata) -> dict[str, str]:
    prefix = f"{Keys.Tokenizer.CHAT_TEMPLATE}."
    found = {key.removeprefix(prefix): str(value.data) for key, value in keys.items() if key.startswith(prefix)}
    default = keys.get(Keys.Tokenizer.CHAT_TEMPLATE)
    return found if default is None else {DEFAULT: str(default.data), **found}
