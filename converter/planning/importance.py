"""What an importance matrix changed in a plan: told to the user, and an error where it is nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.imatrix import Imatrix
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.quant.method import Method, methods


def require_effect(imatrix: Imatrix, tensors: Sequence[TensorPlan], method: Method) -> None:
    """Raise UnsupportedError where the importance matrix weighs no tensor."""
    option = f"--imatrix {imatrix.path}"
    if any(tensor.encoder.weighted for tensor in tensors):
        return
    if method.weighted is None:
        others = " or ".join(f"--method {name}" for name, other in methods().items() if other.weighted is not None)
        raise UnsupportedError(f"{option}: --method {method.name} takes no importance; use {others}")
    quantized = [tensor.spec.name for tensor in tensors if tensor.encoder.rounds]
    if not quantized:
        raise UnsupportedError(
            f"{option} has no effect: {method.name} quantizes no tensor here, since all keep their values or their own "
            "levels, or have types that are fitted without importance; leave it out, or choose a type such as --type "
            "tq2_0"
        )
    raise UnsupportedError(
        f"{option}: has no inputs for any of the {len(quantized)} tensors to quantize, such as {quantized[0]}; it has "
        f"{len(imatrix.entries)} entries, such as {min(imatrix.entries)}: it is another model's, or of another text "
        "than one that reaches these layers"
    )


def importance_note(imatrix: Imatrix, tensors: Sequence[TensorPlan]) -> str:
    """Return how many tensors the importance matrix weighs, and which it has nothing about."""
    quantized = [tensor for tensor in tensors if tensor.encoder.rounds]
    without = [tensor.spec.name for tensor in quantized if not tensor.encoder.weighted]
    chunks = f", {imatrix.n_chunks} chunks" if imatrix.n_chunks else ""
    texts = f" of {', '.join(imatrix.datasets)}{chunks}" if imatrix.datasets else ""
    weighted = [tensor.spec.name for tensor in quantized if tensor.encoder.weighted]
    note = f"{imatrix.path.name}{texts}: {len(weighted)} of {len(quantized)} quantized tensors are importance-weighted"
    if unreached := sum(imatrix.n_without(name) for name in weighted):
        note += f"; {unreached} matrices of experts had no inputs and are fitted without"
    if without:
        names = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in without))
        note += f"; it has no inputs of {names:.300}, which are fitted without"
    return note
