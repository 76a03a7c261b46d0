"""BitNet b1.58 as 1bitLLM published it: norms before o_proj and down_proj, silu, tied; float masters."""

from gguf import MODEL_ARCH

from tritgguf.converter.model.architecture import Architecture

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.BITNET,
    classes={"BitnetForCausalLM": {"tie_word_embeddings": True}},
    sub_norms=("self_attn.inner_attn_ln", "mlp.ffn_layernorm"),
    honours_scales=True,
    free_head_dim=False,
    own_output=False,
)
