"""MiniCPM (BitCPM): Llama with scaled embeddings, residuals and logits."""

import math

from gguf import MODEL_ARCH, Keys

from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, float32
from tritgguf.converter.model.architecture import Architecture
from tritgguf.converter.model.config import DecoderConfig


def scales(config: DecoderConfig) -> Metadata:
    """Return the three scales; the rules are those of the model's own code."""

    def number(key: str) -> float:
        value = config.raw.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
            raise SourceError(f"config.json: {key} must be a positive number, found {value!r}")
        return float(value)

    if config.raw.get("sparse_config"):
        raise UnsupportedError(
            "config.json: sparse_config makes long texts attend sparsely, but llama.cpp's minicpm graph attends to "
            "everything; set it to null to convert the model with dense attention"
        )
    return {
        Keys.LLM.EMBEDDING_SCALE.format(arch="minicpm"): float32(number("scale_emb")),
        Keys.LLM.RESIDUAL_SCALE.format(arch="minicpm"): float32(number("scale_depth") / math.sqrt(config.n_layers)),
        Keys.LLM.LOGIT_SCALE.format(arch="minicpm"): float32(config.hidden_size / number("dim_model_base")),
    }


ARCHITECTURE = Architecture(
    graph=MODEL_ARCH.MINICPM,
    classes={"MiniCPMForCausalLM": {"tie_word_embeddings": True}},
    extra_metadata=scales,
    permutes_qk=True,
    reads_rope_divisors=True,
)
