"""Turn a GGUF file into a model in Ollama, through its HTTP API."""
