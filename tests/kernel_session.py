"""A process of its own for a route of the CPU kernels: `python -m tests.kernel_session MODEL OUT CTRL_C_CALL IDS`.

Writes to OUT, an .npz file, the logits of the token ids, a JSON list, at once and one by one, which kernels ran, how
many products they computed, and the logits after an evaluation that Ctrl-C stopped in the given call of llama.cpp's
abort callback.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import tritgguf.runtime
from tests.ctrl_c import ctrl_c_in_callback
from tests.paths import GOLDEN
from tritgguf.runtime.chat.session import Session
from tritgguf.runtime.engine.kernels import library as compiled

N_TOKENS = 40


def held_out_tokens() -> list[int]:
    """Return a row of token ids that the demo model wasn't trained on."""
    with np.load(GOLDEN / "demo_model.npz") as golden:
        ids: list[int] = golden["ids"][0][:N_TOKENS].tolist()
    return ids


def one_by_one(session: Session, ids: list[int]) -> np.ndarray:
    """Return the logits after each token, (n_tokens, n_vocab), evaluated in a call each."""
    rows = []
    for n_tokens in range(1, len(ids) + 1):
        session.evaluate(ids[:n_tokens])
        rows.append(session.context.logits()[-1].copy())
    return np.array(rows)


def after_ctrl_c(session: Session, ids: list[int], number: int) -> np.ndarray:
    """Return the last logits of an evaluation that is stopped in the call `number`, and then done again."""
    session.evaluate([0])  # so that nothing of the tokens is in the cache
    with ctrl_c_in_callback(number):
        try:
            session.evaluate(ids)
        except KeyboardInterrupt:
            pass
        else:
            raise AssertionError("not interrupted")
    session.evaluate(ids)
    return session.context.logits()[-1].copy()


def main() -> None:
    model, out, number, ids = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
    with tritgguf.runtime.open(model, n_threads=2, n_gpu_layers=0) as session:
        found = {
            "at_once": session.logits(ids),
            "one_by_one": one_by_one(session, ids),
            "after_ctrl_c": after_ctrl_c(session, ids, number),
            "kernels": np.array(str(session.cpu_kernels)),
            "n_products": np.array(compiled.load().kernels_products_computed()),
        }
    np.savez(out, **found)


if __name__ == "__main__":
    main()
