"""What verify() found, by tensors."""

import numpy as np

from tritgguf.converter.verification.verification import Verification

Q, GATE, UP, NORM = (f"blk.1.{part}.weight" for part in ("attn_q", "ffn_gate", "ffn_up", "attn_norm"))


def verdicts(found: Verification) -> dict[str, str]:
    return {check.name: check.verdict for check in found.tensors}


def bad(found: Verification) -> dict[str, str]:
    """The tensors that aren't as they should be, with their reasons."""
    return {check.name: check.reason for check in found.tensors if not check.good}


def unpermuted(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of q or k with rotary partners apart again, as a checkpoint has them."""
    return rows.reshape(n_heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
