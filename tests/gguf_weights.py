"""What a GGUF file makes a model compute with: dequantized by ggml, with the checkpoint's names and row order."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.oracles import libggml

Floats = NDArray[np.float32]

# ggml's NORM rotation, which these graphs use, pairs neighbouring rows of q and k.
INTERLEAVED = ("llama", "minicpm")
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def read(path: Path, sub_norms: tuple[str, str] | None = None) -> dict[str, Floats]:
    """Return every tensor by its Hugging Face name, `.scale` tensors multiplied in.

    `sub_norms` are the checkpoint's names of the norms before the attention's output and the FFN's.
    """
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: dequantized(tensor) for tensor in reader.tensors}
    for name in [name for name in tensors if name.endswith(".scale")]:
        tensors[name.replace(".scale", ".weight")] *= tensors.pop(name)
    found = {}
    for name, values in tensors.items():
        found[hf_name(name, sub_norms or ("", ""))] = _in_order(reader, name, values)
    return found


def types(path: Path) -> dict[str, str]:
    """Return each tensor's type by its GGUF name."""
    return {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(path).tensors}


def dequantized(tensor: gguf.ReaderTensor) -> Floats:
    """Return one tensor as float32, in its own shape."""
    shape = [int(size) for size in reversed(tensor.shape)]
    kind = tensor.tensor_type
    if kind.name in ("F32", "F16"):
        return np.array(tensor.data, np.float32).reshape(shape)
    if kind.name == "BF16":
        return (np.ascontiguousarray(tensor.data).view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    n_rows = math.prod(shape[:-1])
    return libggml.dequantize(np.array(tensor.data).reshape(n_rows, -1), kind).reshape(shape)


def hf_name(name: str, sub_norms: tuple[str, str]) -> str:
    """Return the checkpoint's name of a tensor."""
    part, suffix = name.rsplit(".", 1)
    if not part.startswith("blk."):
        return f"{OUTSIDE[part]}.{suffix}"
    _, layer, part = part.split(".", 2)
    inside = PARTS | dict(zip(("attn_sub_norm", "ffn_sub_norm"), sub_norms, strict=True))
    return f"model.layers.{layer}.{inside[part]}.{suffix}"


def _in_order(reader: gguf.GGUFReader, name: str, values: Floats) -> Floats:
    """Return q and k rows in the order of transformers, whose rotation pairs row i of a head with i + half a head."""
    architecture = reader.fields["general.architecture"].contents()
    if architecture not in INTERLEAVED or not any(f".{part}." in name for part in ("attn_q", "attn_k")):
        return values
    keys = "head_count" if ".attn_q." in name else "head_count_kv"
    n_heads = int(reader.fields[f"{architecture}.attention.{keys}"].contents())
    size = len(values) // n_heads
    ordered = np.empty_like(values)
    for head in range(n_heads):
        rows = values[head * size : (head + 1) * size]
        ordered[head * size : head * size + size // 2] = rows[0::2]
        ordered[head * size + size // 2 : (head + 1) * size] = rows[1::2]
    return ordered


def assert_same(found: dict[str, Floats], expected: dict[str, Floats], tolerance: float) -> None:
    """Raise AssertionError where a linear weight differs by more than `tolerance` (relative), or any other tensor.

    Embeddings and the output layer may be rounded to fp16; norms and biases are the same.
    """
    if found.keys() != expected.keys():
        raise AssertionError(f"tensors {sorted(found.keys() ^ expected.keys())} are only on one side")
    for name, wanted in expected.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            # Half a unit in the last place, of the smallest normal numbers and below that of a constant size.
            allowed = np.maximum(np.abs(wanted) * 2.0**-11, 2.0**-25)
            wrong = bool((np.abs(found[name] - wanted) > allowed).any())
        else:
            wrong = relative_error(found[name], wanted) > (tolerance if "_proj.weight" in name else 0)
        if wrong:
            raise AssertionError(f"{name} differs by {relative_error(found[name], wanted):.1e}")


def relative_error(found: Floats, expected: Floats) -> float:
    """Return the largest |found - expected| / |expected| of any value; infinity where only one of them is 0."""
    if found.shape != expected.shape:
        raise AssertionError(f"shapes {found.shape} and {expected.shape}")
    different = found != expected
    if not different.any():
        return 0.0
    if (expected[different] == 0).any():
        return math.inf
    wanted = expected[different].astype(np.float64)
    return float(np.abs((found[different] - wanted) / wanted).max())
