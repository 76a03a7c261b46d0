"""What Ollama needs: a file that it can load, a Go template, a Modelfile; and what its versions take."""
