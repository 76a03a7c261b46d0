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

    `group` neighbouring columns share a scale, None means the whole tensor. `coder` looks at a tensor as often as it
    must; `holds` tells whether a ternary grid found in the tensor is kept as it is. A packed folder is written in
    `packing`, with `config` as config.json's quantization_config; `reading` says who can read it, `bits` is the
    information per weight.
    `dequantized` says which of the two forms is the usual one, `plain_dtype` what the other tensors become (None: what
    they are), `packs_embeddings` whether embeddings and output layer can be coded too.
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
        """What writes tensors in the scheme's packing; raise UnsupportedError where nothing does."""
        if self.packing.packer is None:
            raise UnsupportedError(f"{self.name} can't be written: {self.packing.name} can only be read here")
        return self.packing.packer(self.config)


def schemes() -> dict[str, Scheme]:
    """Return every scheme by its name."""
    return by_name("tritgguf.converter.export.schemes", "SCHEME", Scheme)


def scheme_named(name: str) -> Scheme:
    """Return the scheme of that name; raise UnsupportedError listing the names there are."""
    known = schemes()
    if name not in known:
        raise UnsupportedError(f"unknown scheme {name!r}; expected one of {', '.join(known)}")
    return known[name]
