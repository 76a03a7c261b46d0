"""Change GGUF files for tests: bytes in place, or tensors and keys in a new file; with gguf's own reader and writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

Stored = tuple[np.ndarray, GGMLQuantizationType]  # rows of bytes (or float32), and their type


def patch(path: Path, name: str, change: Callable[[np.ndarray], None]) -> Path:
    """Let `change` edit the bytes of one tensor, shape (n_rows, row bytes), in the file itself."""
    reader = gguf.GGUFReader(path, "r+")
    tensor = next(tensor for tensor in reader.tensors if tensor.name == name)
    rows = tensor.data.view(np.uint8).reshape(int(np.prod(tensor.shape[1:])), -1)
    before = rows.copy()
    change(rows)
    assert not np.array_equal(before, rows), "the mutant is the original"
    reader.data.flush()
    return path


def rewrite(
    path: Path,
    out: Path,
    *,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Stored | None] | None = None,
    **split: Any,
) -> Path:
    """Write the file again with other values of some keys and other tensors; None leaves one out.

    `split` are gguf's own options for writing several files, whose names it makes of `out`.
    """
    reader = gguf.GGUFReader(path)
    keys, tensors = dict(keys or {}), dict(tensors or {})
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents(), **split)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = keys.pop(name, field.contents())
        if value is not None:
            element = field.types[-1] if field.types[0] is GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, field.types[0], element)
    for name, value in keys.items():
        writer.add_key_value(name, value, GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        stored = tensors.pop(tensor.name, (tensor.data, tensor.tensor_type))
        if stored is not None:
            writer.add_tensor(tensor.name, np.ascontiguousarray(stored[0]), raw_dtype=stored[1])
    for name, stored in tensors.items():
        assert stored is not None
        writer.add_tensor(name, np.ascontiguousarray(stored[0]), raw_dtype=stored[1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
