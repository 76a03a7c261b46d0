"""Fit codes to what a model computes on text: `--method gptq`. Only this wing uses torch, and only when it is asked."""
