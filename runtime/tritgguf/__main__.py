"""Run the `tritgguf` command as `python -m tritgguf`."""

import os
import sys

# `-m` puts the current folder first on sys.path. That may be a downloaded model's: nothing of it may be imported.
if not getattr(sys.flags, "safe_path", False) and sys.path[:1] in ([""], [os.getcwd()]):  # Python 3.11 on: -P, -I
    del sys.path[0]

from tritgguf.runtime.cli.main import main  # noqa: E402

main()
