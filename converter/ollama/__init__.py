"""What Ollama needs beside a file that it can load: a Go template, a Modelfile, and rules on what each version takes."""
