"""Tell which type each tensor of a GGUF file has: its number alone doesn't, since programs use some numbers twice.

Number 42 is llama.cpp's Q2_0, Prism ML's older type of the same name, and Tencent's STQ1_0. No key tells them apart,
but their sizes do: tensors follow each other without gaps. So where a number has a foreign type, exactly one type's
sizes must explain the distances between the tensors, for all tensors of that number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.foreign_type import ForeignType, Layout, foreign_types
from tritgguf.converter.gguf_io.header_reader import TensorDescription
from tritgguf.converter.quant import ggml_types

assert ggml_types.Q2_0  # the import adds Q2_0 to GGMLQuantizationType


class TensorType(NamedTuple):
    """What a tensor's number means: a name, the sizes if known, and the foreign type where it isn't a stock one."""

    name: str
    layout: Layout | None
    foreign: ForeignType | None = None

    @classmethod
    def of(cls, stock: GGMLQuantizationType) -> TensorType:
        return cls(stock.name, Layout(*GGML_QUANT_SIZES[stock]))


def shared_stock_types(types: Iterable[GGMLQuantizationType]) -> dict[GGMLQuantizationType, Layout]:
    """Return those of the types whose number a foreign type has too, with their layouts."""
    shared = {number for kind in foreign_types() for number in kind.numbers}
    return {kind: Layout(*GGML_QUANT_SIZES[kind]) for kind in types if kind in shared}


class _Place(NamedTuple):
    """A tensor's shape, the bytes from its offset to the next tensor's or to the file's end, and which of the two."""

    shape: tuple[int, ...]
    n_bytes: int
    last: bool


def tensor_types(
    path: Path, described: Mapping[str, TensorDescription], alignment: int, body_bytes: int
) -> dict[str, TensorType]:
    """Return each tensor's type; `body_bytes` are there for the data of all tensors.

    Raises UnsupportedError for numbers that are unknown, that no type here explains, or whose type is refused.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in described.items():
        names.setdefault(tensor.number, []).append(name)
    places = _places(described, body_bytes)
    found = {}
    for number, alike in names.items():
        kind = _type_of(path, number, {name: places[name] for name in alike}, alignment)
        found.update(dict.fromkeys(alike, kind))
    return found


def _places(described: Mapping[str, TensorDescription], body_bytes: int) -> dict[str, _Place]:
    ordered = sorted(described.items(), key=lambda item: item[1].offset)
    places: dict[str, _Place] = {}
    end = body_bytes
    for name, tensor in reversed(ordered):
        places[name] = _Place(tensor.shape, end - tensor.offset, not places)
        end = tensor.offset
    return places


def _type_of(path: Path, number: int, places: Mapping[str, _Place], alignment: int) -> TensorType:
    stock = GGMLQuantizationType(number) if number in GGMLQuantizationType._value2member_map_ else None
    foreign = [kind for kind in foreign_types() if number in kind.numbers]
    if stock is not None and not foreign:
        return TensorType.of(stock)
    if not foreign:
        raise UnsupportedError(
            f"{path}: tensor {next(iter(places))} has type {number}, unknown here; expected a type of gguf's Python "
            "package"
        )
    known = [TensorType.of(stock)] if stock is not None else []
    known += [TensorType(kind.name, kind.layout, kind) for kind in foreign]
    fitting = [kind for kind in known if _explains(kind.layout, places, alignment)]
    if len(fitting) == 1:
        return fitting[0]
    cut_off = [] if fitting else [kind for kind in known if _explains(kind.layout, places, alignment, cut_off=True)]
    if cut_off:
        return cut_off[0]  # whichever it is, the reader refuses the file as truncated
    for kind in foreign:
        if kind.layout is None:
            raise UnsupportedError(
                f"{path}: tensor {next(iter(places))} is {kind.numbered}, of {kind.origin}: {kind.refusal}"
            )
    raise _unexplained(path, number, known, fitting)


def _explains(layout: Layout | None, places: Mapping[str, _Place], alignment: int, *, cut_off: bool = False) -> bool:
    """Whether all tensors have that layout's size; with `cut_off` bytes of the file's last tensor are missing."""
    if layout is None:
        return False
    for place in places.values():
        wanted = layout.n_bytes(place.shape)
        if not wanted:
            return False
        padded = -(-wanted // alignment) * alignment
        if place.last and cut_off:
            fits = place.n_bytes < wanted
        else:
            fits = place.n_bytes == padded or (place.last and place.n_bytes == wanted)
        if not fits:
            return False
    return True


def _unexplained(path: Path, number: int, known: list[TensorType], fitting: list[TensorType]) -> UnsupportedError:
    types = " or ".join(f"{kind.name} ({kind.layout})" for kind in known)
    what = "tensors too small to tell which" if fitting else "tensors of another size"
    return UnsupportedError(
        f"{path}: type {number} is {types}, but the file has {what}: it is damaged, or a program unknown here wrote "
        "it; fetch it again, or start from the model in another type"
    )
