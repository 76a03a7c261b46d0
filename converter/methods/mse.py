"""mse: the scale and codes of least squared error, found exactly.

For a scale d the best codes are sign(w)·[|w| > d/2], so the kept values are the k largest magnitudes for some k, and
for these d = mean of them, which lowers the error by (sum of them)² / k: try every k. (docs: quality of ternarization.)
"""

import numpy as np

from tritgguf.converter.codec import fp16
from tritgguf.converter.method import Method
from tritgguf.converter.tensors import CodedRows, Float32Array


def code_mse(rows: Float32Array, group: int) -> CodedRows:
    """Code float32 rows, shape (n_rows, n_columns), with least squared error per group; the scale is stored as fp16."""
    magnitudes = np.abs(rows).reshape(-1, group)
    descending = np.sort(magnitudes, axis=1)[:, ::-1]
    sums = np.cumsum(descending, axis=1, dtype=np.float32)
    counts = np.arange(1, group + 1, dtype=np.float32)
    # Divide before squaring: sums of tiny weights would underflow to a gain of zero.
    gains = sums / np.sqrt(counts)
    best = gains.argmax(axis=1)
    scales = fp16(sums[np.arange(len(sums)), best] / counts[best])
    kept = magnitudes > scales[:, None] / 2
    kept &= scales[:, None] > 0
    codes = np.where(kept, np.sign(rows.reshape(-1, group)), 0).astype(np.int8)
    return CodedRows(codes.reshape(rows.shape), scales.reshape(len(rows), -1), group)


METHOD = Method("mse", code_mse)
