"""Tokenizers that put a space before the first text alone, as SentencePiece ones of transformers with "legacy": false.

The first text is one at the very beginning: no special token stands before it. llama.cpp knows two ways only, a space
before each text that follows a special token or begins a prompt, and none at all. A prompt that begins with a special
token, such as a chat template's, needs no space; a plain text needs one. So a file of a model with such a template adds
none, and any other file adds them.
"""

from __future__ import annotations

from typing import NamedTuple

from gguf import Keys

from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.tokenizer.template_keys import begins_with_special
from tritgguf.converter.tokenizer.vocabulary import Vocabulary

IN_CHATS = (
    "the tokenizer puts a space before a text unless a special token stands before it, which a GGUF file can't say: "
    "this file adds none, as is right for prompts that begin with a special token, such as the chat template's; begin "
    "others with a space"
)
IN_TEXTS = (
    "the tokenizer puts a space before the first text alone, and none before one that begins with a space; llama.cpp "
    "puts one before each text that begins or follows a special token: only texts without special tokens that don't "
    "begin with a space are sure to get the same ids"
)


class FirstSpace(NamedTuple):
    """What a file does: `adds` is its key add_space_prefix; `begins` is what compared texts begin with.

    Where `adds` is true, only texts without special tokens and without a space at the beginning are compared.
    """

    adds: bool
    begins: str
    note: str


def first_space(keys: Metadata, vocabulary: Vocabulary) -> FirstSpace:
    """Choose for a vocabulary with these keys. Where llama.cpp removes extra spaces, it adds one before each text."""
    if (removes := keys.get(Keys.Tokenizer.REMOVE_EXTRA_WS)) is not None and removes.data:
        return FirstSpace(adds=True, begins="", note=IN_TEXTS)
    texts = vocabulary.special_texts()
    ids = {"bos_token": Keys.Tokenizer.BOS_ID, "eos_token": Keys.Tokenizer.EOS_ID, "unk_token": Keys.Tokenizer.UNK_ID}
    names = {name: vocabulary.texts.get(_number(keys, key)) for name, key in ids.items()}
    template = keys.get(Keys.Tokenizer.CHAT_TEMPLATE)
    if template is not None and begins_with_special(str(template.data), texts, names):
        return FirstSpace(adds=False, begins=names["bos_token"] or texts[0], note=IN_CHATS)
    return FirstSpace(adds=True, begins="", note=IN_TEXTS)


def _number(keys: Metadata, key: str) -> int:
    found = keys[key].data if key in keys else -1
    return found if isinstance(found, int) else -1
