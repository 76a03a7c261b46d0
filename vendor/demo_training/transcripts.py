"""`python -m vendor.demo_training.transcripts FILE.gguf`: the greedy answers that docs/demo-model.md shows."""

from __future__ import annotations

import sys

import tritgguf.runtime
from tritgguf.runtime.chat.conversation import Conversation

QUESTIONS = (
    ("Hello! How are you?", "I'm a bit tired today.", "I worked until late."),
    ("Who are you?", "What can you do?"),
    ("Hi there!", "I just got back from the beach.", "It was very sunny."),
    ("What is your favorite food?", "I love pizza."),
    ("I have a dog.", "His name is Max.", "He is three years old."),
    ("Do you like music?", "I play the guitar."),
    ("I'm feeling sad today.", "I failed my exam."),
    ("What do you do for fun?", "I like to play soccer."),
    ("Have you seen any good movies lately?", "I like Star Wars."),
    ("What are you studying?", "I am studying computer science."),
    ("What are ternary weights?", "That is interesting!"),
    ("It's my birthday today!", "Thank you! Goodbye."),
)


def main() -> None:
    """Print each conversation as a block of Markdown."""
    with tritgguf.runtime.open(sys.argv[1]) as session:
        for questions in QUESTIONS:
            conversation = Conversation(session, temperature=0.0)
            print("```text")
            for question in questions:
                print(f"> {question}")
                print("".join(conversation.ask(question)))
            print("```\n")


if __name__ == "__main__":
    main()
