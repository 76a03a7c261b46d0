"""Files as PyTorch writes them, made without it; goldens of the real one are in golden/pytorch."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.checkpoint_recipes import Recipe

# Small enough to be committed in shards.
TINY = Recipe("LlamaForCausalLM", "float", hidden=32, ffn=64, heads=4, kv_heads=2, vocab=384, tied=True, layers=1)


class Torch(NamedTuple):
    """Something of a module, pickled by its name only."""

    module: str
    name: str


class Storage(NamedTuple):
    """A persistent reference to a storage."""

    key: str
    n_items: int
    kind: str = "FloatStorage"


def global_(module: str, name: str) -> bytes:
    """Return the opcode that names a global."""
    return b"c" + f"{module}\n{name}\n".encode()


def dumped(value: object) -> bytes:
    """Return the opcodes that build a plain value, or refer to a storage; no PROTO, no STOP."""
    if isinstance(value, Storage):
        reference = b"(" + dumped("storage") + global_("torch", value.kind) + dumped(value.key) + dumped("cpu")
        return reference + dumped(value.n_items) + b"tQ"
    if isinstance(value, Torch):
        return global_(*value)
    if isinstance(value, bytes):  # opcodes already
        return value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(dumped, value)) + b"t"
    if isinstance(value, dict):
        return b"}(" + b"".join(dumped(key) + dumped(item) for key, item in value.items()) + b"u"
    if isinstance(value, str):
        return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()
    return pickle.dumps(value, protocol=2)[2:-1]


ORDERED_DICT = global_("collections", "OrderedDict") + b")R"


def tensor(
    storage: object,
    shape: Sequence[int],
    strides: Sequence[int] | None = None,
    offset: int = 0,
    *more: object,
    hooks: object = ORDERED_DICT,
) -> bytes:
    """Return the opcodes that rebuild a tensor, as torch.save writes them."""
    if strides is None:
        strides = [1] * len(shape)
        for place in range(len(shape) - 2, -1, -1):
            strides[place] = strides[place + 1] * shape[place + 1]
    arguments = (storage, offset, tuple(shape), tuple(strides), False, hooks, *more)
    return global_("torch._utils", "_rebuild_tensor_v2") + dumped(arguments) + b"R"


def state(**entries: object) -> bytes:
    """Return the whole pickle of a state dict."""
    return whole(dumped(entries))


def whole(opcodes: bytes) -> bytes:
    return b"\x80\x02" + opcodes + b"."


def write(path: Path, code: bytes, storages: Mapping[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    """Write a file with the pickle `code` and storages by their keys."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", code)
        archive.writestr("archive/byteorder", b"little")
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")
    return path
