"""Llama 1 to 3.2 and what shares its graph: Mistral, SmolLM, TinyLlama, Falcon3, TriLM."""

from gguf import MODEL_ARCH

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.model.architecture import Architecture, Biases


def biases(config: ConfigJson) -> Biases:
    attention = bool(config.get("attention_bias", False))
    return Biases(qkv=attention, attention_output=attention, ffn=bool(config.get("mlp_bias", False)))


MISTRAL = {
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "use_sliding_window": True,  # a sliding_window counts: there is no switch
}

ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.LLAMA,
    classes={"LlamaForCausalLM": {}, "LLaMAForCausalLM": {}, "MistralForCausalLM": MISTRAL},
    biases=biases,
    permutes_qk=True,
    reads_rope_divisors=True,
    honours_scales=True,
)
