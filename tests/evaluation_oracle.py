"""Perplexity and KL divergence as their definitions say, in float64 from whole logits; and logits by transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]  # (n_chunks, n_ctx, n_vocab)


def chunks(ids: list[int], n_ctx: int, n_chunks: int) -> NDArray[np.int64]:
    """Return the first chunks of a text, (n_chunks, n_ctx)."""
    return np.array(ids[: n_ctx * n_chunks]).reshape(n_chunks, n_ctx)


def figures(
    ids: NDArray[np.int64], logits: Logits, base: Logits | None = None, *, whole: bool = False
) -> dict[str, float]:
    """Return the figures under tritgguf's names: positions n_ctx / 2 to n_ctx - 2 predict the token after them.

    KL divergences are those of the `whole` distribution, or of the tokens that llama-perplexity counts: those whose
    log-probability in the base is above -16.
    """
    n_ctx = ids.shape[1]
    scored = slice(n_ctx // 2, n_ctx - 1)
    targets = ids[:, n_ctx // 2 + 1 :].reshape(-1)
    mine = log_softmax(logits[:, scored].reshape(len(targets), -1))
    nll = -mine[np.arange(len(targets)), targets]
    found = {"ppl": math.exp(nll.mean()), "ppl_error": math.exp(nll.mean()) * standard_error(nll)}
    if base is None:
        return found
    theirs = log_softmax(base[:, scored].reshape(len(targets), -1))
    # The format of base log-probabilities ends 16 nats below the highest.
    base_nll = -np.maximum(theirs[np.arange(len(targets)), targets], theirs.max(axis=1) - 16)
    kld = (np.exp(theirs) * (theirs - mine) * (whole | (theirs > -16))).sum(axis=1)
    delta_p = np.exp(-nll) - np.exp(-base_nll)
    same = mine.argmax(axis=1) == theirs.argmax(axis=1)
    return found | {
        "base_ppl": math.exp(base_nll.mean()),
        "ppl_ratio": math.exp((nll - base_nll).mean()),
        "ppl_ratio_error": math.exp((nll - base_nll).mean()) * standard_error(nll - base_nll),
        "kld_mean": kld.mean(),
        "kld_error": standard_error(kld),
        "kld_median": np.median(kld),
        "kld_99": np.percentile(kld, 99),
        "kld_max": kld.max(),
        "same_top1": same.mean(),
        "same_top1_error": math.sqrt(same.mean() * (1 - same.mean()) / (len(same) - 1)),
        "delta_p_mean": delta_p.mean(),
        "delta_p_error": standard_error(delta_p),
        "delta_p_rms": math.sqrt((delta_p**2).mean()),
    }


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std()) / math.sqrt(len(values) - 1)


def transformers_logits(
    config: Mapping[str, Any], weights: Mapping[str, NDArray[np.float32]], ids: NDArray[np.int64]
) -> Logits:
    """Return the logits that transformers' Llama computes in float32 with these weights, by their names there."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "dtype", "torch_dtype")}
    network = LlamaForCausalLM(LlamaConfig(**plain)).eval()
    state = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in weights.items()}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"lm_head.weight"}, missing
    network.tie_weights()
    with torch.no_grad():
        return np.stack([network(torch.from_numpy(chunk[None])).logits[0].numpy() for chunk in ids])
