"""`python -m tritgguf.runtime` is the `tritgguf` command."""

from tritgguf.runtime.cli import main

main()
