"""The program on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping

PROGRAM = [sys.executable, "-m", "tritgguf"]
# Makes the pseudo-terminal the controlling one, so that Ctrl-C typed there becomes SIGINT, then becomes the program.
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
ROWS, COLUMNS = 40, 200


class Terminal:
    """`tritgguf` with `arguments` on a pseudo-terminal; on POSIX systems only."""

    def __init__(self, *arguments: object, env: Mapping[str, str]) -> None:
        import fcntl
        import pty
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        command = [sys.executable, "-c", TAKE_TERMINAL, *PROGRAM, *map(str, arguments)]
        self.child = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=dict(env)
        )
        os.close(slave)
        os.set_blocking(self.master, False)
        self.seen = ""

    def expect(self, text: str, timeout: float = 60) -> str:
        """Wait for `text`; return everything up to it and forget that. Raise TimeoutError if the program hangs."""
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited for {text!r}, saw {self.seen!r}")
            with contextlib.suppress(BlockingIOError, OSError):  # OSError: the program has ended
                self.seen += os.read(self.master, 65536).decode("utf-8", "ignore")
            time.sleep(0.01)
        before, self.seen = self.seen.split(text, 1)
        return before + text

    def type(self, text: str | bytes) -> None:
        os.write(self.master, text.encode() if isinstance(text, str) else text)

    def signal(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def reads_lines(self) -> bool:
        """Whether the terminal hands over whole lines, as a shell expects, or single keys."""
        import termios

        return bool(termios.tcgetattr(self.master)[3] & termios.ICANON)

    def wait(self, timeout: float = 60) -> int:
        """The program's exit code, when it has ended."""
        return self.child.wait(timeout)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.child.kill()
        self.child.wait()
        os.close(self.master)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
