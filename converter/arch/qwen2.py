"""Qwen2, Qwen2.5 and Qwen2.5-Coder: biases on q, k and v; neox rotation, so rows keep their order."""

from gguf import MODEL_ARCH

from tritgguf.converter.architecture import Architecture, Biases

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.QWEN2,
    hf_names=("Qwen2ForCausalLM",),
    biases=lambda _config: Biases(qkv=True),
    free_head_dim=False,
)
