"""The hub that every test and its child processes see: a port of this machine, kept free for hub_server.py.

Imported by conftest.py before anything that reads these variables, so no test can reach the real hub or the user's
cache.
"""

import atexit
import os
import shutil
import socket
import tempfile

SOCKET = socket.socket()
SOCKET.bind(("127.0.0.1", 0))  # refuses connections until the server listens
PORT: int = SOCKET.getsockname()[1]
ENDPOINT = f"http://127.0.0.1:{PORT}"
HOME = tempfile.mkdtemp(prefix="tritgguf-hub-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)

for variable in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_OFFLINE"))]:
    del os.environ[variable]
os.environ.update(HF_ENDPOINT=ENDPOINT, HF_HOME=HOME)
