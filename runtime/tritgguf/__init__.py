"""Convert ternary language models to GGUF (tritgguf.converter) and run them (tritgguf.runtime)."""

__version__ = "0.1.0"
