"""BitNet b1.58 2B-4T: as bitnet, but with squared ReLU, which llama.cpp's bitnet graph doesn't compute.

The file calls itself bitnet-b1.58, so that every program without the right activation refuses it by name; tritgguf's
runtime loads it as bitnet and puts the activation in (runtime/relu2.py).
"""

from gguf import MODEL_ARCH

from tritgguf.converter.model.architecture import Architecture

BITNET_CONFIG = {
    "num_key_value_heads": 5,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "hidden_act": "relu2",
}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.BITNET,
    classes={"BitNetForCausalLM": BITNET_CONFIG},
    own_name="bitnet-b1.58",
    activations=("relu2",),
    sub_norms=("self_attn.attn_sub_norm", "mlp.ffn_sub_norm"),
    honours_scales=True,
    free_head_dim=False,
    own_output=False,
)
