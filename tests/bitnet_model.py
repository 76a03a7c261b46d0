"""A seeded BitNet of three layers, shaped like 2B-4T: relu² in the FFN, two sub norms a layer, GQA, tied embedding.

Linear weights are trit * scale with one scale per tensor, so F32, F16, TQ1_0 and TQ2_0 all hold them exactly. The
same values go to transformers (tests/golden/record_bitnet.py) and into GGUF files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tests import checkpoints, tiny_tokenizers
from tritgguf.converter.core.tensors import CodedRows
from tritgguf.converter.quant.codec import TernaryCodec, codec_named

Floats = NDArray[np.float32]

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT = 256, 512, 3, 4, 2, 320, 1024
RMS_EPSILON, ROPE_THETA = 1e-5, 500000.0
N_TOKENS = 200
ARCHITECTURES = ("bitnet-b1.58", "bitnet")  # the name the file goes by, and the one llama.cpp knows

# Hugging Face name, GGUF name, rows, columns; of the linear layers.
_KV = HIDDEN // HEADS * KV_HEADS
_LINEARS = (
    ("self_attn.q_proj", "attn_q", HIDDEN, HIDDEN),
    ("self_attn.k_proj", "attn_k", _KV, HIDDEN),
    ("self_attn.v_proj", "attn_v", _KV, HIDDEN),
    ("self_attn.o_proj", "attn_output", HIDDEN, HIDDEN),
    ("mlp.gate_proj", "ffn_gate", FFN, HIDDEN),
    ("mlp.up_proj", "ffn_up", FFN, HIDDEN),
    ("mlp.down_proj", "ffn_down", HIDDEN, FFN),
)
_NORMS = (
    ("input_layernorm", "attn_norm", HIDDEN),
    ("self_attn.attn_sub_norm", "attn_sub_norm", HIDDEN),
    ("post_attention_layernorm", "ffn_norm", HIDDEN),
    ("mlp.ffn_sub_norm", "ffn_sub_norm", FFN),
)


def token_ids() -> list[int]:
    """Return the token sequence that the golden was recorded on."""
    return [int(word % VOCAB) for word in checkpoints._raw_words("bitnet/token_ids", N_TOKENS)]


def linears() -> dict[tuple[str, str], CodedRows]:
    """Return the ternary weights by (Hugging Face name, GGUF name)."""
    found = {}
    for layer in range(LAYERS):
        for hf_name, gguf_name, n_rows, n_columns in _LINEARS:
            noise = checkpoints._bell(f"bitnet/{layer}/{hf_name}", (n_rows, n_columns))
            codes = (np.sign(noise) * (np.abs(noise) > np.float32(0.43))).astype(np.int8)
            # Eight significant bits and a power of two: an fp16 value.
            spread = int(checkpoints._raw_words(f"bitnet/{layer}/{hf_name}/scale", 1)[0] % 64)
            scale = (128 + spread) / 128 * 2.0 ** round(math.log2(1.25 / math.sqrt(n_columns)))
            scales = np.full((n_rows, n_columns // 256), scale, np.float32)
            names = (f"model.layers.{layer}.{hf_name}.weight", f"blk.{layer}.{gguf_name}.weight")
            found[names] = CodedRows(codes, scales, 256)
    return found


def others() -> dict[tuple[str, str], Floats]:
    """Return the norms and the embedding by (Hugging Face name, GGUF name), as fp16 values."""
    shapes: dict[tuple[str, str], tuple[int, ...]] = {
        ("model.embed_tokens.weight", "token_embd.weight"): (VOCAB, HIDDEN),
        ("model.norm.weight", "output_norm.weight"): (HIDDEN,),
    }
    for layer in range(LAYERS):
        for hf_name, gguf_name, size in _NORMS:
            shapes[f"model.layers.{layer}.{hf_name}.weight", f"blk.{layer}.{gguf_name}.weight"] = (size,)
    found = {}
    for names, shape in shapes.items():
        noise = checkpoints._bell(f"bitnet/{names[0]}", shape)
        values = noise * np.float32(0.5) if len(shape) == 2 else np.float32(1) + noise * np.float32(0.25)
        found[names] = values.astype(np.float16).astype(np.float32)
    return found


def state_dict() -> dict[str, Floats]:
    """Return every weight as floats, by its Hugging Face name."""
    rows = {hf_name: coded.codes * np.repeat(coded.scales, 256, axis=1) for (hf_name, _), coded in linears().items()}
    return {**rows, **{hf_name: values for (hf_name, _), values in others().items()}}


def digest() -> str:
    """Return the sha256 of the weights and token ids: what the golden was recorded on."""
    total = hashlib.sha256(np.array(token_ids(), "<i4").tobytes())
    for name, values in sorted(state_dict().items()):
        total.update(name.encode() + b"\0" + np.ascontiguousarray(values, "<f4").tobytes())
    return total.hexdigest()


def write_gguf(
    path: Path,
    type_name: str,
    *,
    architecture: str = ARCHITECTURES[0],
    prefixes: tuple[str, ...] = ARCHITECTURES,
    changes: Mapping[str, int] | None = None,
    scale_tensors: bool = False,
) -> Path:
    """Write the model with its linear weights as `type_name`.

    `changes` replaces uint32 values by full key; `scale_tensors` puts the scales into tensors of their own.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for prefix in prefixes:
        add_numbers(writer, prefix, HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, CONTEXT)
    for key, value in (changes or {}).items():
        writer.kv_data[0][key] = gguf.GGUFValue(value, gguf.GGUFValueType.UINT32)
    _add_vocabulary(writer)
    float_type = np.float16 if type_name == "f16" else np.float32
    codec = codec_named(type_name)
    for (_, name), values in others().items():
        writer.add_tensor(name, values.astype(float_type) if values.ndim == 2 else values)
    for (_, name), rows in linears().items():
        if scale_tensors:
            writer.add_tensor(name.replace(".weight", ".scale"), rows.scales[0, :1])
            rows = CodedRows(rows.codes, np.ones_like(rows.scales), 256)
        if isinstance(codec, TernaryCodec):
            writer.add_tensor(name, codec.pack(rows), raw_dtype=codec.ggml_type)
        else:
            writer.add_tensor(name, (rows.codes * np.repeat(rows.scales, 256, axis=1)).astype(float_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_numbers(
    writer: gguf.GGUFWriter, prefix: str, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, context: int
) -> None:
    """Add a model's hyperparameters under `prefix`."""
    writer.add_uint32(f"{prefix}.context_length", context)
    writer.add_uint32(f"{prefix}.embedding_length", hidden)
    writer.add_uint32(f"{prefix}.feed_forward_length", ffn)
    writer.add_uint32(f"{prefix}.block_count", layers)
    writer.add_uint32(f"{prefix}.attention.head_count", heads)
    writer.add_uint32(f"{prefix}.attention.head_count_kv", kv_heads)
    writer.add_uint32(f"{prefix}.rope.dimension_count", hidden // heads)
    writer.add_float32(f"{prefix}.rope.freq_base", ROPE_THETA)
    writer.add_float32(f"{prefix}.attention.layer_norm_rms_epsilon", RMS_EPSILON)


def _add_vocabulary(writer: gguf.GGUFWriter) -> None:
    style = tiny_tokenizers.STYLES["llama3"]
    ids = tiny_tokenizers.vocabulary(style)
    words = sorted(ids, key=lambda word: ids[word])
    words += [f"<|reserved_{number}|>" for number in range(VOCAB - len(words))]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(words)
    writer.add_token_types([control if word.startswith("<|") else normal for word in words])
    writer.add_token_merges(tiny_tokenizers._MERGES)
    writer.add_bos_token_id(ids[style.bos or ""])
    writer.add_eos_token_id(ids[style.eos])
    writer.add_eot_token_id(ids["<|im_end|>"])
    writer.add_chat_template(tiny_tokenizers._TEMPLATE)
