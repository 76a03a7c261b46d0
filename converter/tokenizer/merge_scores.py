"""SentencePiece-style BPE in a tokenizer.json (Llama 2 and kin): tokenizer model "llama", scores from the merges.

llama.cpp's SentencePiece tokenizer joins the two neighbours whose joint piece has the highest score. The tokenizers
library joins the pair with the lowest rank among the merges. Both give the same result if (1) every way to split a
piece into two pieces is among the merges and (2) the merges that make one piece follow each other. Both conditions are
checked here. A piece's score is then minus its position among the pieces in the order of the merges; for a converted
SentencePiece model that is the score it had there.
"""

from __future__ import annotations

from collections.abc import Mapping

from gguf import Keys, TokenType

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import Metadata, boolean, string
from tritgguf.converter.tokenizer.files import TOKENIZER_JSON, AddedToken, SideFiles, token_text
from tritgguf.converter.tokenizer.first_space import first_space
from tritgguf.converter.tokenizer.post_processor import around_text, beyond_llama_cpp, overruled
from tritgguf.converter.tokenizer.source import SourceTokenizer, always
from tritgguf.converter.tokenizer.space_runs import SPACES_NOTE, cut_out_before_merging, runs_of_spaces
from tritgguf.converter.tokenizer.spaces import SPACE, Spaces, spaces_of
from tritgguf.converter.tokenizer.special_ids import SpecialIds, special_metadata
from tritgguf.converter.tokenizer.tokenizer_json import BpeJson, TokenizerJson, words_beyond_merging
from tritgguf.converter.tokenizer.vocabulary import Vocabulary

BYTE_PIECES = {f"<0x{byte:02X}>" for byte in range(256)}


def has_byte_pieces(source: TokenizerJson) -> bool:
    """Return whether characters that the vocabulary lacks become <0x00> … <0xFF>, as in SentencePiece."""
    return bool(source.model.get("byte_fallback", False))


def merge_scored_tokenizer(source: BpeJson, files: SideFiles, n_vocab: int) -> SourceTokenizer:
    """Convert a SentencePiece-style BPE tokenizer; raise TokenizerError if scores can't replace its merges."""
    missing = BYTE_PIECES - source.vocab.keys()
    if missing:
        raise TokenizerError(
            f"{TOKENIZER_JSON}: byte_fallback is on but {len(missing)} byte pieces such as {min(missing)} are missing"
        )
    spaces = spaces_of(source.structure.get("normalizer"), source.structure.get("pre_tokenizer"))
    unknown = source.structure["model"].get("unk_token")
    added = {token.text for token in source.added_tokens}
    runs = runs_of_spaces(source.pairs(), added)
    scores = _scores(source, added, spaces, runs)
    vocabulary = Vocabulary(n_vocab, TOKENIZER_JSON)
    for text, token_id in source.vocab.items():
        vocabulary.put(
            token_id, text, TokenType.BYTE if text in BYTE_PIECES else TokenType.NORMAL, scores.get(text, 0.0)
        )
    left_out = _image_tokens(source, files, n_vocab)
    # As added tokens llama.cpp would print runs of spaces as they are written, and not as spaces.
    vocabulary.put_added(t for t in source.added_tokens if t.text not in runs and t not in left_out)
    if unknown in source.vocab:
        vocabulary.put(source.vocab[unknown], unknown, TokenType.UNKNOWN)
    vocabulary.check()
    around = around_text(source.structure.get("post_processor"))
    defaults = {"unk": source.vocab[unknown]} if unknown in source.vocab else {}
    metadata: Metadata = {
        Keys.Tokenizer.MODEL: string("llama"),
        Keys.Tokenizer.PRE: string("default"),
        **vocabulary.metadata(with_scores=True),
        Keys.Tokenizer.ADD_PREFIX: boolean(spaces.prefix != "never"),
        **special_metadata(SpecialIds(files, vocabulary, defaults, around)),
    }
    first = first_space(metadata, vocabulary) if spaces.prefix == "first" else None
    if first is not None:
        metadata[Keys.Tokenizer.ADD_PREFIX] = boolean(first.adds)
    beyond = beyond_llama_cpp(around, metadata)
    return SourceTokenizer(
        kind="sentencepiece",
        metadata=metadata,
        special_tokens=vocabulary.special_texts(),
        encode_with_source=source.reference,
        comparable=(lambda text: SPACE not in text) if runs else always,
        notes=beyond
        + overruled(around, files.tokenizer_config)
        + ((SPACES_NOTE,) if runs else ())
        + ((first.note,) if first else ())
        + tuple(f"{token.text!r:.80} is left out: the model has no embedding for images" for token in left_out),
        hint="; ".join(filter(None, [*beyond, spaces.difference, *source.differences()])),
        compared=first,
    )


def _image_tokens(source: TokenizerJson, files: SideFiles, n_vocab: int) -> list[AddedToken]:
    """Return the tokens for images that a text model, as Gemma 3 1B, has no embeddings for."""
    text = token_text(files.tokenizer_config.get("image_token"))
    return [token for token in source.added_tokens if token.text == text and token.token_id >= n_vocab]


def _scores(source: BpeJson, added: set[str], spaces: Spaces, runs: Mapping[str, float]) -> dict[str, float]:
    """Return the score of each piece that a merge makes; llama.cpp never looks at the score of any other."""
    _check_nothing_ignored(source)
    pairs = source.pairs()
    known = set(pairs)
    scores: dict[str, float] = {}
    previous = None
    for left, right in pairs:
        piece = left + right
        if piece in runs or cut_out_before_merging(piece, added):
            continue
        if piece != previous and piece in scores:
            raise TokenizerError(
                f"{TOKENIZER_JSON}: the merges into {piece!r} don't follow each other, "
                "so no single score can replace their ranks"
            )
        scores.setdefault(piece, -float(len(scores)))
        previous = piece
    for piece in source.vocab.keys() - added - BYTE_PIECES:
        if spaces.split and SPACE in piece[1:]:
            raise TokenizerError(
                f"{TOKENIZER_JSON}: Metaspace splits at each space, but piece {piece!r} holds one inside"
            )
        for cut in range(1, len(piece)):
            pair = (piece[:cut], piece[cut:])
            if pair[0] in source.vocab and pair[1] in source.vocab and pair not in known:
                raise TokenizerError(
                    f"{TOKENIZER_JSON}: llama.cpp would join {pair[0]!r} and {pair[1]!r} into {piece!r}, "
                    "which no merge allows"
                )
    return {**scores, **runs}


def _check_nothing_ignored(source: BpeJson) -> None:
    beyond = words_beyond_merging(source) if source.ignores_merges() else []
    if beyond:
        raise TokenizerError(
            f"{TOKENIZER_JSON}: ignore_merges is true and no merge makes {len(beyond)} pieces such as {beyond[0]!r}; "
            "llama.cpp's SentencePiece tokenizer only merges"
        )
