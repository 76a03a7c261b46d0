"""Small models for the runtime's tests, written with gguf-py: random ones, and ones that say what they are told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
N_VOCAB, N_EMBD, N_HEAD, N_HEAD_KV, N_FF, N_LAYER = 288, 288, 4, 2, 96, 2


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE: itself, or the next one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges: 256 bytes, the special tokens, then merged pairs up to N_VOCAB; a byte's id is the byte."""
    tokens, merges = byte_characters() + SPECIALS, []
    words = ["the", "and", "hello", "world", "what", "is", "that", "you", "say", "now"]
    for word in (f"Ġ{word}" for word in words):
        for end in range(2, len(word) + 1):
            if len(tokens) < N_VOCAB and word[:end] not in tokens:
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
                tokens.append(word[:end])
    assert len(tokens) == N_VOCAB
    return tokens, merges


def random_tensors(seed: int) -> dict[str, np.ndarray]:
    """Weights of a small Llama, drawn from a normal distribution."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) / np.sqrt(shape[-1], dtype=np.float32)

    n_kv = N_EMBD * N_HEAD_KV // N_HEAD
    tensors = {"token_embd.weight": 20 * draw(N_VOCAB, N_EMBD), "output.weight": 4 * draw(N_VOCAB, N_EMBD)}
    tensors["output_norm.weight"] = np.ones(N_EMBD, np.float32)
    for layer in range(N_LAYER):
        rows = {
            "attn_q": N_EMBD,
            "attn_k": n_kv,
            "attn_v": n_kv,
            "attn_output": N_EMBD,
            "ffn_gate": N_FF,
            "ffn_up": N_FF,
        }
        for name, n_rows in rows.items():
            tensors[f"blk.{layer}.{name}.weight"] = draw(n_rows, N_EMBD)
        tensors[f"blk.{layer}.ffn_down.weight"] = draw(N_EMBD, N_FF)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = np.ones(N_EMBD, np.float32)
    return tensors


def speaking_tensors(successors: dict[int, int]) -> dict[str, np.ndarray]:
    """Weights whose likeliest token after t is successors[t]: layers add nothing, each token has its own direction."""
    tensors = random_tensors(seed=0)
    for layer in range(N_LAYER):
        tensors[f"blk.{layer}.attn_output.weight"][:] = 0
        tensors[f"blk.{layer}.ffn_down.weight"][:] = 0
    tensors["token_embd.weight"] = np.eye(N_VOCAB, N_EMBD, dtype=np.float32)
    tensors["output.weight"] = np.zeros((N_VOCAB, N_EMBD), np.float32)
    for token, successor in successors.items():
        tensors["output.weight"][successor, token] = 1
    return tensors


def add_byte_level_bpe(writer: gguf.GGUFWriter, tokens: Sequence[str] | None) -> None:
    """The vocabulary above, or other `tokens` in its place."""
    words, merges = vocabulary()
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(tokens) if tokens else words)
    writer.add_token_types([control if word in SPECIALS else normal for word in words])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(258)


def add_sentencepiece(writer: gguf.GGUFWriter) -> None:
    """<unk>, <s>, </s>, the bytes (byte b has id b + 3), then words of which the first is 259 = "▁Yes", 260 = "▁no"."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁Yes", "▁no"]
    words += [f"▁{chr(ord('a') + number)}" for number in range(N_VOCAB - len(words) - 1)] + ["▁"]
    kinds = [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[gguf.TokenType.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_scores([-float(number) for number in range(N_VOCAB)])
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (N_VOCAB - len(kinds)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write_model(
    path: Path,
    tensors: dict[str, np.ndarray],
    *,
    template: str | None = CHATML,
    n_ctx_train: int = 512,
    architecture: str = "llama",
    tokens: Sequence[str] | None = None,
    sentencepiece: bool = False,
    add_bos: bool = False,
    **extra: Any,
) -> Path:
    """A GGUF file at `path`; `extra` are further keys with `__` for `.`."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_block_count(N_LAYER)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if sentencepiece:
        add_sentencepiece(writer)
    else:
        add_byte_level_bpe(writer, tokens)
    writer.add_add_bos_token(add_bos)
    if template is not None:
        writer.add_chat_template(template)
    adders = {int: writer.add_uint32, float: writer.add_float32}
    for key, value in extra.items():
        adders.get(type(value), writer.add_string)(key.replace("__", "."), value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model with seeded random weights, trained for 512 tokens of context."""
    return write_model(tmp_path_factory.mktemp("random") / "random.gguf", random_tensors(seed=1))


@pytest.fixture(scope="session")
def speaking_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a model that, after a newline, says the given tokens and then ends its turn; tokens must be distinct."""
    folder = tmp_path_factory.mktemp("speaking")

    def make(says: Sequence[int], **options: Any) -> Path:
        chain = [ord("\n"), *says, 258]
        assert len(set(chain)) == len(chain)
        tensors = speaking_tensors(dict(itertools.pairwise(chain)))
        return write_model(folder / f"{len(list(folder.iterdir()))}.gguf", tensors, **options)

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Path]:
    """write_model with random weights by default."""

    def make(path: Path, tensors: dict[str, np.ndarray] | None = None, **options: Any) -> Path:
        return write_model(path, random_tensors(seed=1) if tensors is None else tensors, **options)

    return make


@pytest.fixture(name="speaking_tensors", scope="session")
def _speaking_tensors() -> Callable[[dict[int, int]], dict[str, np.ndarray]]:
    return speaking_tensors


@pytest.fixture(name="random_tensors")
def _random_tensors() -> dict[str, np.ndarray]:
    return random_tensors(seed=1)
