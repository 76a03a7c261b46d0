"""Qwen3 (dense): norms on q and k, a head_dim of its own; neox rotation, so rows keep their order."""

from gguf import MODEL_ARCH

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.architecture import Architecture, Biases


def biases(config: ConfigJson) -> Biases:
    if config.get("attention_bias", False):
        raise UnsupportedError(
            "config.json: attention_bias is true, which gives o_proj a bias that llama.cpp's qwen3 graph doesn't add"
        )
    return Biases()


ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.QWEN3,
    classes={"Qwen3ForCausalLM": {"num_key_value_heads": 32, "max_position_embeddings": 32768, "head_dim": 128}},
    biases=biases,
    honours_scales=True,
    qk_norms=True,
)
