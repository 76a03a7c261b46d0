"""docs/gpu.md: its tables are those of the code."""

from __future__ import annotations

import math
import re

import pytest

from tests.paths import DOCS
from tritgguf.converter.quant.codec import codecs
from tritgguf.runtime.engine.gguf_header import Header
from tritgguf.runtime.engine.memory import cache_bytes

PAGE = (DOCS / "gpu.md").read_text("utf-8")
SHAPE = {
    "general.architecture": "llama",
    "llama.block_count": 88,
    "llama.embedding_length": 12288,
    "llama.attention.head_count": 96,
    "llama.attention.head_count_kv": 8,
}
CONTEXT, BUFFERS, EMBEDDINGS = 8192, 0.5e9, 2 * 128_000 * 12288 * 2


def rows(first: str) -> list[list[str]]:
    """Return the rows of the table whose head has that as its second cell."""
    head = re.search(rf"^\| type \| {re.escape(first)}.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert head
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in head[1].splitlines()]


def cache() -> int:
    return cache_bytes(Header(3, SHAPE, [b"a"], 0), CONTEXT, value_bytes=2)


@pytest.mark.parametrize("row", rows("bits per weight"), ids=lambda row: row[0])
def test_what_a_type_takes(row: list[str]) -> None:
    bits = codecs()[row[0]].bits_per_weight
    assert row[1:] == [f"{bits:g}", f"{100 * bits / 8:.1f} GB"]


def test_the_cache() -> None:
    assert f"{cache() / CONTEXT / 1e3:.0f} kB a token, {cache() / 1e9:.1f} GB for a context of {CONTEXT}" in PAGE
    assert f"in F16: {EMBEDDINGS / 1e9:.1f} GB, or {EMBEDDINGS * 2.0625 / 16 / 1e9:.1f} GB as TQ2_0" in PAGE


@pytest.mark.parametrize("row", rows("6 GB"), ids=lambda row: row[0])
def test_how_many_machines(row: list[str]) -> None:
    whole = 100e9 * codecs()[row[0]].bits_per_weight / 8 + EMBEDDINGS + cache()
    assert row[1:] == [str(math.ceil(whole / (free * 1e9 - BUFFERS))) for free in (6, 14, 22, 28, 60)]


def test_which_gpus_have_code() -> None:
    for names, *cells in rows("CUDA"):
        for name in names.split(", "):
            where = codecs()[name.lower()].runs_on
            assert [cell == "yes" for cell in cells] == [target in where for target in ("cuda", "metal", "vulkan")], (
                name
            )
