"""What the fuzzer damages and reads."""

from __future__ import annotations

import os
import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar


class Target(ABC):
    """Damages files in a folder, and reads them; `share` is its part of all inputs."""

    name: ClassVar[str]
    share: ClassVar[int]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def damage(self, rng: random.Random) -> None:
        """Write one damaged input into the folder."""

    @abstractmethod
    def read(self, rng: random.Random) -> None:
        """Read it; raise TritggufError where it is refused."""


def write_sparse(path: Path, start: bytes, zeros: int) -> None:
    """Write a file that begins with `start`; the zero bytes after it take no space."""
    with path.open("wb") as file:
        file.write(start)
        os.ftruncate(file.fileno(), max(0, len(start) + zeros))
