"""Llama 1 to 3.2 and what shares its graph: Mistral, SmolLM, TinyLlama, Falcon3, TriLM."""

from gguf import MODEL_ARCH

from tritgguf.converter.architecture import Architecture, Biases
from tritgguf.converter.model_config import ConfigJson


def biases(config: ConfigJson) -> Biases:
    attention = bool(config.get("attention_bias", False))
    return Biases(qkv=attention, attention_output=attention, ffn=bool(config.get("mlp_bias", False)))


ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.LLAMA,
    hf_names=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"),
    biases=biases,
    honours_scales=True,
    permutes_qk=True,
    reads_rope_divisors=True,
    slides_by_default=True,  # Mistral 7B v0.1 has a window and no switch
)
