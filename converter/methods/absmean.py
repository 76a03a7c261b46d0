"""absmean: scale = mean|w| of the group, code = clip(round(w / scale), -1, 1).

The rule of BitNet b1.58 (https://arxiv.org/abs/2402.17764), here per group as the 14B seed was made.
"""

import numpy as np

from tritgguf.converter.codec import fp16
from tritgguf.converter.method import Method
from tritgguf.converter.tensors import CodedRows, Float32Array


def absmean(rows: Float32Array, group: int) -> CodedRows:
    """Code float32 rows, shape (n_rows, n_columns), by their groups' mean magnitude, a float32 scale."""
    groups = rows.reshape(len(rows), -1, group)
    scales = np.abs(groups).mean(axis=-1, dtype=np.float32)
    divisors = np.where(scales == 0, np.float32(1), scales)[..., None]
    codes = np.clip(np.rint(groups / divisors), -1, 1).astype(np.int8)
    return CodedRows(codes.reshape(rows.shape), scales, group)


def code_absmean(rows: Float32Array, group: int) -> CodedRows:
    """Code rows likewise; the scale is stored as fp16."""
    coded = absmean(rows, group)
    stored = fp16(coded.scales)
    coded.codes.reshape(len(rows), -1, group)[stored == 0] = 0  # a scale below fp16's range stands for zero
    return CodedRows(coded.codes, stored, group)


METHOD = Method("absmean", code_absmean)
