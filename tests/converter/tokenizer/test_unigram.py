"""Unigram: tokenizer.json and tokenizer.model become llama.cpp's tokenizer model "t5"."""

import base64
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from gguf import TokenType

import tritgguf.runtime
from tests import checkpoints
from tests.checkpoint_recipes import RECIPES
from tests.tokenizer_folders import (
    MERGE_SPACES,
    STRIP,
    metaspace,
    normalizing,
    scored_pieces,
    trained_unigram_structure,
    unigram_model,
    unigram_structure,
    write_json,
)
from tests.vocab_file import check_in_this_process, write_vocab_file
from tritgguf.converter import convert
from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import Value, boolean, float32s, uint8s
from tritgguf.converter.tokenizer import SourceTokenizer, read_tokenizer
from tritgguf.converter.tokenizer.battery import TEXTS, battery
from tritgguf.converter.tokenizer.sentencepiece_proto import model_with_charsmap, parse_model
from tritgguf.runtime.engine.token_ids import token_ids

N_VOCAB = 800
PREFIX, MERGES, CHARSMAP, SCORES = (
    f"tokenizer.ggml.{name}"
    for name in ("add_space_prefix", "remove_extra_whitespaces", "precompiled_charsmap", "scores")
)
WORDS = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace("always")]}
model = cache(unigram_model)


@cache
def charsmap() -> bytes:
    return parse_model(model()).charsmap


def structure(
    pre_tokenizer: object = metaspace("always"), *steps: Mapping[str, Any], rewrites: bool = True, **changes: Any
) -> dict[str, Any]:
    """A Unigram tokenizer.json; T5's with one pre-tokenizer and these two steps."""
    normalizer = normalizing(charsmap() if rewrites else b"", *steps)
    return unigram_structure(scored_pieces(model()), normalizer, pre_tokenizer, **changes)


def t5(**changes: Any) -> dict[str, Any]:
    return structure(metaspace("always"), STRIP, MERGE_SPACES, **changes)


def read(folder: Path, content: bytes | Mapping[str, Any], **tokenizer_config: Any) -> SourceTokenizer:
    if isinstance(content, bytes):
        (folder / "tokenizer.model").write_bytes(content)
    else:
        write_json(folder / "tokenizer.json", content)
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    return read_tokenizer(folder, n_vocab=N_VOCAB, config={"eos_token_id": 2})


def check(folder: Path, tokenizer: SourceTokenizer) -> int:
    n_texts = check_in_this_process(tokenizer, write_vocab_file(folder / "vocab.gguf", tokenizer.metadata))
    assert n_texts == len(battery(tokenizer))
    return n_texts


def left_out(tokenizer: SourceTokenizer) -> set[str]:
    return set(TEXTS) - set(battery(tokenizer))


def data(tokenizer: SourceTokenizer, key: str) -> Any:
    return tokenizer.metadata[f"tokenizer.ggml.{key}"].data


def test_a_model_file_becomes_its_pieces_scores_and_charsmap(tmp_path: Path) -> None:
    tokenizer = read(tmp_path, model())
    pieces = scored_pieces(model())
    assert tokenizer.kind == "unigram"
    assert data(tokenizer, "model") == "t5"
    assert data(tokenizer, "tokens")[: len(pieces)] == [text for text, _ in pieces]
    assert data(tokenizer, "scores")[: len(pieces)] == [score for _, score in pieces]
    assert data(tokenizer, "token_type")[:4] == [TokenType.UNKNOWN, *[TokenType.CONTROL] * 2, TokenType.NORMAL]
    assert (tokenizer.metadata[PREFIX].data, tokenizer.metadata[MERGES].data) == (True, True)
    assert bytes(tokenizer.metadata[CHARSMAP].data) == charsmap()
    assert data(tokenizer, "add_eos_token") is False  # llama.cpp adds eos where the key is missing
    processor = sentencepiece.SentencePieceProcessor(model_proto=model())
    assert [tokenizer.encode(text) for text in TEXTS if "<" not in text] == [
        processor.encode(text) for text in TEXTS if "<" not in text
    ]
    assert check(tmp_path, tokenizer) > 180
    assert left_out(tokenizer) <= {"a" * 100, "ab" * 150}


@pytest.mark.parametrize("add_eos", [True, False])
def test_eos_is_added_as_the_configuration_says(add_eos: bool, tmp_path: Path) -> None:
    tokenizer = read(tmp_path, model(), add_bos_token=not add_eos, add_eos_token=add_eos)
    assert tokenizer.encode_prompt("")[-1:] == [2 if add_eos else 1]
    assert check(tmp_path, tokenizer) > 180


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "identity"},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
        {"normalization_rule_name": "nfkc_cf", "user_defined_symbols": "<sep>,[INST]"},
    ],
)
def test_other_models(options: dict[str, Any], tmp_path: Path) -> None:
    assert check(tmp_path, read(tmp_path, model(**options))) > 180


def test_a_space_before_the_first_text_alone_is_compared_on_texts_alone(tmp_path: Path) -> None:
    tokenizer = read(tmp_path, model(), legacy=False)
    assert any("before the first text alone" in note for note in tokenizer.notes)
    assert 150 < check(tmp_path, tokenizer) < 180


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"byte_fallback": True, "vocab_size": 900},
            "a unigram model whose byte_fallback writes unknown characters as bytes",
        ),
        ({"remove_extra_whitespaces": False}, "keeps all spaces and puts one before a text"),
        ({"add_dummy_prefix": False}, "removes extra spaces and puts none before a text"),
        ({"treat_whitespace_as_suffix": True}, "puts spaces behind words"),
    ],
)
def test_models_that_llama_cpp_would_read_otherwise(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"^tokenizer\.model is a [^\n]*$") as caught:
        read(tmp_path, model(**options))
    assert message in str(caught.value)


def test_a_model_with_unused_pieces_is_refused(tmp_path: Path) -> None:
    text, _ = scored_pieces(model())[-1]
    piece = bytes([1 << 3 | 2, len(text.encode())]) + text.encode() + bytes([2 << 3 | 5]) + b"\0\0\0\xc1"
    assert piece[:-4] in model()
    place = model().rindex(piece[:-4]) + len(piece)
    head = model().rindex(piece[:-4]) - 1
    unused = model()[:head] + bytes([model()[head] + 2]) + model()[head + 1 : place] + bytes([3 << 3, 5])
    with pytest.raises(TokenizerError, match="pieces marked unused"):
        read(tmp_path, unused + model()[place:])


DECOMPOSED = {"Tie\u0302\u0301ng Vie\u0323\u0302t", "\u1112\u1161\u11ab\u1100\u1173\u11af"}
WRITTEN = {"▁ ▁▁ a▁b"}
LINE_ENDS = {"\r\n", "line one\nline two\r\nline three\rline four"}


@pytest.mark.parametrize(
    ("written", "not_compared"),
    [
        (t5, DECOMPOSED | WRITTEN),
        (lambda: structure(WORDS), DECOMPOSED | WRITTEN | {"next\x85line"}),
        (lambda: structure(metaspace("never")), DECOMPOSED | LINE_ENDS),
        (lambda: structure(metaspace("never", split=False)), DECOMPOSED | LINE_ENDS),
        (lambda: structure(metaspace("never"), rewrites=False), set()),
        (lambda: structure(WORDS, rewrites=False), None),
        (lambda: structure(metaspace("always"), STRIP, MERGE_SPACES, rewrites=False), None),
    ],
)
def test_tokenizer_json(written: Any, not_compared: set[str] | None, tmp_path: Path) -> None:
    tokenizer = read(tmp_path, written())
    assert check(tmp_path, tokenizer) > 150
    if not_compared is None:  # every text with a newline at its end or, where they split, in it
        assert all(text == WRITTEN or any(map(str.isspace, text)) for text in left_out(tokenizer))
    else:
        assert left_out(tokenizer) == not_compared
    assert bool(tokenizer.notes) == (not_compared != set())


def test_both_files_of_one_model_become_the_same_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    from_json, from_model = (
        read(tmp_path, t5(), bos_token="<s>"),
        read(tmp_path / "other", model(), add_bos_token=False),
    )
    assert from_json.metadata == from_model.metadata


def test_special_tokens_in_wide_letters_are_found_by_the_library_alone(tmp_path: Path) -> None:
    tokenizer = read(tmp_path, t5())
    text = "x ＜/s＞ y"
    (found,) = token_ids(write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata), [text])
    assert 2 in tokenizer.encode(text)
    assert 2 not in found
    assert not tokenizer.comparable(text)
    assert any("＜s＞" in note for note in tokenizer.notes)


@pytest.mark.parametrize("scheme_keeps_spaces", [True, False])
def test_metaspace_first(scheme_keeps_spaces: bool, tmp_path: Path) -> None:
    steps = () if scheme_keeps_spaces else (STRIP, MERGE_SPACES)
    tokenizer = read(tmp_path, structure(metaspace("first"), *steps))
    assert any("before the first text alone" in note for note in tokenizer.notes)
    assert 140 < check(tmp_path, tokenizer) < 170


def test_what_is_added_around_a_prompt(tmp_path: Path) -> None:
    around = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            text: {"id": text, "ids": [token_id], "tokens": [text]} for text, token_id in (("<s>", 1), ("</s>", 2))
        },
    }
    tokenizer = read(tmp_path, t5() | {"post_processor": around})
    assert tokenizer.encode_prompt("") == [1, 2]
    assert check(tmp_path, tokenizer) > 180


def test_scores_of_64_bits_are_rounded_and_a_note_says_so(tmp_path: Path) -> None:
    tokenizer = read(tmp_path, trained_unigram_structure(charsmap()))
    assert any("more digits than GGUF's 32-bit floats" in note for note in tokenizer.notes)
    assert check(tmp_path, tokenizer) > 170  # training isn't the same each time, nor which texts rounding matters for
    assert len(left_out(tokenizer) - DECOMPOSED - WRITTEN) < 12


def test_a_space_kept_at_a_text_s_end_fails_the_check_and_is_named(tmp_path: Path) -> None:
    tokenizer = read(tmp_path, structure(metaspace("always"), MERGE_SPACES))
    with pytest.raises(TokenizerError, match="the tokenizer keeps a space that ends a text"):
        check(tmp_path, tokenizer)


def without(key: str) -> Any:
    return lambda keys: {name: value for name, value in keys.items() if name != key}


WRONG_KEYS = {
    "no charsmap": without(CHARSMAP),
    "another charsmap": lambda keys: {
        **keys, CHARSMAP: uint8s(parse_model(model(normalization_rule_name="nmt_nfkc_cf")).charsmap)
    },
    "extra spaces kept": without(MERGES),
    "scores shifted": lambda keys: {**keys, SCORES: float32s([0.0, *keys[SCORES].data[:-1]])},
    "scores rounded": lambda keys: {**keys, SCORES: float32s([float(round(score)) for score in keys[SCORES].data])},
    "eos as llama.cpp adds it": without("tokenizer.ggml.add_eos_token"),
    "pieces without U+2581": lambda keys: {
        **keys,
        "tokenizer.ggml.tokens": Value(
            [text.replace("▁", "▂") for text in keys["tokenizer.ggml.tokens"].data],
            *(keys["tokenizer.ggml.tokens"].type, keys["tokenizer.ggml.tokens"].element),
        ),
    },
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_KEYS.values(), ids=WRONG_KEYS)
@pytest.mark.parametrize("source", ["tokenizer.model", "tokenizer.json"])
def test_wrong_keys_fail_the_check(source: str, wrong: Any, tmp_path: Path) -> None:
    tokenizer = read(tmp_path, model() if source == "tokenizer.model" else t5())
    file = write_vocab_file(tmp_path / "vocab.gguf", wrong(tokenizer.metadata))
    with pytest.raises(TokenizerError, match="becomes other token ids"):
        check_in_this_process(tokenizer, file)


def test_the_other_prefix_fails_the_check(tmp_path: Path) -> None:
    tokenizer = read(tmp_path, structure(metaspace("never")))
    keys = {**tokenizer.metadata, PREFIX: boolean(True)}
    with pytest.raises(TokenizerError, match="becomes other token ids"):
        check_in_this_process(tokenizer, write_vocab_file(tmp_path / "vocab.gguf", keys))


def damaged_charsmap() -> dict[str, Any]:
    changed = t5()
    cut = base64.b64encode(charsmap()[:1000]).decode()
    changed["normalizer"]["normalizers"][0]["precompiled_charsmap"] = cut
    return changed


def lowest_special() -> dict[str, Any]:
    changed = t5()
    changed["model"]["vocab"][1][1] = -1000.0
    return changed


def with_piece(*piece: object) -> dict[str, Any]:
    changed = t5()
    changed["model"]["vocab"][-1] = list(piece)
    return changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda: t5(byte_fallback=True), "byte_fallback writes unknown characters as bytes"),
        (lambda: t5(unk_id=None), "the Unigram model's unk_id is None"),
        (lambda: t5(unk_id=5000), "the Unigram model's unk_id is 5000"),
        (lambda: t5(vocab={"a": 0}), "unk_id is 0; expected the place of a piece in vocab"),
        (damaged_charsmap, "precompiled_charsmap has 1000 bytes and says"),
        (lowest_special, "a special token has the lowest score of all pieces"),
        (lambda: with_piece("a▁b", -1.0), "splits at each space, but piece 'a▁b' holds one inside"),
        (lambda: with_piece("a"), "piece ['a'] isn't a text and a score"),
        (lambda: with_piece("a\0b", -1.0), "holds a NUL"),
        (lambda: with_piece("odd", -1e300), "beyond 32-bit floats"),
        (lambda: structure(metaspace("always")), "keeps all spaces and puts one before a text"),
        (lambda: structure(metaspace("never"), STRIP, MERGE_SPACES), "removes extra spaces and puts none before"),
        (lambda: structure(metaspace("always"), STRIP, rewrites=False), "isn't how SentencePiece treats spaces"),
        (
            lambda: structure(WORDS, {"type": "NFKC"}, rewrites=False),
            "normalizer Sequence with pre-tokenizer",
        ),
        (lambda: structure({"type": "ByteLevel"}, rewrites=False), "pre-tokenizer ByteLevel isn't how"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(changed: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"^tokenizer\.json[: ][^\n]*$") as caught:
        read(tmp_path, changed())
    assert message in str(caught.value)


def test_a_rewriter_rewrites_as_the_model_that_its_charsmap_is_from() -> None:
    rewriter = sentencepiece.SentencePieceProcessor(model_proto=model_with_charsmap(charsmap()))
    plain = model(add_dummy_prefix=False, remove_extra_whitespaces=False)
    processor = sentencepiece.SentencePieceProcessor(model_proto=plain)
    assert [rewriter.normalize(text).replace(" ", "▁") for text in TEXTS] == list(map(processor.normalize, TEXTS))


TEMPLATE = "{% for m in messages %}{{ '<s> ' + m['role'] + ' ' + m['content'] + '</s>' }}{% endfor %}"


def test_a_model_with_a_unigram_tokenizer_is_converted_checked_and_chats(tmp_path: Path) -> None:
    recipe = replace(RECIPES["llama-gqa"], vocab=N_VOCAB)
    folder = checkpoints.build("llama-gqa", tmp_path / "model", recipe)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    tokenizer = read(folder, t5(), chat_template=TEMPLATE, bos_token="<s>", eos_token="</s>")
    file = tmp_path / "model.gguf"
    convert(folder, file)
    with tritgguf.runtime.open(file, n_ctx=128) as session:
        messages = [{"role": "user", "content": "two  spaces, ﬁne"}]
        assert session.chat_tokens(messages) == tokenizer.encode("<s> user two  spaces, ﬁne</s>")
        assert session.tokenize("The quick brown fox") == tokenizer.encode("The quick brown fox")
        assert session.detokenize(session.tokenize("The quick brown fox")).strip() == "The quick brown fox"
        assert isinstance("".join(session.chat(messages, max_tokens=8, temperature=0)), str)
        assert session.stats.n_generated > 0
