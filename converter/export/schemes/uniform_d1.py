"""uniform-d1: the uniform balanced ternary codec with one trit per weight, 1.88 bits."""

from tritgguf.converter.export.uniform_scheme import uniform_scheme

SCHEME = uniform_scheme(digits=1)
