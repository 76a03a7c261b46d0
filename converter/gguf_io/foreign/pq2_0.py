"""PQ2_0, Prism ML's two-bit type in groups of 128 columns: https://github.com/PrismML-Eng/llama.cpp."""

from tritgguf.converter.gguf_io.fours import Fours


class Pq20(Fours):
    name = "PQ2_0"
    numbers = (142,)
    origin = "Prism ML's Bonsai files, called *-PQ2_0.gguf"
    loaded_by = "only Prism ML's llama.cpp (PrismML-Eng/llama.cpp)"


FOREIGN = Pq20()
