"""uniform-d3: the uniform balanced ternary codec with three trits per weight, 5.05 bits."""

from tritgguf.converter.export.uniform_scheme import uniform_scheme

SCHEME = uniform_scheme(digits=3)
