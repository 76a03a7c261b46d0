"""BitNet b1.58 2B-4T: as bitnet, but with squared ReLU, which llama.cpp's bitnet graph doesn't compute.

The file calls itself bitnet-b1.58, so that every program without the right activation refuses it by name. tritgguf's
runtime loads it as bitnet and replaces the activation.
"""

from __future__ import annotations

from functools import partial

from gguf import MODEL_ARCH

from tritgguf.converter.model.arch import bitnet
from tritgguf.converter.model.architecture import Architecture
from tritgguf.converter.model.decoder import require_heads_of_hidden_size, require_tied_output

BITNET_CONFIG = {
    "num_key_value_heads": 5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "hidden_act": "relu2",
}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.BITNET,
    classes={"BitNetForCausalLM": BITNET_CONFIG},
    tensors=partial(bitnet.tensors, attention_sub_norm="attn_sub_norm", feed_forward_sub_norm="ffn_sub_norm"),
    requires=(require_heads_of_hidden_size, require_tied_output),
    activations=("relu2",),
    honours_scales=True,
    own_name="bitnet-b1.58",
)
