"""SentencePiece: tokenizer.model, and the same tokenizer as a tokenizer.json alone."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from gguf import TokenType

from tests.tokenizer_folders import (
    PREPEND,
    as_tokenizer_json,
    byte_level_structure,
    scored_pieces,
    sentencepiece_model,
    splitting,
    write_json,
)
from tests.vocab_file import check_in_this_process, write_vocab_file
from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import boolean, string
from tritgguf.converter.tokenizer import SourceTokenizer, has_tokenizer, read_tokenizer
from tritgguf.converter.tokenizer.battery import TEXTS, battery

ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
model = cache(sentencepiece_model)


def metaspace(scheme: str, *, split: bool = False) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}


def read(folder: Path, n_vocab: int = 1600) -> SourceTokenizer:
    return read_tokenizer(folder, n_vocab=n_vocab, config={"eos_token_id": 2})


def read_model(folder: Path, data: bytes, n_vocab: int = 1600) -> SourceTokenizer:
    (folder / "tokenizer.model").write_bytes(data)
    return read(folder, n_vocab)


def read_json(folder: Path, structure: dict[str, Any]) -> SourceTokenizer:
    write_json(folder / "tokenizer.json", structure)
    return read(folder)


def check(folder: Path, tokenizer: SourceTokenizer) -> int:
    return check_in_this_process(tokenizer, write_vocab_file(folder / "vocab.gguf", tokenizer.metadata))


def data(tokenizer: SourceTokenizer, key: str) -> Any:
    return tokenizer.metadata[f"tokenizer.ggml.{key}"].data


def test_a_model_file_becomes_its_pieces_scores_and_types(tmp_path: Path) -> None:
    tokenizer = read_model(tmp_path, model())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model())
    pieces = scored_pieces(model())
    assert tokenizer.kind == "sentencepiece"
    assert data(tokenizer, "tokens")[:1500] == [piece for piece, _ in pieces]
    assert data(tokenizer, "scores")[:1500] == [score for _, score in pieces]
    expected = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    assert data(tokenizer, "token_type") == [*expected, *[TokenType.NORMAL] * 1241, *[TokenType.UNUSED] * 100]
    assert [data(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unknown")] == [1, 2, 0]
    assert (data(tokenizer, "add_bos_token"), data(tokenizer, "add_eos_token")) == (True, False)
    assert data(tokenizer, "add_space_prefix") is True
    assert [tokenizer.encode(text) for text in TEXTS if "<unk" not in text] == [
        processor.encode(text) for text in TEXTS if "<unk" not in text
    ]
    assert check(tmp_path, tokenizer) >= 180


def test_no_dummy_prefix(tmp_path: Path) -> None:
    tokenizer = read_model(tmp_path, model(add_dummy_prefix=False))
    assert data(tokenizer, "add_space_prefix") is False
    assert check(tmp_path, tokenizer) >= 180


def test_added_tokens_of_all_files(tmp_path: Path) -> None:
    write_json(tmp_path / "added_tokens.json", {"<|im_end|>": 1501, "<tool>": 1500})
    decoder = {"1501": {"content": "<|im_end|>", "special": True}, "2": {"content": "</s>", "special": True}}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder, "eos_token": "<|im_end|>"})
    tokenizer = read_model(tmp_path, model())
    assert data(tokenizer, "tokens")[1500:1503] == ["<tool>", "<|im_end|>", "[PAD1502]"]
    assert data(tokenizer, "token_type")[1500:1502] == [TokenType.USER_DEFINED, TokenType.CONTROL]
    assert data(tokenizer, "eos_token_id") == 1501
    assert tokenizer.special_tokens == ("<unk>", "<s>", "</s>", "<tool>", "<|im_end|>")
    assert check(tmp_path, tokenizer) >= 180


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model_type": "char", "byte_fallback": False, "hard_vocab_limit": False},
            "a char model; expected",
        ),
        ({"byte_fallback": False}, "without byte_fallback"),
        ({"normalization_rule_name": "nmt_nfkc"}, "rewrites characters first"),
        ({"remove_extra_whitespaces": True}, "removes extra spaces"),
        ({"treat_whitespace_as_suffix": True}, "puts spaces behind words"),
    ],
)
def test_models_that_llama_cpp_would_read_otherwise(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"^tokenizer\.model is a (char )?model") as caught:
        read_model(tmp_path, model(**options))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"IQ== 0\nIg== 1\nIw== 2\n",
        b"",
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x08\x01",
        b"version https://git-lfs",
        b"\xff" * 40,
    ],
)
def test_a_tokenizer_model_of_another_kind(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"^tokenizer\.model isn't a SentencePiece model \(.*add the tokenizer\.json"
    ):
        read_model(tmp_path, content)
    write_json(tmp_path / "tokenizer.json", byte_level_structure())
    assert read(tmp_path, 3000).kind == "bpe"


def test_a_truncated_model_is_refused_at_any_length(tmp_path: Path) -> None:
    for length in range(0, len(model()), 997):
        with pytest.raises(TokenizerError, match=r"^tokenizer\.model "):
            read_model(tmp_path, model()[:length])


def test_more_pieces_than_the_model_has_rows(tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.model has 1500 tokens but config\.json's vocab_size is 1499;"
    ):
        read_model(tmp_path, model(), 1499)


def test_spaces_behind_added_tokens_are_stripped_as_in_phi_3(tmp_path: Path) -> None:
    """llama.cpp does that for models with phi-3 in their name alone, and ours says so for others."""
    structure = as_tokenizer_json(scored_pieces(model()))
    for token_id, text in ((1500, "<|endoftext|>"), (1501, "<|user|>")):
        structure["added_tokens"].append(structure["added_tokens"][2] | {"id": token_id, "content": text})
    for token in structure["added_tokens"]:
        token["rstrip"] = token["content"] not in ("<unk>", "<s>", "<|endoftext|>")
    tokenizer = read_json(tmp_path, structure)
    named = tokenizer.metadata | {"general.name": string("Phi-3-mini")}
    assert check_in_this_process(tokenizer, write_vocab_file(tmp_path / "named.gguf", named)) > 180
    with pytest.raises(TokenizerError, match="only in models with phi-3 in their name: name it so"):
        check(tmp_path, tokenizer)


CHAT = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
LEGACY = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>"}


def space_first(folder: Path, form: str, template: str | None) -> SourceTokenizer:
    """A tokenizer that puts a space before the first text alone, as tokenizer.model or as tokenizer.json."""
    write_json(folder / "tokenizer_config.json", LEGACY | ({"chat_template": template} if template else {}))
    if form == "model":
        return read_model(folder, model())
    return read_json(folder, as_tokenizer_json(scored_pieces(model()), None, metaspace("first")))


@pytest.mark.parametrize("form", ["model", "json"])
def test_a_space_before_the_first_text_alone_is_right_in_chats(form: str, tmp_path: Path) -> None:
    tokenizer = space_first(tmp_path, form, CHAT)
    assert tokenizer.encode("<s>The fox")[1] != tokenizer.encode("The fox")[0]
    assert data(tokenizer, "add_space_prefix") is False
    assert any("begin others with a space" in note for note in tokenizer.notes)
    assert check(tmp_path, tokenizer) == len(battery(tokenizer)) > 180
    assert all(text.startswith("<s>") for text in battery(tokenizer))


@pytest.mark.parametrize("form", ["model", "json"])
@pytest.mark.parametrize("template", [None, CHAT.replace("{{ bos_token }}", "")])
def test_a_space_before_the_first_text_alone_is_right_in_texts(form: str, template: str | None, tmp_path: Path) -> None:
    tokenizer = space_first(tmp_path, form, template)
    assert data(tokenizer, "add_space_prefix") is True
    assert any("only texts without special tokens" in note for note in tokenizer.notes)
    assert check(tmp_path, tokenizer) == len(battery(tokenizer)) > 150


@pytest.mark.parametrize("template", [None, CHAT])
def test_the_other_way_to_put_spaces_fails_the_check(template: str | None, tmp_path: Path) -> None:
    tokenizer = space_first(tmp_path, "json", template)
    adds = tokenizer.metadata["tokenizer.ggml.add_space_prefix"]
    wrong = tokenizer.metadata | {"tokenizer.ggml.add_space_prefix": boolean(not adds.data)}
    with pytest.raises(TokenizerError, match="other token ids"):
        check_in_this_process(tokenizer, write_vocab_file(tmp_path / "wrong.gguf", wrong))


def test_a_json_alone_gives_the_scores_and_ids_of_the_model(tmp_path: Path) -> None:
    from_model = read_model(tmp_path, model())
    from_json = read_json(tmp_path, as_tokenizer_json(scored_pieces(model())))
    for key in ("tokens", "token_type", "add_space_prefix"):
        assert data(from_json, key) == data(from_model, key)
    merges = as_tokenizer_json(scored_pieces(model()))["model"]["merges"]
    made = {left + right for left, right in merges}
    tokens = data(from_model, "tokens")
    ours, theirs = data(from_json, "scores"), data(from_model, "scores")
    assert sum(token in made for token in tokens) > 500
    assert all(ours[i] == theirs[i] for i, token in enumerate(tokens) if token in made)
    assert [from_json.encode(text) for text in TEXTS] == [from_model.encode(text) for text in TEXTS]
    assert check(tmp_path, from_json) >= 180


@pytest.mark.parametrize(("normalizer", "pre_tokenizer"), [(ESCAPE, None), (None, metaspace("never"))])
def test_a_json_without_a_prefix(normalizer: object, pre_tokenizer: object, tmp_path: Path) -> None:
    tokenizer = read_json(tmp_path, as_tokenizer_json(scored_pieces(model()), normalizer, pre_tokenizer))
    assert data(tokenizer, "add_space_prefix") is False
    assert check(tmp_path, tokenizer) >= 180


def test_metaspace_differs_from_llama_cpp_and_the_check_says_how(tmp_path: Path) -> None:
    tokenizer = read_json(tmp_path, as_tokenizer_json(scored_pieces(model()), None, metaspace("always")))
    with pytest.raises(TokenizerError, match="text that has one already"):
        check(tmp_path, tokenizer)


def with_runs(longest: int, normalizer: object = ESCAPE) -> dict[str, Any]:
    """Return a tokenizer.json with runs of spaces and of line ends as Gemma has them."""
    pieces = [piece for piece in scored_pieces(model()) if not set(piece[0]) <= {"▁", "\n"} or len(piece[0]) == 1]
    idle_split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    structure = as_tokenizer_json(pieces, normalizer, idle_split)
    merges = []
    for left in range(longest - 1, 0, -1):
        for right in range(longest - left, 0, -1):
            merges += [[character * left, character * right] for character in "▁\n"]
    vocab, flags = structure["model"]["vocab"], structure["added_tokens"][0]
    vocab.setdefault("\n", len(vocab))
    for run in [character * length for length in range(2, longest + 1) for character in "▁\n"]:
        vocab[run] = len(vocab)
        structure["added_tokens"].append({**flags, "id": vocab[run], "content": run, "special": False})
    structure["model"]["merges"] = merges + structure["model"]["merges"]
    return structure


def test_gemma_s_runs_of_spaces(tmp_path: Path) -> None:
    tokenizer = read_json(tmp_path, with_runs(7))
    assert check(tmp_path, tokenizer) >= 180
    assert any("the character ▁ itself" in note for note in tokenizer.notes)
    texts = data(tokenizer, "tokens")
    ids = [texts.index("▁" * length) for length in range(2, 8)]
    assert [data(tokenizer, "scores")[i] for i in ids] == [2, 3, 4, 5, 6, 7]
    assert {data(tokenizer, "token_type")[i] for i in ids} == {TokenType.NORMAL}  # printed as spaces
    assert data(tokenizer, "token_type")[texts.index("\n\n")] == TokenType.USER_DEFINED
    assert tokenizer.encode(" " * 12) == [ids[-1], ids[3]]


def test_runs_of_spaces_that_merge_in_another_order_are_refused(tmp_path: Path) -> None:
    structure = with_runs(7)
    structure["model"]["merges"].insert(0, structure["model"]["merges"].pop(2))
    with pytest.raises(TokenizerError, match=r"the merges into '▁+' don't follow each other"):
        read_json(tmp_path, structure)


@pytest.mark.parametrize("image_token", ["<image>", {"content": "<image>"}])
def test_a_token_for_images_without_an_embedding_is_left_out(image_token: object, tmp_path: Path) -> None:
    structure = as_tokenizer_json(scored_pieces(model()), ESCAPE)
    added = {**structure["added_tokens"][0], "content": "<image>", "id": len(structure["model"]["vocab"])}
    structure["added_tokens"].append(added)
    write_json(tmp_path / "tokenizer.json", structure)
    with pytest.raises(TokenizerError, match="has 1501 tokens but"):
        read(tmp_path, 1500)
    write_json(tmp_path / "tokenizer_config.json", {"image_token": image_token})
    tokenizer = read(tmp_path, 1500)
    assert len(data(tokenizer, "tokens")) == 1500
    assert "'<image>' is left out: the model has no embedding for images" in tokenizer.notes
    assert check(tmp_path, tokenizer) >= 180
    assert "<image>" in data(read(tmp_path, 1600), "tokens")


def drop_a_split(structure: dict[str, Any]) -> None:
    """Remove a merge whose product another merge makes as well."""
    merges = structure["model"]["merges"]
    products = ["".join(pair) for pair in merges]
    structure["model"]["merges"].remove(merges[next(i for i, p in enumerate(products) if products.count(p) > 1)])


def tear_merges_apart(structure: dict[str, Any]) -> None:
    merges = structure["model"]["merges"]
    products = ["".join(pair) for pair in merges]
    merges.append(merges.pop(next(i for i, p in enumerate(products) if products.count(p) > 1)))


def drop_a_byte(structure: dict[str, Any]) -> None:
    structure["model"]["vocab"]["<0x4g>"] = structure["model"]["vocab"].pop("<0x41>")


def split_at_spaces(structure: dict[str, Any]) -> None:
    structure |= {"normalizer": None, "pre_tokenizer": metaspace("always", split=True)}


def lowercase(structure: dict[str, Any]) -> None:
    structure["normalizer"] = {"type": "Lowercase"}


def split_by_expression(structure: dict[str, Any]) -> None:
    structure["pre_tokenizer"] = splitting("[a-z]+")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_a_split, "which no merge allows"),
        (tear_merges_apart, "don't follow each other"),
        (drop_a_byte, "byte_fallback is on but 1 byte pieces such as <0x41> are missing"),
        (split_at_spaces, "Metaspace splits at each space, but piece"),
        (lowercase, "normalizer Lowercase with pre-tokenizer none isn't how SentencePiece treats spaces"),
        (split_by_expression, "normalizer Sequence with pre-tokenizer Sequence"),
    ],
)
def test_a_json_that_scores_cannot_stand_for(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    structure = as_tokenizer_json(scored_pieces(model()), PREPEND)
    change(structure)
    with pytest.raises(TokenizerError, match=r"^tokenizer\.json: ") as caught:
        read_json(tmp_path, structure)
    assert message in str(caught.value)


def test_has_tokenizer(tmp_path: Path) -> None:
    assert not has_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    assert has_tokenizer(tmp_path)
