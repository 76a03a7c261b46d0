"""Check that a checkpoint holds every tensor that the graph needs, and no tensor that the graph can't use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.model.config import DecoderConfig
from tritgguf.converter.model.shifted import ShiftedTensor
from tritgguf.converter.model.stored_forms import StoredForm

# Buffers in old checkpoints; the graph computes them itself.
MULTI_TOKEN = re.compile(r"^mtp\.")  # layers that guess further tokens at once; transformers leaves them out as well
IGNORED = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)$")


def match_tensors(
    specs: Sequence[TensorSpec], found: Mapping[str, SourceTensor], config: DecoderConfig
) -> tuple[dict[str, SourceTensor], list[str]]:
    """Return the tensors that the graph needs, by `TensorSpec.source`, and notes on those that are left out.

    Raises SourceError where one is missing or has another shape, UnsupportedError where the graph can't use one.
    """
    stored, notes = needed_tensors(specs, found, config)
    return assembled_tensors(specs, stored), notes


def assembled_tensors(specs: Sequence[TensorSpec], stored: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Return the tensors that the graph needs, by `TensorSpec.source`, made of those that `needed_tensors` returns."""
    assembled: dict[str, SourceTensor] = {}
    for spec in (spec for spec in specs if spec.data is None):
        form, shape = _form_in(spec, stored), spec.stored_shape or spec.shape
        tensor = form.assembled(spec.source, shape, [stored[name] for name in form.names])
        tensor = spec.derive.made(tensor) if spec.derive else tensor
        assembled[spec.source] = ShiftedTensor(spec.source, tensor.shape, tensor, spec.plus) if spec.plus else tensor
    return assembled


def needed_tensors(
    specs: Sequence[TensorSpec], found: Mapping[str, SourceTensor], config: DecoderConfig
) -> tuple[dict[str, SourceTensor], list[str]]:
    """Return the checkpoint's tensors that the graph needs, by their names in it; else as `match_tensors`."""
    needed: dict[str, SourceTensor] = {}
    for spec in (spec for spec in specs if spec.data is None):
        form, shape = _form_in(spec, found), spec.stored_shape or spec.shape
        needed |= {name: _fitted(name, form.stored_shape(shape), found) for name in form.names}
    left_out = [name for name in found if name not in needed and not IGNORED.search(name)]
    notes = []
    if guessing := [name for name in left_out if MULTI_TOKEN.match(name)]:
        left_out = [name for name in left_out if not MULTI_TOKEN.match(name)]
        notes.append(f"{len(guessing)} tensors mtp.* are left out: the model computes without them")
    if config.tied and "lm_head.weight" in left_out:
        left_out.remove("lm_head.weight")
        notes.append("lm_head.weight is left out: config.json ties the output to the embeddings")
    if left_out:
        raise UnsupportedError(
            f"the checkpoint holds {left_out[0]}, which llama.cpp's {config.graph} graph doesn't use "
            f"({len(left_out)} such tensors): without it the model would compute something else"
        )
    return needed, notes


def _form_in(spec: TensorSpec, found: Mapping[str, SourceTensor]) -> StoredForm:
    """Return the way in which the checkpoint stores a tensor; where it has none of its tensors, the usual one."""
    forms = (form for form in spec.forms if any(name in found for name in form.names))
    return next(forms, spec.forms[0])


def _fitted(name: str, shape: tuple[int, ...], found: Mapping[str, SourceTensor]) -> SourceTensor:
    if name not in found:
        raise SourceError(f"the checkpoint has no tensor {name}, which config.json calls for (shape {shape})")
    fitted = found[name].fitted(shape)
    if fitted is None:
        raise SourceError(
            f"tensor {name} has the shape {found[name].shape}, but config.json calls for {shape}: "
            "weights and config.json belong to different models"
        )
    return fitted
