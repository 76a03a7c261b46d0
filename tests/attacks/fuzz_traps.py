"""Targets that do what the fuzzer must notice: they prove that it does."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

from tests.attacks.fuzz_target import Target
from tritgguf.converter.errors import SourceError


class _Trap(Target):
    share = 1

    def damage(self, rng: random.Random) -> None:
        pass


class Traceback(_Trap):
    name = "trap-traceback"

    def read(self, rng: random.Random) -> None:
        raise KeyError("shape")


class TwoLines(_Trap):
    name = "trap-two-lines"

    def read(self, rng: random.Random) -> None:
        error = SourceError("one line")
        error.args = ("one line\nand another",)  # an error makes one line of what it is given
        raise error


class Memory(_Trap):
    name = "trap-memory"

    def read(self, rng: random.Random) -> None:
        bytearray((1 << 30) + (64 << 20))


class Endless(_Trap):
    name = "trap-endless"

    def read(self, rng: random.Random) -> None:
        while True:
            pass


class Abort(_Trap):
    name = "trap-abort"

    def read(self, rng: random.Random) -> None:
        os.abort()


TRAPS: Mapping[str, type[Target]] = {trap.name: trap for trap in (Traceback, TwoLines, Memory, Endless, Abort)}
