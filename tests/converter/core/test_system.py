"""Mapped files: whole reads, advice on any part, eviction without loss."""

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints import build
from tritgguf.converter.checkpoint.folder import open_checkpoint
from tritgguf.converter.core import parallel
from tritgguf.converter.core import rows as core_rows
from tritgguf.converter.core.system import advise, mapped
from tritgguf.converter.core.tensors import row_chunks, span


def resident_pages(path: Path) -> int:
    """Return how many kB of a file are resident in this process's memory."""
    kilobytes, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.split("-")[0].isalnum() and "-" in line.split()[0]:
            here = line.endswith(str(path))
        elif here and line.startswith("Rss:"):
            kilobytes += int(line.split()[1])
    return kilobytes


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells which pages are mapped")
def test_evicted_pages_no_longer_count_as_this_process_s_memory(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(np.arange(1 << 22, dtype=np.uint32).tobytes())
    data = mapped(path)
    total = int(data.view("<u4").sum(dtype=np.uint64))
    assert resident_pages(path) > 10_000
    advise(data[5:], "evict")
    assert resident_pages(path) < 100
    assert int(data.view("<u4").sum(dtype=np.uint64)) == total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells which pages are mapped")
def test_read_now_maps_the_whole_part(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(1 << 24))
    data = mapped(path)
    advise(data[: 1 << 23], "read_now")
    assert 8_000 < resident_pages(path) < 9_000


@pytest.mark.parametrize("advice", ["prefetch", "read_now", "evict"])
def test_any_part_takes_any_advice(advice, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 100)
    data = mapped(path)
    for part in (
        data,
        data[1:2],
        data[5000:9000],
        data[:0],
        data[1:].view(np.uint8)[3:70].reshape(-1),
        np.ones(3, "u1"),
    ):
        advise(part, advice)
    assert data.tobytes() == path.read_bytes()
    (tmp_path / "empty").touch()
    advise(mapped(tmp_path / "empty"), advice)


def test_reading_in_chunks_is_reading_whole(tmp_path: Path, monkeypatch) -> None:
    opened = open_checkpoint(build("llama-gqa", tmp_path), linear=()).tensors
    assert opened is not None
    for tensor in opened.values():
        whole = tensor.read(slice(None))
        monkeypatch.setattr(core_rows, "CHUNK_VALUES", 300)
        chunks = list(tensor.chunks())
        assert [rows.start for rows, _ in chunks[1:]] == [rows.stop for rows, _ in chunks[:-1]]
        np.testing.assert_array_equal(np.concatenate([values for _, values in chunks]), whole)


def test_row_chunks() -> None:
    assert list(row_chunks((10, 4), n_values=12)) == [slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)]
    assert list(row_chunks((10, 4), slice(2, 7), n_values=12)) == [slice(2, 5), slice(5, 7)]
    assert list(row_chunks((10, 4), n_values=16, first=4)) == [slice(0, 1), slice(1, 5), slice(5, 9), slice(9, 10)]
    assert list(row_chunks((2, 3, 4), n_values=1)) == [slice(i, i + 1) for i in range(6)]
    assert list(row_chunks((5,))) == [slice(0, 1)]
    assert span(np.array([7, 3, 5]), 10) == slice(3, 8)
    assert span(slice(2, None), 10) == slice(2, 10)


def test_work_is_handed_out_as_it_is_done_and_in_order() -> None:
    handed_out = []

    def items():
        for number in range(1000):
            handed_out.append(number)
            yield number

    results = parallel.parallel(lambda number: number * 2, items(), 3)
    assert next(results) == 0
    assert len(handed_out) <= parallel.QUEUED_PER_THREAD * 3 + 1
    assert list(results) == [2 * number for number in range(1, 1000)]
