"""How much memory a model's KV cache takes, and how much there is: a context too large would get the process killed."""

from __future__ import annotations

from pathlib import Path

from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.gguf_header import Header

_MEMORY = Path("/proc/meminfo")


def available_memory() -> int | None:
    """Return the bytes that can be allocated, swap included; None on systems other than Linux."""
    try:
        lines = (line.split() for line in _MEMORY.read_text().splitlines())
        kibibytes = {name: int(size) for name, size, *_ in lines if name in ("MemAvailable:", "SwapFree:")}
        return 1024 * (kibibytes["MemAvailable:"] + kibibytes.get("SwapFree:", 0))
    except (OSError, ValueError, KeyError):
        return None


def cache_bytes(header: Header, n_ctx: int, *, value_bytes: int) -> int:
    """Return the bytes of the KV cache for `n_ctx` tokens, whose numbers have `value_bytes` bytes each.

    Heads and their sizes are the file's, as llama.cpp reads them (load_hparams in llama-model.cpp).
    """

    def number(name: str, default: int) -> int:
        found = header.values.get(f"{header.values['general.architecture']}.{name}", default)
        return found if isinstance(found, int) else default

    def head_size(kind: str) -> int:
        size = number(f"attention.{kind}_length", embedding // n_heads if n_heads else 0)
        return min(size, number(f"attention.{kind}_length_swa", size))  # of the layers with a sliding window

    embedding, n_heads = number("embedding_length", 0), number("attention.head_count", 0)
    n_kv_heads = sum(header.kv_heads) or number("block_count", 0) * number("attention.head_count_kv", n_heads)
    latent = number("attention.key_length_mla", 0) > 0  # latent attention (MLA) computes values from the stored keys
    return n_ctx * n_kv_heads * (head_size("key") + (0 if latent else head_size("value"))) * value_bytes


def check_memory(path: Path, n_ctx: int, *, cache: int, weights: int, free: int) -> None:
    """Raise EngineError if the weights and the KV cache for `n_ctx` tokens, in bytes, need more than `free` bytes."""
    if weights > free:
        raise EngineError(
            f"{path}: the weights need {format_size(weights)} of memory, {format_size(free)} are free; "
            "close other programs, or convert the model to a smaller type"
        )
    if weights + cache > free:
        raise EngineError(
            f"{path}: a context of {n_ctx} tokens needs {format_size(cache)} of memory and the weights "
            f"{format_size(weights)}, {format_size(free)} are free; ask for a smaller context"
        )
