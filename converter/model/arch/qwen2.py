"""Qwen2, Qwen2.5 and Qwen2.5-Coder: biases on q, k and v; neox rotation, so rows keep their order."""

from gguf import MODEL_ARCH

from tritgguf.converter.model.architecture import Architecture, Biases

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.QWEN2,
    classes={"Qwen2ForCausalLM": {"num_key_value_heads": 32, "max_position_embeddings": 32768}},
    biases=lambda _config: Biases(qkv=True),
    free_head_dim=False,
)
