"""bos, eos, end of turn, pad and unk: which ids they are, and whether bos and eos are added to a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import Keys

from tritgguf.converter.core.settings import shown
from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import Metadata, boolean, uint32
from tritgguf.converter.tokenizer.files import SideFiles, token_text
from tritgguf.converter.tokenizer.post_processor import Around
from tritgguf.converter.tokenizer.template_keys import (
    DEFAULT,
    chat_template_metadata,
    end_of_turn,
    read_chat_templates,
)
from tritgguf.converter.tokenizer.vocabulary import Vocabulary

# llama.cpp ends generation at tokens with these texts, whatever the file's keys name (special_eog_ids in
# https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp).
ALWAYS_ENDS_GENERATION = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
        *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
    }
)
# Classes of transformers that add a bos to the text of a tokenizer.model unless tokenizer_config.json turns it off.
ADDS_BOS_BY_DEFAULT = frozenset(
    {"LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast"}
    | {"GemmaTokenizer", "GemmaTokenizerFast", "CohereTokenizer", "CohereTokenizerFast"}
)
# Without tokenizer_config.json, transformers reads a tokenizer.model with this class.
DEFAULT_CLASS = "LlamaTokenizer"


class SpecialIds:
    """Looks ids up in the order that transformers does: tokenizer_config.json's texts, then the ids in the configs.

    `around` is what tokenizer.json's post-processor adds to a text, None where there is no tokenizer.json.
    """

    def __init__(
        self, files: SideFiles, vocabulary: Vocabulary, defaults: Mapping[str, int], around: Around | None
    ) -> None:
        self.files = files
        self.vocabulary = vocabulary
        self.defaults = defaults
        self.around = around

    def id_of(self, name: str) -> int | None:
        """Return the id of "bos", "eos", "pad" or "unk", or None; `defaults` are those of the tokenizer's own file."""
        for texts in (self.files.tokenizer_config, self.files.special_tokens_map):
            token_id = self.vocabulary.ids.get(token_text(texts.get(f"{name}_token")) or "")
            if token_id is not None:
                return token_id
        if name == "unk":
            return self.defaults.get(name)
        if name == "bos" and self.around is not None and self.around.before:
            return self._in_vocabulary(self.around.before[0])
        for token_ids in (
            self.configured(self.files.generation_config, name),
            self.configured(self.files.config, name),
        ):
            if token_ids:
                return token_ids[0]
        return self.defaults.get(name)

    def configured(self, config: Mapping[str, Any], name: str) -> list[int]:
        """Return `NAME_token_id` of a config as a list; null and negative numbers mean none."""
        entry = config.get(f"{name}_token_id")
        entries = entry if isinstance(entry, list) else [] if entry is None else [entry]
        for token_id in entries:
            if type(token_id) is not int or token_id >= self.vocabulary.n_vocab:
                raise TokenizerError(
                    f"{name}_token_id in the model's configs is {shown(token_id)}; expected an id below the "
                    f"vocab_size of {self.vocabulary.n_vocab}; correct config.json or generation_config.json"
                )
        return [token_id for token_id in entries if token_id >= 0]

    def _in_vocabulary(self, token_id: int) -> int:
        if token_id not in self.vocabulary.texts:
            raise TokenizerError(
                f"{self.vocabulary.origin}: the post-processor puts id {token_id} before a text, which is no token's; "
                "save the tokenizer again so that its parts agree"
            )
        return token_id

    def ending_ids(self) -> set[int]:
        """Return every id at which transformers ends the model's generation."""
        ids = {*self.configured(self.files.generation_config, "eos"), *self.configured(self.files.config, "eos")}
        eos = self.id_of("eos")
        return ids if eos is None else ids | {eos}


def special_metadata(special: SpecialIds) -> Metadata:
    """Return the keys of the special ids, add_bos and add_eos, and the chat templates."""
    templates = read_chat_templates(special.files.folder, special.files.tokenizer_config)
    ids: dict[str, int | None] = {name: special.id_of(name) for name in ("bos", "eos", "unk", "pad")}
    if special.around is None:
        adds_bos, adds_eos = _configured_additions(special, ids)
    else:
        adds_bos, adds_eos = ids["bos"] in special.around.before, ids["eos"] in special.around.after
    if ids["eos"] is None:
        raise TokenizerError(
            f"{special.vocabulary.origin}: no end-of-text token is named by tokenizer_config.json, "
            "generation_config.json or config.json, and llama.cpp would take another token for it; "
            "add eos_token_id to config.json"
        )
    eot, eom = _turn_ends(special, ids, templates.get(DEFAULT))
    keys: Metadata = {}
    for key, token_id in (
        (Keys.Tokenizer.BOS_ID, ids["bos"]),
        (Keys.Tokenizer.EOS_ID, ids["eos"]),
        (Keys.Tokenizer.EOT_ID, eot),
        (Keys.Tokenizer.EOM_ID, eom),
        (Keys.Tokenizer.UNK_ID, ids["unk"]),
        (Keys.Tokenizer.PAD_ID, ids["pad"]),
    ):
        if token_id is not None:
            keys[key] = uint32(token_id)
    keys[Keys.Tokenizer.ADD_BOS] = boolean(adds_bos)
    keys[Keys.Tokenizer.ADD_EOS] = boolean(adds_eos)
    return keys | chat_template_metadata(templates)


def _turn_ends(
    special: SpecialIds, ids: Mapping[str, int | None], template: str | None
) -> tuple[int | None, int | None]:
    """Return eot, and as eom an ending token at which llama.cpp wouldn't stop otherwise."""
    texts = special.vocabulary.texts
    eot = None
    if template is not None:
        names = {f"{name}_token": texts.get(-1 if token_id is None else token_id) for name, token_id in ids.items()}
        text = end_of_turn(template, special.vocabulary.special_texts(), names)
        eot = special.vocabulary.ids.get(text or "")
    not_ending = [
        token_id
        for token_id in sorted(special.ending_ids())
        if token_id not in (ids["eos"], eot) and texts.get(token_id) not in ALWAYS_ENDS_GENERATION
    ]
    if eot is None and not_ending:
        eot = not_ending.pop(0)
    if len(not_ending) > 1:
        raise TokenizerError(
            f"generation_config.json ends text at ids {sorted(special.ending_ids())}, more than GGUF's eos, eot and "
            "eom can name; remove those that the model doesn't need from eos_token_id"
        )
    return eot, not_ending[0] if not_ending else None


def _configured_additions(special: SpecialIds, ids: Mapping[str, int | None]) -> tuple[bool, bool]:
    """Return whether the reader of a tokenizer.model adds bos and eos; llama.cpp aborts if there is none to add."""
    config = special.files.tokenizer_config
    adds_bos, adds_eos = config.get("add_bos_token"), config.get("add_eos_token")
    by_class = config.get("tokenizer_class", DEFAULT_CLASS) in ADDS_BOS_BY_DEFAULT
    adds = {"bos": adds_bos if isinstance(adds_bos, bool) else by_class, "eos": adds_eos is True}
    for name in adds:
        if adds[name] and ids[name] is None:
            raise TokenizerError(
                f"{special.vocabulary.origin}: add_{name}_token is true but no {name} token is named; name one or set "
                "it to false"
            )
    return adds["bos"], adds["eos"]
