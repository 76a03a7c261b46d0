"""What a scheme is: a rule that quantizes the linear layers of a checkpoint, and the packing that it is written in.

Quantizing and packing are separate: a `Coder` makes codes and scales of float rows, the packing's packer makes bytes of
those, and reading the packing gives the same codes and scales back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tritgguf.converter.checkpoint.packer import Coder, Packer
from tritgguf.converter.checkpoint.packing import Packing
from tritgguf.converter.core.registry import by_name
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.quant.grids import Grid


@dataclass(frozen=True)
class Scheme:
    """One scheme of `tritgguf quantize`.

    - `group` neighbouring columns share a scale; None means the whole tensor.
    - `coder` takes a tensor, the grid that it is on and the number of threads; it may read the tensor.
    - `holds` tells whether it keeps the codes and scales of a tensor that is on a grid.
    - A packed folder is written in `packing`, with `config` as config.json's quantization_config.
    - `reading` tells who can read such a folder; `bits` is the information per weight.
    - `dequantized` tells whether the folder holds floats by default.
    - `plain_dtype` is the dtype of the tensors that aren't quantized; None means their own.
    - `packs_embeddings` tells whether embeddings and output layer can be quantized too.
    """

    name: str
    group: int | None
    coder: Callable[[SourceTensor, Grid | None, int], Coder]
    holds: Callable[[Grid, SourceTensor], bool]
    packing: Packing
    config: Mapping[str, Any]
    reading: str
    bits: float | None = None
    dequantized: bool = False
    plain_dtype: str | None = None
    packs_embeddings: bool = False

    @property
    def packer(self) -> Packer:
        """The packing's packer for this scheme; raise UnsupportedError if it has none."""
        if self.packing.packer is None:
            raise UnsupportedError(f"{self.name} can't be written: the packing {self.packing.name} has no packer")
        return self.packing.packer(self.config)


def schemes() -> dict[str, Scheme]:
    """Return every scheme by its name."""
    return by_name("tritgguf.converter.export.schemes", "SCHEME", Scheme)


def scheme_named(name: str) -> Scheme:
    """Return the scheme of that name; raise UnsupportedError that lists the known names."""
    known = schemes()
    if name not in known:
        raise UnsupportedError(f"unknown scheme {name!r}; expected one of {', '.join(known)}")
    return known[name]
