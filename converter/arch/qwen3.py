"""Qwen3 (dense): norms on q and k, a head_dim of its own; neox rotation, so rows keep their order."""

from gguf import MODEL_ARCH

from tritgguf.converter.architecture import Architecture, Biases
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model_config import ConfigJson


def biases(config: ConfigJson) -> Biases:
    if config.get("attention_bias", False):
        raise UnsupportedError(
            "config.json: attention_bias is true, which gives o_proj a bias that llama.cpp's qwen3 graph doesn't add"
        )
    return Biases()


ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.QWEN3,
    hf_names=("Qwen3ForCausalLM",),
    biases=biases,
    honours_scales=True,
    qk_norms=True,
    default_head_dim=128,
)
