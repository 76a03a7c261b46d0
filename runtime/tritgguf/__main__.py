"""Run the `tritgguf` command as `python -m tritgguf`."""

import os
import sys

# `-m` puts the current folder first on sys.path. That may be a downloaded model's: nothing of it may be imported, not
# even a pathlib. Python itself looks there for the package tritgguf; the command `tritgguf` doesn't.
_safe = sys.flags.isolated or getattr(sys.flags, "safe_path", False)  # -I, and -P from Python 3.11 on: it isn't there
if not _safe and (sys.path[0] == "" or sys.path[0] == os.getcwd()):  # noqa: PTH109
    del sys.path[0]

from tritgguf.runtime.cli.main import main  # noqa: E402

try:
    main()
finally:
    # Python notes an interrupt that passes through a text it executes, such as that of a dataclass. main() made an exit
    # code of it, but Python would still end a program started with -m by the signal. Executing another text clears it.
    exec("")
