"""What is put around a prompt: by tokenizer.json's post-processor, and by llama.cpp, which adds bos and eos."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from gguf import Keys

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.tokenizer.files import TOKENIZER_JSON
from tritgguf.converter.tokenizer.reference import load_library

# An id that no vocabulary has: the place of the text among what is put around it.
_TEXT, _TEXT_ID = "x", 2**32 - 1


class Around(NamedTuple):
    """The ids put before and after each text when special tokens are added."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


def around_text(post_processor: object) -> Around:
    """Return what the `post_processor` of a tokenizer.json adds, by having the tokenizers library apply it.

    transformers 5 goes by it alone: it drops add_bos_token and add_eos_token where there is a tokenizer.json
    (PreTrainedTokenizerBase._from_pretrained). Raises TokenizerError for one that the library refuses, or that
    drops or repeats the text.
    """
    one_token = {"type": "WordLevel", "vocab": {_TEXT: _TEXT_ID}, "unk_token": _TEXT}
    parts = {"normalizer": None, "pre_tokenizer": None, "post_processor": post_processor, "decoder": None}
    structure = {"version": "1.0", "added_tokens": [], **parts, "model": one_token}
    ids: list[int] = load_library(json.dumps(structure).encode()).encode(_TEXT, add_special_tokens=True).ids
    if ids.count(_TEXT_ID) != 1:
        raise TokenizerError(
            f"{TOKENIZER_JSON}: the post-processor holds the text {ids.count(_TEXT_ID)} times; expected once"
        )
    place = ids.index(_TEXT_ID)
    return Around(tuple(ids[:place]), tuple(ids[place + 1 :]))


def around_in_llama_cpp(keys: Metadata) -> Around:
    """Return what llama.cpp adds to a text under a file's keys."""

    def added(adds: str, token_id: str) -> tuple[int, ...]:
        found = keys[token_id].data if keys[adds].data else None
        return (found,) if isinstance(found, int) else ()

    return Around(
        added(Keys.Tokenizer.ADD_BOS, Keys.Tokenizer.BOS_ID), added(Keys.Tokenizer.ADD_EOS, Keys.Tokenizer.EOS_ID)
    )


def beyond_llama_cpp(around: Around, keys: Metadata) -> tuple[str, ...]:
    """Return where llama.cpp adds other ids than the post-processor does, a phrase each."""
    return tuple(
        f"the post-processor puts ids {list(wanted)} {place} a text, llama.cpp {list(found) or 'none'}"
        for place, wanted, found in zip(("before", "after"), around, around_in_llama_cpp(keys), strict=True)
        if wanted != found
    )


def overruled(around: Around, tokenizer_config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a note for each of add_bos_token and add_eos_token that says other than the post-processor does."""
    return tuple(
        f"tokenizer_config.json sets {name} to {str(asked).lower()}, but {TOKENIZER_JSON}'s post-processor adds "
        f"{list(added) or 'nothing'} {place} a text; the file does as the latter, as transformers 5 does"
        for name, place, added in (
            ("add_bos_token", "before", around.before),
            ("add_eos_token", "after", around.after),
        )
        if isinstance(asked := tokenizer_config.get(name), bool) and asked is not bool(added)
    )
