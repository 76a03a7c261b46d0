"""Does a checkpoint hold the tensors that the graph needs, and nothing that the graph has no place for?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.model.config import DecoderConfig

# Buffers that old checkpoints carry; the graph computes them itself.
IGNORED = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)$")


def match_tensors(
    specs: Sequence[TensorSpec], found: Mapping[str, SourceTensor], config: DecoderConfig
) -> tuple[dict[str, SourceTensor], list[str]]:
    """Check that the checkpoint holds what the graph needs and nothing else; return that, and notes on the rest."""
    needed = {spec.source: spec for spec in specs if spec.data is None}
    matched: dict[str, SourceTensor] = {}
    for name, spec in needed.items():
        if name not in found:
            raise SourceError(f"the checkpoint has no tensor {name}, which config.json calls for (shape {spec.shape})")
        fitted = found[name].fitted(spec.shape)
        if fitted is None:
            raise SourceError(
                f"tensor {name} has the shape {found[name].shape}, but config.json calls for {spec.shape}: "
                "weights and config.json don't belong together"
            )
        matched[name] = fitted
    left_out = [name for name in found if name not in needed and not IGNORED.search(name)]
    notes = []
    if config.tied and "lm_head.weight" in left_out:
        left_out.remove("lm_head.weight")
        notes.append("lm_head.weight is left out: config.json ties the output to the embeddings")
    if left_out:
        raise UnsupportedError(
            f"the checkpoint holds {left_out[0]}, which llama.cpp's {config.graph} graph has no place for "
            f"({len(left_out)} such tensors): leaving it out would give another model"
        )
    return matched, notes
