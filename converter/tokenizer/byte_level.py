"""Byte-level BPE: from tokenizer.json to llama.cpp's tokenizer model "gpt2" and its name for the pre-tokenizer."""

from __future__ import annotations

from collections.abc import Mapping

from gguf import Keys, TokenType

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import Metadata, string, strings
from tritgguf.converter.tokenizer.files import TOKENIZER_JSON, SideFiles
from tritgguf.converter.tokenizer.post_processor import around_text, beyond_llama_cpp, overruled
from tritgguf.converter.tokenizer.pretokenizers import PRE_TOKENIZERS, PreTokenizer, candidates, steps_of
from tritgguf.converter.tokenizer.source import SourceTokenizer
from tritgguf.converter.tokenizer.special_ids import SpecialIds, special_metadata
from tritgguf.converter.tokenizer.tokenizer_json import BpeJson, words_beyond_merging
from tritgguf.converter.tokenizer.vocabulary import Vocabulary

NFC_NOTE = (
    "the tokenizer composes accents (Unicode NFC) before it splits; llama.cpp doesn't, "
    "so text that isn't in NFC gets other ids there"
)


def byte_level_tokenizer(source: BpeJson, files: SideFiles, n_vocab: int) -> SourceTokenizer:
    """Convert a byte-level BPE tokenizer; raise TokenizerError if llama.cpp has no pre-tokenizer like its own."""
    vocabulary = Vocabulary(n_vocab, TOKENIZER_JSON)
    vocabulary.put_all(source.vocab, TokenType.NORMAL)
    vocabulary.put_added(source.added_tokens)
    vocabulary.check()
    composes = _composes_accents(source.structure.get("normalizer"))
    pre_tokenizer = _pre_tokenizer(source)
    metadata: Metadata = {
        Keys.Tokenizer.MODEL: string("gpt2"),
        Keys.Tokenizer.PRE: string(pre_tokenizer.name),
        **vocabulary.metadata(with_scores=False),
        Keys.Tokenizer.MERGES: strings(source.merges),
    }
    around = around_text(source.structure.get("post_processor"))
    metadata |= special_metadata(SpecialIds(files, vocabulary, _unknown(source, vocabulary), around))
    beyond = beyond_llama_cpp(around, metadata)
    return SourceTokenizer(
        kind="bpe",
        metadata=metadata,
        special_tokens=vocabulary.special_texts(),
        encode_with_source=source.reference,
        normalizes_nfc=composes,
        notes=((NFC_NOTE,) if composes else ()) + beyond + overruled(around, files.tokenizer_config),
        hint="; ".join(filter(None, [*beyond, pre_tokenizer.difference, *source.differences()])),
    )


def _pre_tokenizer(source: BpeJson) -> PreTokenizer:
    """Return the row that splits and merges like the source; raise TokenizerError where there is none."""
    steps = steps_of(source.structure.get("pre_tokenizer"))
    rows = candidates(steps)
    if not rows:
        raise TokenizerError(
            f"{TOKENIZER_JSON}: pre-tokenizer {' → '.join(map(repr, steps)) or 'missing'} isn't known; expected one of "
            f"{', '.join(row.name for row in PRE_TOKENIZERS)}, since a wrong one gives wrong ids"
        )
    for row in rows:
        if row.merges_ignored == source.ignores_merges():
            return row
    beyond = words_beyond_merging(source)
    if beyond:
        raise TokenizerError(
            f"{TOKENIZER_JSON}: ignore_merges is {source.ignores_merges()}, llama.cpp's {rows[0].name} has "
            f"the opposite, and {len(beyond)} tokens such as {beyond[0]!r} would be split differently"
        )
    return rows[0]


def _composes_accents(normalizer: object) -> bool:
    """Return whether the normalizer is NFC; raise TokenizerError for any other, since llama.cpp has none."""
    match normalizer:
        case None | {"type": "Sequence", "normalizers": []}:
            return False
        case {"type": "NFC"} | {"type": "Sequence", "normalizers": [{"type": "NFC"}]}:
            return True
        case _:
            found = normalizer.get("type") if isinstance(normalizer, Mapping) else normalizer
            raise TokenizerError(
                f"{TOKENIZER_JSON}: normalizer {found} changes the text; llama.cpp has no normalizer for byte-level BPE"
            )


def _unknown(source: BpeJson, vocabulary: Vocabulary) -> dict[str, int]:
    unknown = source.structure["model"].get("unk_token")
    token_id = vocabulary.ids.get(unknown) if unknown else None
    return {} if token_id is None else {"unk": token_id}
