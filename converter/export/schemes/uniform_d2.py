"""uniform-d2: the uniform balanced ternary codec with two trits per weight, 3.47 bits."""

from tritgguf.converter.export.uniform_scheme import uniform_scheme

SCHEME = uniform_scheme(digits=2)
