"""Run the `tritgguf` command as `python -m tritgguf`."""

from tritgguf.runtime.cli.main import main

main()
