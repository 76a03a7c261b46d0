"""`python -m tritgguf` is the `tritgguf` command."""

from tritgguf.runtime.cli.main import main

main()
