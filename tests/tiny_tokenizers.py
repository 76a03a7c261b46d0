"""Byte-level BPE tokenizers of at most 320 tokens, with the pre-tokenizers of Llama 3, Qwen2 and SmolLM.

Every byte is a token, so any text can be tokenized; the merges are the commonest of English.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# In order of rank; "~" stands between the parts and "Ġ" is the space.
_MERGE_TEXT = (
    "Ġ~t h~e i~n e~r a~n r~e o~n Ġ~a o~r e~n Ġt~he e~s i~s a~t o~u Ġ~s Ġ~w in~g an~d i~t a~l e~d Ġ~o Ġ~c "
    "a~r l~e i~c Ġ~b l~l Ġ~f Ġ~p i~on Ġ~m Ġ~in Ġo~f Ġ~an Ġan~d Ġt~o s~t c~h Ġ~d Ġ~l Ġ~h Ġ~n u~r a~s v~e "
    "r~o Ġ~is q~u o~m"
)
_MERGES = [pair.replace("~", " ") for pair in _MERGE_TEXT.split()]

_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'"
    " + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _split(digits: str) -> dict[str, Any]:
    """Return the pre-tokenizer that Llama 3 and Qwen2 share but for the digits."""
    pattern = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(*, use_regex: bool, add_prefix_space: bool = False) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


@dataclass(frozen=True)
class Style:
    """What differs between the three families; the specials are named bos, eos, and then further ones."""

    specials: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str | None
    pre_tokenizer: tuple[Mapping[str, Any], ...]
    specials_first: bool = False  # SmolLM's specials have the lowest ids, the others' the highest
    normalizer: Mapping[str, Any] | None = None
    ignore_merges: bool = False
    adds_bos: bool = False


STYLES: Mapping[str, Style] = {
    "llama3": Style(
        ("<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        pad=None,
        pre_tokenizer=(_split(r"\p{N}{1,3}"), _byte_level(use_regex=False)),
        ignore_merges=True,
        adds_bos=True,
    ),
    "qwen2": Style(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos=None,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        pre_tokenizer=(_split(r"\p{N}"), _byte_level(use_regex=False)),
        normalizer={"type": "NFC"},
    ),
    "smollm": Style(
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|im_end|>",
        pre_tokenizer=({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)),
        specials_first=True,
    ),
}


def write(style_name: str, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json of one style into `folder`."""
    style = STYLES[style_name]
    ids = vocabulary(style)
    added = [
        {
            "id": ids[content],
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for content in style.specials
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": style.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": style.pre_tokenizer},
        "post_processor": _post_processor(style, ids),
        "decoder": _byte_level(use_regex=True, add_prefix_space=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": style.ignore_merges,
            "vocab": {
                token: index for token, index in ids.items() if style.specials_first or token not in style.specials
            },
            "merges": _MERGES,
        },
    }
    names = {"bos_token": style.bos, "eos_token": style.eos, "pad_token": style.pad}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": _TEMPLATE,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(token.pop("id")): token for token in [dict(token) for token in added]},
        **names,
    }
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(folder / "tokenizer_config.json", settings)


def special_ids(style_name: str) -> dict[str, int]:
    """Return bos_token_id, eos_token_id and pad_token_id for config.json, where the style has them."""
    style = STYLES[style_name]
    ids = vocabulary(style)
    names = {"bos_token_id": style.bos, "eos_token_id": style.eos, "pad_token_id": style.pad}
    return {key: ids[token] for key, token in names.items() if token is not None}


def vocabulary(style: Style) -> dict[str, int]:
    """Return the id of every token, special ones included."""
    plain = [*_byte_characters(), *(merge.replace(" ", "") for merge in _MERGES)]
    ordered = [*style.specials, *plain] if style.specials_first else [*plain, *style.specials]
    return {token: index for index, token in enumerate(ordered)}


def _byte_characters() -> list[str]:
    """Return the 256 characters that GPT-2 writes bytes as: printable Latin-1 first, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + index) for index in range(256 - len(printable))]


def _post_processor(style: Style, ids: Mapping[str, int]) -> dict[str, Any] | None:
    if not style.adds_bos or style.bos is None:
        return None
    first = {"SpecialToken": {"id": style.bos, "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            first,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": style.bos, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {style.bos: {"id": style.bos, "ids": [ids[style.bos]], "tokens": [style.bos]}},
    }
    byte_level = _byte_level(use_regex=True, add_prefix_space=True)
    return {"type": "Sequence", "processors": [byte_level, template]}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
