"""A tensor of a GGUF file of which only the header is here, as a plan of a model on the hub has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from gguf import GGMLQuantizationType

from tritgguf.converter.core.tensors import RowIndices, SourceTensor
from tritgguf.converter.errors import SourceError


@dataclass(frozen=True)
class DescribedTensor(SourceTensor):
    """The tensor `promised`, whose type and size are known, and no value: reading one raises SourceError."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file_name: str
    promised: SourceTensor

    @classmethod
    def of(cls, tensor: SourceTensor, file_name: str) -> DescribedTensor:
        return cls(tensor.name, tensor.dtype, tensor.shape, file_name, tensor)

    @property
    def n_bytes(self) -> int:
        return self.promised.n_bytes

    @property
    def ggml_type(self) -> GGMLQuantizationType | None:
        return self.promised.ggml_type

    @property
    def foreign(self) -> bool:
        return self.promised.foreign

    @property
    def described(self) -> bool:
        return True

    def read(self, rows: slice | RowIndices) -> NoReturn:
        raise SourceError(f"{self.file_name}: only its header is here, so {self.name} can't be read: fetch the file")

    def read_bytes(self, rows: slice | RowIndices) -> NoReturn:
        self.read(rows)
