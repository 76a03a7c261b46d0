"""What Ollama needs: a GGUF file that it loads, a Go template, a Modelfile; and what each of its versions loads."""
