"""What files of one model make of ten prompts of code and ten of prose, as Markdown, unedited.

python -m tests.bench.completions FILE.gguf ... [--tokens 64] [--threads 1]

The likeliest token is taken each time, so nothing depends on a seed.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from tritgguf.runtime.chat import session

PROMPTS = {
    "code": (
        "def is_prime(n: int) -> bool:\n",
        "def count_lines(path):\n",
        "def reverse_words(sentence: str) -> str:\n",
        "def fibonacci(n):\n",
        "class Stack:\n    def __init__(self):\n",
        "import csv\n\ndef read_rows(path):\n",
        "# Return the largest number of a list.\ndef largest(numbers):\n",
        "SELECT name, COUNT(*) FROM orders",
        "function add(a, b) {\n",
        "#include <stdio.h>\n\nint main(void) {\n",
    ),
    "prose": (
        "The capital of France is",
        "Water boils when",
        "In 1969, the first people",
        "A good way to learn a language is",
        "The difference between a virus and a bacterium is",
        "The sun rises in",
        "Bread is made of",
        "To change a flat tyre, first",
        "Once upon a time there was",
        "The most important invention of the twentieth century",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    for file in arguments.files:
        with session.open(file, n_threads=arguments.threads, n_ctx=512) as opened:
            for kind, prompts in PROMPTS.items():
                print(f"## {file.stem}, {kind}\n")
                for prompt in prompts:
                    text = "".join(opened.generate(prompt, max_tokens=arguments.tokens, temperature=0))
                    print(textwrap.indent(prompt + text, "    ", lambda _line: True) + "\n\n---\n")


if __name__ == "__main__":
    main()
