"""WordPiece: BERT's tokenizer.json becomes llama.cpp's tokenizer model "bert"."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType

import tritgguf.runtime
from tests import checkpoints
from tests.checkpoint_recipes import RECIPES
from tests.tokenizer_folders import metaspace, wordpiece_structure, write_json
from tests.vocab_file import check_in_this_process, write_vocab_file
from tritgguf.converter import convert
from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import Metadata, boolean, strings, uint32
from tritgguf.converter.tokenizer import SourceTokenizer, read_tokenizer
from tritgguf.converter.tokenizer.battery import TEXTS, battery
from tritgguf.converter.tokenizer.wordpiece import LOWERCASE, STRIP_ACCENTS

N_VOCAB = 1000
TOKENS, SEP = "tokenizer.ggml.tokens", "tokenizer.ggml.seperator_token_id"
CONTROL_SPACES = {"\x0b\x0c vertical\x0band form\x0cfeed", "next\x85line", "\x01\x02\x1f\x7f"}
ALWAYS_LEFT_OUT = CONTROL_SPACES | {"ab" * 150, "▁ ▁▁ a▁b"}
trained = cache(wordpiece_structure)


def structure(*, lowercase: bool = True, strip_accents: bool | None = None) -> dict[str, Any]:
    return deepcopy(trained(lowercase=lowercase, strip_accents=strip_accents))


def read(folder: Path, content: object, **tokenizer_config: Any) -> SourceTokenizer:
    write_json(folder / "tokenizer.json", content)
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    return read_tokenizer(folder, n_vocab=N_VOCAB, config={"eos_token_id": 3})


def check(folder: Path, tokenizer: SourceTokenizer) -> int:
    return check_in_this_process(tokenizer, write_vocab_file(folder / "vocab.gguf", tokenizer.metadata))


def left_out(tokenizer: SourceTokenizer) -> set[str]:
    return set(TEXTS) - set(battery(tokenizer))


def test_pieces_are_stored_as_llama_cpp_looks_them_up(tmp_path: Path) -> None:
    tokenizer = read(tmp_path, structure())
    data = {key.removeprefix("tokenizer.ggml."): value.data for key, value in tokenizer.metadata.items()}
    assert (tokenizer.kind, data["model"]) == ("wordpiece", "bert")
    assert data["tokens"][:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert data["token_type"][:5] == [TokenType.CONTROL, TokenType.UNKNOWN, *[TokenType.CONTROL] * 3]
    for text, token_id in structure()["model"]["vocab"].items():
        if token_id > 4:
            assert data["tokens"][token_id] == (text[2:] if text[:2] == "##" and text != "##" else f"▁{text}")
    assert (data["bos_token_id"], data["seperator_token_id"], data["unknown_token_id"]) == (2, 3, 1)
    assert (data["normalizer.lowercase"], data["normalizer.strip_accents"]) == (True, True)


@pytest.mark.parametrize(
    ("lowercase", "strip_accents", "also_left_out"),
    [
        (False, None, set()),
        (True, False, {"ŀ ǆ ſ ß ẞ ı İ"}),
        (True, None, {"नमस्ते दुनिया", "안녕하세요 세계"}),
        (False, True, {"नमस्ते दुनिया", "안녕하세요 세계"}),
    ],
)
def test_the_same_ids_in_llama_cpp(
    lowercase: bool, strip_accents: bool | None, also_left_out: set[str], tmp_path: Path
) -> None:
    tokenizer = read(tmp_path, structure(lowercase=lowercase, strip_accents=strip_accents))
    assert check(tmp_path, tokenizer) == len(battery(tokenizer)) > 180
    assert left_out(tokenizer) >= ALWAYS_LEFT_OUT | also_left_out
    assert len(left_out(tokenizer)) <= 13
    assert len(tokenizer.notes) == 3 + bool(also_left_out)


def test_shorter_words_may_be_the_limit(tmp_path: Path) -> None:
    changed = structure()
    changed["model"]["max_input_chars_per_word"] = 20
    tokenizer = read(tmp_path, changed)
    assert "antidisestablishmentarianism" in left_out(tokenizer)
    assert tokenizer.encode("antidisestablishmentarianism") == [1]
    assert check(tmp_path, tokenizer) > 160


def kept_marks(keys: Metadata) -> Metadata:
    texts = structure()["model"]["vocab"]
    return {**keys, TOKENS: strings([*texts, *map(str, keys[TOKENS].data[len(texts) :])])}  # type: ignore[index]


@pytest.mark.parametrize(
    "wrong",
    [
        kept_marks,
        lambda keys: {**keys, LOWERCASE: boolean(False)},
        lambda keys: {**keys, STRIP_ACCENTS: boolean(False)},
        lambda keys: {**keys, SEP: uint32(4)},
        lambda keys: {**keys, "tokenizer.ggml.bos_token_id": uint32(4)},
        lambda keys: {**keys, "tokenizer.ggml.unknown_token_id": uint32(4)},
    ],
)
def test_wrong_keys_fail_the_check(wrong: Callable[[Metadata], Metadata], tmp_path: Path) -> None:
    tokenizer = read(tmp_path, structure())
    file = write_vocab_file(tmp_path / "vocab.gguf", wrong(tokenizer.metadata))
    with pytest.raises(TokenizerError, match="becomes other token ids"):
        check_in_this_process(tokenizer, file)


def model(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].update(changes)


def normalizer(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["normalizer"].update(changes)


def part(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({name: value})


def with_piece(text: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"]["vocab"].update({text: len(content["model"]["vocab"])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (model(unk_token="<none>"), "unk_token is '<none>'; expected a text in vocab"),
        (model(continuing_subword_prefix="@@"), "continuing_subword_prefix is '@@'; only ## can be converted"),
        (model(max_input_chars_per_word=0), "max_input_chars_per_word is 0"),
        (model(vocab=[]), "expected a text in vocab"),
        (normalizer(clean_text=False), "BertNormalizer sets clean_text to False"),
        (normalizer(handle_chinese_chars=False), "BertNormalizer sets handle_chinese_chars to False"),
        (part("normalizer", None), "normalizer none with pre-tokenizer BertPreTokenizer"),
        (part("normalizer", {"type": "NFC"}), "normalizer NFC with pre-tokenizer BertPreTokenizer"),
        (part("pre_tokenizer", metaspace("always")), "with pre-tokenizer Metaspace"),
        (part("post_processor", None), "puts ids [] before a text and [] after it; llama.cpp's WordPiece always puts"),
        (with_piece("##▁x"), "piece '##▁x' continues a word with ▁"),
        (with_piece("##[MASK]"), "token '[MASK]' has ids"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    content = structure()
    change(content)
    with pytest.raises(TokenizerError, match=r"^tokenizer\.json[: ][^\n]*$") as caught:
        read(tmp_path, content)
    assert message in str(caught.value)


TEMPLATE = "{% for m in messages %}{{ '[CLS] ' + m['content'] + ' [SEP]' }}{% endfor %}"


def test_a_model_with_a_wordpiece_tokenizer_is_converted_checked_and_chats(tmp_path: Path) -> None:
    folder = checkpoints.build("llama-gqa", tmp_path / "model", replace(RECIPES["llama-gqa"], vocab=N_VOCAB))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).unlink(missing_ok=True)
    tokenizer = read(folder, structure(), chat_template=TEMPLATE, eos_token="[SEP]")
    file = tmp_path / "model.gguf"
    convert(folder, file)
    with tritgguf.runtime.open(file, n_ctx=128) as session:
        messages = [{"role": "user", "content": "Thé QUICK brown"}]
        assert session.chat_tokens(messages) == tokenizer.encode("[CLS] the quick brown [SEP]")
        assert session.tokenize("the quick brown fox") == [2, *tokenizer.encode("the quick brown fox")]
        assert session.detokenize(session.tokenize("the quick brown fox")).strip() == "the quick brown fox"
        assert isinstance("".join(session.chat(messages, max_tokens=8, temperature=0)), str)
        assert session.stats.n_generated > 0
