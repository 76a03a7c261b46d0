"""The token list of a GGUF file: each id has one token, each text appears once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import repeat

from gguf import Keys, TokenType

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import Metadata, float32s, int32s, strings
from tritgguf.converter.tokenizer.files import AddedToken

# Lower than any piece's score: llama.cpp merges the pair with the highest score first.
UNUSED_SCORE = -1e6
# Types of tokens that llama.cpp cuts out of a prompt before it tokenizes the rest.
CUT_OUT = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


class Vocabulary:
    """Tokens by id, up to `n_vocab`, the rows of the embedding matrix; `origin` is the file named in errors."""

    def __init__(self, n_vocab: int, origin: str) -> None:
        self.n_vocab = n_vocab
        self.origin = origin
        self.texts: dict[int, str] = {}
        self.ids: dict[str, int] = {}  # by text; `check` raises where two ids share a text
        self.types: dict[int, int] = {}  # numbers of TokenType
        self.scores: dict[int, float] = {}
        self.cut_out: set[int] = set()  # the few ids whose type is in CUT_OUT

    def put(self, token_id: int, text: str, token_type: TokenType, score: float = 0.0) -> None:
        """Give an id its token; raise TokenizerError if the id has another text already."""
        taken = self.texts.get(token_id)
        if taken is not None and taken != text:
            raise TokenizerError(
                f"{self.origin}: id {token_id} belongs to two tokens, {taken!r:.80} and {text!r:.80}; expected one"
            )
        self.texts[token_id], self.ids[text] = text, token_id
        self.types[token_id] = token_type.value
        self.cut_out.discard(token_id)
        if token_type in CUT_OUT:
            self.cut_out.add(token_id)
        if score:
            self.scores.setdefault(token_id, score)

    def put_all(self, ids: Mapping[str, int], token_type: TokenType) -> None:
        """Give many ids their tokens; raise TokenizerError if two tokens share an id."""
        texts = dict(zip(ids.values(), ids, strict=True))
        if self.texts or len(texts) < len(ids) or token_type in CUT_OUT:
            for text, token_id in ids.items():
                self.put(token_id, text, token_type)
        else:
            self.texts, self.ids, self.types = texts, dict(ids), dict.fromkeys(texts, token_type.value)

    def put_added(self, tokens: Iterable[AddedToken]) -> None:
        for token in tokens:
            self.put(token.token_id, token.text, TokenType.CONTROL if token.special else TokenType.USER_DEFINED)

    def check(self) -> None:
        """Raise TokenizerError for more tokens than `n_vocab`, two ids with one text, or a NUL: llama.cpp aborts."""
        n_tokens = max(self.texts, default=-1) + 1
        if n_tokens > self.n_vocab:
            raise TokenizerError(
                f"{self.origin} has {n_tokens} tokens but config.json's vocab_size is {self.n_vocab}; remove the added "
                "tokens that the model has no embedding rows for, or resize the model's embeddings"
            )
        if not n_tokens:
            raise TokenizerError(f"{self.origin} holds no tokens; expected {self.n_vocab}")
        if "\0" in "".join(self.ids):
            text = next(text for text in self.ids if "\0" in text)
            raise TokenizerError(f"{self.origin}: token {text!r:.80} holds a NUL, where llama.cpp ends a text")
        if len(self.ids) == len(self.texts):
            return
        seen: dict[str, int] = {}
        for token_id, text in self.texts.items():
            if text in seen:
                raise TokenizerError(
                    f"{self.origin}: token {text!r:.80} has ids {seen[text]} and {token_id}; "
                    "a GGUF vocabulary has each text once"
                )
            seen[text] = token_id

    def special_texts(self) -> tuple[str, ...]:
        """Return the texts that llama.cpp cuts out of a prompt before it tokenizes the rest, by id."""
        return tuple(self.texts[token_id] for token_id in sorted(self.cut_out))

    def metadata(self, *, with_scores: bool) -> Metadata:
        """Return tokens, scores if asked for, and token types; ids without a token become [PADn] of type UNUSED."""
        ids, known = range(self.n_vocab), self.texts
        texts = [known[token_id] if token_id in known else _free_name(token_id, self.ids) for token_id in ids]
        keys: Metadata = {Keys.Tokenizer.LIST: strings(texts)}
        if with_scores:
            scores = [self.scores.get(token_id, 0.0) if token_id in known else UNUSED_SCORE for token_id in ids]
            keys[Keys.Tokenizer.SCORES] = float32s(scores)
        keys[Keys.Tokenizer.TOKEN_TYPE] = int32s(list(map(self.types.get, ids, repeat(TokenType.UNUSED.value))))
        return keys


def _free_name(token_id: int, taken: Mapping[str, int]) -> str:
    name = f"[PAD{token_id}]"
    while name in taken:
        name = f"[{name}]"
    return name
