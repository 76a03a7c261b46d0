"""Prism ML's first Q2_0, which has the number of llama.cpp's Q2_0 but groups of 128 columns.

https://github.com/PrismML-Eng/llama.cpp/issues/167 tells what became of it: the same blocks are PQ2_0 now.
"""

from tritgguf.converter.gguf_io.fours import Fours


class Q20G128(Fours):
    name = "Q2_0-g128"
    numbers = (42,)
    origin = "Prism ML's older Ternary-Bonsai files, called *-Q2_0.gguf"
    loaded_by = "only Prism ML's older llama.cpp (PrismML-Eng/llama.cpp)"


FOREIGN = Q20G128()
