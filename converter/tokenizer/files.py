"""Read and parse a checkpoint folder's tokenizer files; errors name the file and the place in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritgguf.converter.core import json_files
from tritgguf.converter.errors import TokenizerError

TOKENIZER_JSON = "tokenizer.json"
SENTENCEPIECE_MODEL = "tokenizer.model"


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of a text before the tokenizer's model splits the rest."""

    token_id: int
    text: str
    special: bool
    normalized: bool = False
    strips_left: bool = False
    strips_right: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class SideFiles:
    """The JSON files beside the tokenizer itself; a missing one is an empty mapping."""

    folder: Path
    config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    added_tokens: tuple[AddedToken, ...]


def read_side_files(folder: Path, config: Mapping[str, Any]) -> SideFiles:
    """Read the JSON files beside the tokenizer; raise TokenizerError if one of them is damaged."""
    tokenizer_config = read_object_if_present(folder / "tokenizer_config.json")
    return SideFiles(
        folder=folder,
        config=config,
        tokenizer_config=tokenizer_config,
        generation_config=read_object_if_present(folder / "generation_config.json"),
        special_tokens_map=read_object_if_present(folder / "special_tokens_map.json"),
        added_tokens=side_added_tokens(folder, tokenizer_config),
    )


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path.name} can't be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    return json_files.read_text(path, TokenizerError)


def parse_object(text: str, name: str) -> dict[str, Any]:
    return json_files.parse_object(text, name, TokenizerError)


def read_object_if_present(path: Path) -> dict[str, Any]:
    return json_files.read_object_if_present(path, TokenizerError)


def token_text(entry: object) -> str | None:
    """Return the text of a token that a file writes as "…" or as {"content": "…"}; None where it is neither."""
    if isinstance(entry, Mapping):
        entry = entry.get("content")
    return entry if isinstance(entry, str) and entry else None


def added_token(entry: object, token_id: object, name: str) -> AddedToken:
    """Parse one element of `added_tokens` (tokenizer.json) or `added_tokens_decoder` (tokenizer_config.json)."""
    text = token_text(entry)
    if not isinstance(entry, Mapping) or text is None or type(token_id) is not int or token_id < 0:
        raise TokenizerError(f"{name}: an added token needs a content and an id of 0 or more; found {entry!r:.120}")
    return AddedToken(
        token_id,
        text,
        special=bool(entry.get("special", False)),
        normalized=bool(entry.get("normalized", False)),
        strips_left=bool(entry.get("lstrip", False)),
        strips_right=bool(entry.get("rstrip", False)),
        single_word=bool(entry.get("single_word", False)),
    )


def side_added_tokens(folder: Path, tokenizer_config: Mapping[str, Any]) -> tuple[AddedToken, ...]:
    """Return the added tokens named outside tokenizer.json; tokenizer_config.json's entries win: they have flags."""
    tokens: dict[int, AddedToken] = {}
    decoder = tokenizer_config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping):
        raise TokenizerError(f"tokenizer_config.json: added_tokens_decoder is {decoder!r:.80}; expected an object")
    for key, entry in decoder.items():
        token = added_token(entry, int(key) if str(key).isdecimal() else key, "tokenizer_config.json")
        tokens[token.token_id] = token
    named_special = _texts_named_special(tokenizer_config)
    for text, token_id in read_object_if_present(folder / "added_tokens.json").items():
        if type(token_id) is not int or token_id < 0:
            raise TokenizerError(
                f"added_tokens.json: token {text!r} has id {token_id!r}; expected a number of 0 or more"
            )
        tokens.setdefault(token_id, AddedToken(token_id, text, special=text in named_special))
    return tuple(tokens[token_id] for token_id in sorted(tokens))


def _texts_named_special(tokenizer_config: Mapping[str, Any]) -> set[str]:
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
    entries = [tokenizer_config.get(name) for name in names]
    extra = tokenizer_config.get("additional_special_tokens")
    entries += extra if isinstance(extra, list) else []
    return {text for entry in entries if (text := token_text(entry)) is not None}
