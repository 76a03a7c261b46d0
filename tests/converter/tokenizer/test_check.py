"""The battery and the check themselves: what they cover, and what happens when the runtime can't answer."""

import unicodedata
from pathlib import Path

import pytest

from tests.tokenizer_folders import CONFIG, END, TURN_END, byte_level_structure, write_json
from tests.vocab_file import write_vocab_file
from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.metadata import int32s, string, strings
from tritgguf.converter.tokenizer import SourceTokenizer, battery, check_token_ids, read_tokenizer
from tritgguf.converter.tokenizer.battery import TEXTS


@pytest.fixture
def tokenizer(tmp_path: Path) -> SourceTokenizer:
    write_json(tmp_path / "tokenizer.json", byte_level_structure())
    return read_tokenizer(tmp_path, n_vocab=3000, config=CONFIG)


def test_the_battery_is_as_nasty_as_it_says() -> None:
    assert len(set(TEXTS)) == len(TEXTS) >= 150
    everything = "".join(TEXTS)
    scripts = {unicodedata.name(letter, "?").split()[0] for letter in everything}
    expected = "LATIN GREEK CYRILLIC HEBREW ARABIC DEVANAGARI BENGALI TAMIL THAI CJK HIRAGANA KATAKANA HANGUL GEORGIAN"
    assert set(expected.split()) <= scripts
    assert {"Cc", "Cf", "Co", "Mc", "Me", "Mn", "Nd", "Nl", "No", "Zl", "Zp", "Zs"} <= set(
        map(unicodedata.category, everything)
    )
    assert any(text != unicodedata.normalize("NFC", text) for text in TEXTS)
    assert any(text != unicodedata.normalize("NFD", text) for text in TEXTS)


def test_the_battery_holds_each_special_token_alone_and_inside(tokenizer: SourceTokenizer) -> None:
    texts = battery(tokenizer)
    for special in (END, TURN_END):
        assert special in texts
        assert f"a{special}b" in texts
        assert f"left {special} right" in texts


def test_the_error_names_text_ids_and_remedy(tokenizer: SourceTokenizer, tmp_path: Path) -> None:
    swapped = list(tokenizer.metadata["tokenizer.ggml.tokens"].data)
    swapped[300], swapped[301] = swapped[301], swapped[300]
    mutant = tokenizer.metadata | {"tokenizer.ggml.tokens": strings(swapped)}
    with pytest.raises(TokenizerError) as caught:
        check_token_ids(tokenizer, write_vocab_file(tmp_path / "swapped.gguf", mutant))
    text = next(text for text in battery(tokenizer) if {300, 301} & set(tokenizer.encode(text)))
    ids = tokenizer.encode(text)
    place = next(place for place, token_id in enumerate(ids) if token_id in (300, 301))
    assert repr(text)[:100] in str(caught.value)
    assert f"from place {place} on expected {ids[place:][:8]}, found [{601 - ids[place]}" in str(caught.value)
    assert str(caught.value).endswith("; --no-check keeps the file all the same")
    assert "\n" not in str(caught.value)


def test_a_special_token_that_is_not_marked_as_one(tokenizer: SourceTokenizer, tmp_path: Path) -> None:
    types = list(tokenizer.metadata["tokenizer.ggml.token_type"].data)
    types[tokenizer.metadata["tokenizer.ggml.tokens"].data.index("<tool>")] = 1
    mutant = tokenizer.metadata | {"tokenizer.ggml.token_type": int32s(types)}
    with pytest.raises(TokenizerError, match="<tool>"):
        check_token_ids(tokenizer, write_vocab_file(tmp_path / "unmarked.gguf", mutant))


def test_a_file_that_the_runtime_cannot_load(tokenizer: SourceTokenizer, tmp_path: Path) -> None:
    unknown = tokenizer.metadata | {"tokenizer.ggml.pre": string("no-such-name")}
    with pytest.raises(TokenizerError, match=r"^the runtime can't read the vocabulary back: [^\n]+$"):
        check_token_ids(tokenizer, write_vocab_file(tmp_path / "unknown.gguf", unknown))
    repeated = list(tokenizer.metadata["tokenizer.ggml.tokens"].data)
    repeated[300] = repeated[301]
    doubled = tokenizer.metadata | {"tokenizer.ggml.tokens": strings(repeated)}
    with pytest.raises(TokenizerError, match=r"^the runtime can't read the vocabulary back: [^\n]+$"):
        check_token_ids(tokenizer, write_vocab_file(tmp_path / "doubled.gguf", doubled))
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"^the runtime can't read the vocabulary back: [^\n]+$"):
        check_token_ids(tokenizer, tmp_path / "empty.gguf")
