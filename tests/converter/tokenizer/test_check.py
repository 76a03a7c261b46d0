"""The battery and the check themselves: what they cover, and what happens when the runtime can't answer."""

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import tokenizers

import tritgguf.converter
from tests.checkpoints import build
from tests.tokenizer_folders import CONFIG, END, TURN_END, byte_level_structure, write_json
from tests.vocab_file import check_in_runtime, write_vocab_file
from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import int32s, string, strings
from tritgguf.converter.inspection.inspection import inspect
from tritgguf.converter.model.open import open_model
from tritgguf.converter.tokenizer import (
    SourceTokenizer,
    battery,
    check_token_ids,
    installed_provider,
    read_tokenizer,
    token_ids,
)
from tritgguf.converter.tokenizer.battery import TEXTS
from tritgguf.converter.tokenizer.reference import Reference
from tritgguf.converter.tokenizer.token_ids import ReadTokenIds, TokenIds, TokenIdsProvider
from tritgguf.runtime.engine.token_ids_process import token_ids_process


@pytest.fixture
def token_ids_here() -> None:
    """These tests are about the process that gives token ids."""


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
        check_in_runtime(tokenizer, write_vocab_file(tmp_path / "swapped.gguf", mutant))
    text = next(text for text in battery(tokenizer) if {300, 301} & set(tokenizer.encode(text)))
    ids = tokenizer.encode(text)
    place = next(place for place, token_id in enumerate(ids) if token_id in (300, 301))
    assert repr(text)[:100] in str(caught.value)
    assert f"from position {place} on expected {ids[place:][:8]}, found [{601 - ids[place]}" in str(caught.value)
    assert str(caught.value).endswith("; --no-check writes the file anyway")
    assert "\n" not in str(caught.value)


def test_a_special_token_that_is_not_marked_as_one(tokenizer: SourceTokenizer, tmp_path: Path) -> None:
    types = list(tokenizer.metadata["tokenizer.ggml.token_type"].data)
    types[tokenizer.metadata["tokenizer.ggml.tokens"].data.index("<tool>")] = 1
    mutant = tokenizer.metadata | {"tokenizer.ggml.token_type": int32s(types)}
    with pytest.raises(TokenizerError, match="<tool>"):
        check_in_runtime(tokenizer, write_vocab_file(tmp_path / "unmarked.gguf", mutant))


def test_a_file_that_the_runtime_cannot_load(tokenizer: SourceTokenizer, tmp_path: Path) -> None:
    unknown = tokenizer.metadata | {"tokenizer.ggml.pre": string("no-such-name")}
    with pytest.raises(TokenizerError, match=r"^the runtime can't read the vocabulary back: [^\n]+$"):
        check_in_runtime(tokenizer, write_vocab_file(tmp_path / "unknown.gguf", unknown))
    repeated = list(tokenizer.metadata["tokenizer.ggml.tokens"].data)
    repeated[300] = repeated[301]
    doubled = tokenizer.metadata | {"tokenizer.ggml.tokens": strings(repeated)}
    with pytest.raises(TokenizerError, match=r"^the runtime can't read the vocabulary back: [^\n]+$"):
        check_in_runtime(tokenizer, write_vocab_file(tmp_path / "doubled.gguf", doubled))
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"^the runtime can't read the vocabulary back: [^\n]+$"):
        check_in_runtime(tokenizer, tmp_path / "empty.gguf")


def folder_with(folder: Path, **changes: object) -> Path:
    write_json(folder / "tokenizer.json", byte_level_structure() | changes)
    return folder


def test_the_child_loads_the_source_s_tokenizer_too(tmp_path: Path) -> None:
    """With the tokens that files beside tokenizer.json add; the reference here is this process's."""
    folder = folder_with(tmp_path)
    added = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": {str(added): {"content": "<side>"}}})
    tokenizer = read_tokenizer(folder, n_vocab=3000, config=CONFIG, load=False)
    file, texts = write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata), battery(tokenizer)
    with installed_provider()(folder) as read:
        ids = read(file, texts)
    assert ids.found == ids.expected == list(map(tokenizer.encode, texts))
    assert [added] in ids.found
    with installed_provider()(folder) as read:
        assert check_token_ids(tokenizer, file, read) == len(texts)
    assert "_tokenizer" in vars(tokenizer.encode_with_source)  # loaded above
    late = read_tokenizer(folder, n_vocab=3000, config=CONFIG, load=False)
    with installed_provider()(folder) as read:
        check_token_ids(late, file, read)
    assert "_tokenizer" not in vars(late.encode_with_source)  # the child had it


REFUSED = "refused by the tokenizers library"


@pytest.mark.parametrize(
    ("change", "side", "message"),
    [
        ({"decoder": {"type": "NoSuchDecoder"}}, {}, REFUSED),
        ({}, {"added_tokens_decoder": {"2999": {"content": "<side>"}}}, "added token '<side>' has id 2999 in"),
    ],
)
def test_what_the_library_refuses_is_said_whoever_loads_it(
    change: dict[str, object], side: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, **change)
    write_json(folder / "tokenizer_config.json", side)
    with pytest.raises(TokenizerError, match=message):
        read_tokenizer(folder, n_vocab=3000, config=CONFIG)
    tokenizer = read_tokenizer(folder, n_vocab=3000, config=CONFIG, load=False)
    file = write_vocab_file(folder / "vocab.gguf", tokenizer.metadata)
    with installed_provider()(folder) as read:
        assert read(file, ["a"]).expected is None
    with installed_provider()(folder) as read, pytest.raises(TokenizerError, match=message):
        check_token_ids(tokenizer, file, read)


NO_TOKENS = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": []}


@pytest.mark.parametrize("change", [{"added_tokens": ["<a>"]}, {"added_tokens": 7}, {"post_processor": NO_TOKENS}])
def test_what_cannot_be_read_here_is_in_the_library_s_words(change: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=REFUSED):
        read_tokenizer(folder_with(tmp_path, **change), n_vocab=3000, config=CONFIG, load=False)


def test_a_library_that_panics_refuses(tmp_path: Path) -> None:
    """It cuts a prefix off pieces that may be shorter."""
    model = {"type": "BPE", "vocab": {"a": 0, "": 1}, "merges": [["a", ""]], "continuing_subword_prefix": "##"}
    with pytest.raises(TokenizerError, match=REFUSED):
        Reference(folder_with(tmp_path, model=model, added_tokens=[])).load()


def test_a_caller_hands_in_what_computes_token_ids(tmp_path: Path) -> None:
    """Any callable will do: here the tokenizers library stands in for the runtime, with one id changed."""
    build("llama-gqa", tmp_path / "model")
    started: list[Path | None] = []

    @contextmanager
    def provider(folder: Path | None) -> Iterator[ReadTokenIds]:
        started.append(folder)
        library = Reference(tmp_path / "model")
        yield lambda _file, texts: TokenIds([[7, *library(text)] for text in texts], None)

    with pytest.raises(TokenizerError, match="becomes other token ids than in the source tokenizer"):
        tritgguf.converter.convert(tmp_path / "model", tmp_path / "out.gguf", check=provider)
    assert started == [tmp_path / "model"]
    assert not (tmp_path / "out.gguf").exists()


def test_the_ids_of_a_gguf_source_are_computed_when_they_are_compared(tmp_path: Path) -> None:
    build("llama-gqa", tmp_path / "model")
    source = tritgguf.converter.convert(tmp_path / "model", tmp_path / "source.gguf", "f16", check=False).out
    asked: list[Path] = []

    @contextmanager
    def provider(folder: Path | None) -> Iterator[ReadTokenIds]:
        with token_ids_process(folder) as read:

            def recorded(file: Path, texts: Sequence[str]) -> TokenIds:
                asked.append(file)
                return read(file, texts)

            yield recorded

    opened = open_model(source, token_ids=provider)
    assert opened.tokenizer is not None
    assert asked == []
    assert check_with(provider, opened.tokenizer, source) == len(battery(opened.tokenizer))
    assert asked == [source, source]


def check_with(provider: TokenIdsProvider, tokenizer: SourceTokenizer, file: Path) -> int:
    with provider(None) as read:
        return check_token_ids(tokenizer, file, read)


def test_a_gguf_source_needs_no_provider_without_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("llama-gqa", tmp_path / "model")
    source = tritgguf.converter.convert(tmp_path / "model", tmp_path / "source.gguf", "f16", check=False).out
    monkeypatch.setattr(token_ids, "GROUP", "tritgguf.no_such_group")
    assert tritgguf.converter.plan(source, "f16").tensors
    assert inspect(source).tensors
    assert tritgguf.converter.convert(source, tmp_path / "out.gguf", "f16", check=False).strings_checked == 0
    with pytest.raises(TokenizerError, match=r"no installed package has an entry point .*--no-check"):
        tritgguf.converter.convert(source, tmp_path / "checked.gguf", "f16")
    assert not (tmp_path / "checked.gguf").exists()


def test_without_a_provider_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_ids, "GROUP", "tritgguf.no_such_group")
    with pytest.raises(TokenizerError, match=r"no installed package has an entry point .*--no-check"):
        token_ids.installed_provider()
