"""Importance matrices: how large the inputs of each linear layer are on a text, column by column.

llama.cpp's llama-imatrix makes them, as GGUF files or in an older format of its own (.dat), and llama-quantize reads
both: https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix. For a layer NAME, a GGUF file has the sums of the
squares of its inputs, NAME.in_sum2, one row per matrix, and how many inputs each matrix had, NAME.counts. An expert
that the text never chose has count 0. The older format has, little-endian, the number of layers; of each the length of
its name, the name, a count, the number of values and the values, which are the mean squares times the count; then, if
the file goes on, the number of chunks and the name of the text, after its length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, Keys

from tritgguf.converter.core.tensors import Float32Array
from tritgguf.converter.core.whole_files import require_writable, write_whole
from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.gguf_tensor import GgufTensor
from tritgguf.converter.gguf_io.header import TensorEntry, aligned, header_bytes
from tritgguf.converter.gguf_io.metadata import Metadata, string, strings, uint32
from tritgguf.converter.gguf_io.reader import GgufFile, is_gguf, read_gguf

KIND = "imatrix"  # general.type
SUMS, COUNTS = ".in_sum2", ".counts"
IMATRIX_FILE = "quantize.imatrix.file"
REMEDY = "make it again: tritgguf imatrix MODEL.gguf --text FILE"


class Entry(NamedTuple):
    """One layer: the sums of the squares of its inputs, float32 (n_matrices, n_columns), and each matrix's count.

    In the older format all matrices are in one row, with one count.
    """

    sums: Float32Array
    counts: Float32Array


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix: its layers by their tensors' names, and what it was computed on."""

    path: Path
    entries: Mapping[str, Entry] = field(repr=False)
    datasets: tuple[str, ...]
    n_chunks: int
    chunk_size: int

    def importance(self, name: str, shape: tuple[int, ...]) -> Float32Array | None:
        """Return the mean squares of a layer's inputs, float32 (n_matrices, n_columns); None without an entry.

        `shape` is the tensor's, rows before columns. They are 1 for a matrix that had no inputs. Raises SourceError
        where the layer's size is another.
        """
        entry = self.entries.get(name)
        if entry is None or not entry.counts.any():
            return None
        n_matrices, n_columns = math.prod(shape[:-2]), shape[-1]
        if entry.sums.size != n_matrices * n_columns or len(entry.counts) not in (1, n_matrices):
            theirs = " x ".join(map(str, entry.sums.shape))
            raise SourceError(
                f"{self.path}: has {theirs} values for {name}, whose inputs here are {n_matrices} x {n_columns}: it is "
                "another model's; make one of this model: tritgguf imatrix"
            )
        counts = np.broadcast_to(entry.counts[:, None], (len(entry.counts), entry.sums.size // len(entry.counts)))
        means = np.divide(entry.sums.reshape(counts.shape), counts, out=np.ones_like(entry.sums), where=counts > 0)
        return np.ascontiguousarray(means.reshape(n_matrices, n_columns))

    def n_without(self, name: str) -> int:
        """Return how many of a layer's matrices, such as experts, had no inputs."""
        return int((self.entries[name].counts == 0).sum())

    def provenance(self) -> Metadata:
        """Return the keys by which llama-quantize tells in a file what it was made with; names without folders."""
        keys = {
            IMATRIX_FILE: string(self.path.name),
            "quantize.imatrix.entries_count": uint32(len(self.entries)),
        }
        if self.datasets:
            keys["quantize.imatrix.dataset"] = string(self.datasets[0])
        if self.n_chunks:
            keys["quantize.imatrix.chunks_count"] = uint32(self.n_chunks)
        return keys


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix in either format; raise SourceError where it isn't one or has impossible numbers."""
    try:
        found = _from_gguf(read_gguf(path)) if is_gguf(path) else _from_dat(path)
    except OSError as error:
        raise SourceError(f"{path}: can't be read ({error.strerror or error}); {REMEDY}") from error
    for name, entry in found.entries.items():
        _require(path, name, entry.sums, np.isfinite(entry.sums) & (entry.sums >= 0), "a sum of squares, 0 or more")
        whole = np.isfinite(entry.counts) & (entry.counts == np.abs(np.rint(entry.counts)))
        _require(path, name, entry.counts, whole, "a count")
    return found


def _require(path: Path, name: str, numbers: Float32Array, possible: npt.NDArray[np.bool_], what: str) -> None:
    if not possible.all():
        raise SourceError(f"{path}: has {numbers[~possible][0]:g} for {name}, expected {what}; {REMEDY}")


def write_imatrix(imatrix: Imatrix, *, force: bool = False) -> None:
    """Write the GGUF file `imatrix.path` as llama-imatrix does; raise OutputError where it can't be written."""
    metadata: Metadata = {
        Keys.General.TYPE: string(KIND),
        Keys.IMatrix.DATASETS: strings(imatrix.datasets),
        Keys.IMatrix.CHUNK_COUNT: uint32(imatrix.n_chunks),
        Keys.IMatrix.CHUNK_SIZE: uint32(imatrix.chunk_size),
    }
    tensors = []
    for name, entry in sorted(imatrix.entries.items()):
        one = len(entry.counts) == 1
        tensors.append((name + SUMS, entry.sums.reshape(-1) if one else entry.sums))
        tensors.append((name + COUNTS, entry.counts if one else entry.counts[:, None]))
    entries = [TensorEntry(name, data.shape, int(GGMLQuantizationType.F32), data.nbytes) for name, data in tensors]
    require_writable(imatrix.path, [imatrix.path], force)
    parts = [header_bytes(metadata, entries), *(data.astype("<f4").tobytes() for _, data in tensors)]
    write_whole(imatrix.path, b"".join(part.ljust(aligned(len(part)), b"\0") for part in parts), force=force)


def _from_gguf(file: GgufFile) -> Imatrix:
    entries = {}
    for name in file.tensors:
        layer = name.removesuffix(COUNTS).removesuffix(SUMS)
        if layer == name or layer in entries:
            continue
        if not {layer + SUMS, layer + COUNTS} <= file.tensors.keys():
            raise SourceError(f"{file.path}: has {name} alone, expected {layer}{SUMS} and {layer}{COUNTS}; {REMEDY}")
        sums, counts = (_floats(file, layer + suffix) for suffix in (SUMS, COUNTS))
        if sums.size % counts.size:
            raise SourceError(f"{file.path}: has {sums.size} values and {counts.size} counts for {layer}; {REMEDY}")
        entries[layer] = Entry(sums.reshape(counts.size, -1), counts)
    if not entries:
        what = f"a model's file ({file.architecture})" if file.architecture else "a GGUF file without layers' inputs"
        raise SourceError(f"{file.path}: is {what}, expected an importance matrix; {REMEDY}")
    datasets = file.value(Keys.IMatrix.DATASETS, ())
    n_chunks, size = (file.value(key, 0) for key in (Keys.IMatrix.CHUNK_COUNT, Keys.IMatrix.CHUNK_SIZE))
    return Imatrix(
        file.path,
        entries,
        tuple(str(name) for name in datasets) if isinstance(datasets, list) else (),
        n_chunks if isinstance(n_chunks, int) else 0,
        size if isinstance(size, int) else 0,
    )


def _floats(file: GgufFile, name: str) -> Float32Array:
    tensor = file.tensors[name]
    if not isinstance(tensor, GgufTensor) or tensor.dtype != "F32":
        raise SourceError(f"{file.path}: {name} is {tensor.dtype}, expected F32; {REMEDY}")
    return tensor.data.reshape(-1).view("<f4").astype(np.float32)


def _from_dat(path: Path) -> Imatrix:
    """Read the older format; a file of anything else claims impossible lengths soon."""
    entries, n_chunks, dataset = {}, 0, b""
    with path.open("rb") as file:
        parts = _DatParts(file, path.stat().st_size)
        try:
            for _ in range(parts.length()):
                name = parts.take(parts.length()).decode()
                count, n_values = parts.number(), parts.length()
                sums = np.frombuffer(parts.take(4 * n_values), "<f4").astype(np.float32)
                entries[name] = Entry(sums[None], np.array([count], np.float32))
            if parts.n_left:
                n_chunks = parts.number()
            if parts.n_left:
                dataset = parts.take(parts.length())
        except ValueError:
            raise SourceError(
                f"{path}: is no importance matrix, neither GGUF nor the older .dat, or is cut off; {REMEDY}"
            ) from None
    return Imatrix(path, entries, (dataset.decode("utf-8", "replace"),) if dataset else (), max(n_chunks, 0), 0)


@dataclass
class _DatParts:
    """What follows in a file of the older format, of which `n_left` bytes are left; ValueError where that is less."""

    file: BinaryIO
    n_left: int

    def take(self, n_bytes: int) -> bytes:
        if not 0 <= n_bytes <= self.n_left:
            raise ValueError
        self.n_left -= n_bytes
        return self.file.read(n_bytes)

    def number(self) -> int:
        return int.from_bytes(self.take(4), "little", signed=True)

    def length(self) -> int:
        value = self.number()
        if value < 1:
            raise ValueError
        return value
