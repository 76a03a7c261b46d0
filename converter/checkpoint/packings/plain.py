"""Plain floats: every tensor holds the weights themselves, ternary (TriLM, Bonsai, BitCPM) or not."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.checkpoint.packer import Coder, Constants, Packer, Piece
from tritgguf.converter.checkpoint.packing import Packing, StoredTensors, quantization
from tritgguf.converter.checkpoint.packings import base3, bitnet_packed
from tritgguf.converter.checkpoint.safetensors_layout import Entry
from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.tensors import CodedRows, Float32Array, SourceTensor
from tritgguf.converter.errors import SourceError, TensorError, UnsupportedError
from tritgguf.converter.quant.codec import FloatCodec, float_codec
from tritgguf.converter.quant.grids import find_grid


def recognizes(config: ConfigJson, stored: StoredTensors) -> bool:
    """Whether config.json names no other format; asked only if no other packing recognizes the checkpoint."""
    return quantization(config).get("quant_method") in (None, "bitnet")


def read(config: ConfigJson, stored: StoredTensors, linear: Container[str]) -> dict[str, SourceTensor]:
    """Return the tensors; if config.json says quant_method bitnet, they must be ternary, as Falcon-E's bfloat16 are."""
    packed = next((name for name, tensor in stored.items() if tensor.dtype == "U8"), None)
    if packed is not None:
        raise SourceError(
            f"{packed} is packed, but the checkpoint has neither {packed}{bitnet_packed.SCALE} nor "
            f"{packed}{base3.SCALES}: fetch it again"
        )
    if quantization(config):
        first = next((tensor for name, tensor in stored.items() if name in linear), None)
        if first is None or find_grid(first) is None:
            raise UnsupportedError(
                "config.json says quant_method bitnet, but the weights are neither packed nor ternary floats, and "
                "no rule to ternarize them is given; expected packed weights, or quantization_mode online"
            )
    return dict(stored)


@dataclass(frozen=True)
class FloatPacker(Packer):
    """Writes floats of one dtype: F32, F16 or BF16; codes are written as code · scale."""

    dtype: str

    @property
    def codec(self) -> FloatCodec:
        return float_codec(FLOAT_DTYPES[self.dtype].codec)

    def entries(self, name: str, shape: tuple[int, ...]) -> tuple[Entry, ...]:
        return (Entry(name, self.dtype, shape),)

    def pack(
        self, name: str, shape: tuple[int, ...], chunk: slice, rows: CodedRows, constants: Constants
    ) -> list[Piece]:
        return [self._packed(name, chunk, rows.dequantize()[:, : shape[-1]])]

    def encode(
        self, name: str, shape: tuple[int, ...], chunk: slice, values: Float32Array, coder: Coder | None
    ) -> tuple[list[Piece], Float32Array]:
        if coder is None:
            piece = self._packed(name, chunk, values)
            return [piece], self.codec.decode(piece[2])
        pieces = self.pack(name, shape, chunk, coder.quantize(values), coder.constants)
        return pieces, self.codec.decode(pieces[0][2])

    def _packed(self, name: str, chunk: slice, values: Float32Array) -> Piece:
        try:
            stored = self.codec.encode(values)
        except TensorError as error:
            raise TensorError(f"{name}: {error}") from error
        return name, chunk.start * stored.shape[1], stored


PACKING = Packing("plain floats", recognizes, read, last_resort=True)
