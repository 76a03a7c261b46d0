"""Of the types that store a tensor exactly, the one that generates tokens fastest, where that is known."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.quant.codec import Codec, TernaryCodec

WORTH_BYTES = 1.05  # a larger type must be at least this many times as fast


def is_faster(codec: Codec, other: Codec, seconds_per_weight: Mapping[str, float]) -> bool:
    """Whether a type is known to be faster than another by as much as its bytes are worth."""
    own, others = seconds_per_weight.get(codec.name), seconds_per_weight.get(other.name)
    return own is not None and others is not None and others >= WORTH_BYTES * own


def fastest(fitting: Sequence[TernaryCodec], seconds_per_weight: Mapping[str, float]) -> TernaryCodec:
    """Return the smallest type that is about as fast as the fastest; the first one where its speed isn't known.

    `fitting` are the types to choose from, smallest first; `seconds_per_weight` is Request's.
    """
    known = [codec for codec in fitting if codec.name in seconds_per_weight]
    if fitting[0] not in known:
        return fitting[0]
    best = min(known, key=lambda codec: seconds_per_weight[codec.name])
    return next(codec for codec in known if not is_faster(best, codec, seconds_per_weight))


def words(chosen: Codec, smallest: Codec, seconds_per_weight: Mapping[str, float]) -> str:
    """Return in words why a type was chosen though another one is smaller."""
    ratio = seconds_per_weight[smallest.name] / seconds_per_weight[chosen.name]
    return f"{chosen.name} rather than {smallest.name}: decodes {ratio:.1f} times as fast on this machine"


def notes(tensors: Sequence[TensorPlan], seconds_per_weight: Mapping[str, float]) -> list[str]:
    """Return a line for each type that was chosen for its speed, with what the smallest one would save."""
    saved: Counter[tuple[Codec, Codec]] = Counter()
    for tensor in tensors:
        if tensor.smallest is not None:
            *rows, n_columns = tensor.spec.shape
            more_per_row = tensor.codec.row_bytes(n_columns) - tensor.smallest.row_bytes(n_columns)
            saved[tensor.codec, tensor.smallest] += math.prod(rows) * more_per_row
    return [
        f"{words(chosen, smallest, seconds_per_weight)}; --smallest stores {smallest.name} and saves "
        f"{format_size(n_bytes)}"
        for (chosen, smallest), n_bytes in saved.items()
    ]
