"""four_levels: the codes -1, 0, 1 and 2 and the scale of either sign of least squared error, found exactly.

Q2_0 stores the fourth code at no cost. The result is a 2-bit model, not a ternary one.
"""

from functools import partial

import numpy as np

from tritgguf.converter.core.tensors import CodedRows, Floats
from tritgguf.converter.quant.method import Method
from tritgguf.converter.quant.weighted_fit import fitted

LEVELS = 4


def quantize_four_levels(rows: Floats, group_size: int) -> CodedRows:
    """Quantize stored rows, (n_rows, n_columns), with the least squared error per group; scales are fp16 values."""
    return fitted(LEVELS, rows, group_size, np.ones(rows.words.shape[1], np.float32))


METHOD = Method("four_levels", quantize_four_levels, partial(fitted, LEVELS), LEVELS)
