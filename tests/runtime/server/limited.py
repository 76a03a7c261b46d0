"""Run `tritgguf` with little patience and few connections, for tests/runtime/server/test_connections.py.

The first argument is a JSON object: the fields of Limits, and `spare` connections.
"""

from __future__ import annotations

import functools
import json
import sys

from tritgguf.runtime.cli.main import main
from tritgguf.runtime.server import http, run

if __name__ == "__main__":
    limits = json.loads(sys.argv.pop(1))
    run.SPARE_CONNECTIONS = limits.pop("spare", run.SPARE_CONNECTIONS)
    http.Limits = functools.partial(http.Limits, **limits)  # type: ignore[misc]
    main()
