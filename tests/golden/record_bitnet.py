"""Record transformers' logits of tests/bitnet_model.py as golden/bitnet.npz: python -m tests.golden.record_bitnet

Float32, eager attention, one thread; without a quantization_config BitNetForCausalLM rounds no activations.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers

from tests import bitnet_model as bitnet

FILE = Path(__file__).resolve().parent / "bitnet.npz"


def logits() -> np.ndarray:
    """Return the logits of every token, float32 (n_tokens, n_vocab)."""
    config = transformers.BitNetConfig(
        vocab_size=bitnet.VOCAB,
        hidden_size=bitnet.HIDDEN,
        intermediate_size=bitnet.FFN,
        num_hidden_layers=bitnet.LAYERS,
        num_attention_heads=bitnet.HEADS,
        num_key_value_heads=bitnet.KV_HEADS,
        max_position_embeddings=bitnet.CONTEXT,
        rms_norm_eps=bitnet.RMS_EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": bitnet.ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    assert config.hidden_act == "relu2"
    model = transformers.BitNetForCausalLM(config).eval()
    weights = {name: torch.from_numpy(values) for name, values in bitnet.state_dict().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], []), (missing, unexpected)
    model.tie_weights()
    with torch.no_grad():
        return model(torch.tensor([bitnet.token_ids()])).logits[0].numpy()


def main() -> None:
    torch.set_num_threads(1)  # sums in one fixed order
    found = logits()
    step = np.float32(np.abs(found).max() / 32767)
    np.savez_compressed(
        FILE,
        logits_int16=np.round(found / step).astype(np.int16),
        logits_step=step,
        weights_sha256=np.array(bitnet.digest()),
        recorded_with=np.array(f"transformers {transformers.__version__}, torch {torch.__version__}"),
    )
    print(f"{FILE.name}: {FILE.stat().st_size} bytes, logits' deviation {found.std():.3f}")


if __name__ == "__main__":
    main()
