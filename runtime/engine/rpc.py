"""Other machines that compute a part of a model: llama.cpp's RPC backend, client and server.

The backend ends the whole process where a server can't be reached or is of another version, so each is asked for its
version first. A server talks with one program at a time; the protocol (ggml-rpc.cpp) knows no keys and no encryption.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections import Counter
from collections.abc import Sequence

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.devices import Device, described
from tritgguf.runtime.engine.ggml_functions import GgmlFunctions

ANSWER_SECONDS = 10.0
DEFAULT_PORT = 50052  # that of llama.cpp's own ggml-rpc-server
MISSING = "this llama.cpp was built without its RPC backend; install it again with `make BACKEND=rpc`"
_MAJOR, _MINOR = 7, 0  # RPC_PROTO_MAJOR_VERSION and RPC_PROTO_MINOR_VERSION of the pinned llama.cpp
_HELLO = struct.Struct("<BQ24x")  # command, bytes that follow, what this side can do: nothing but TCP
_VERSION = struct.Struct("<Q3B25x")  # bytes that follow, version, what the other side can do

_open: Counter[str] = Counter()  # models of this process by the servers that they have parts on


def endpoint(text: str) -> tuple[str, int]:
    """Return host and port of "host:port"; EngineError if it isn't of that form."""
    host, separator, port = text.partition(":")
    if not (host and separator and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise EngineError(f"{text!r} isn't a server's address, expected host:port such as 192.168.0.2:{DEFAULT_PORT}")
    return host, int(port)


def connect(ggml: GgmlFunctions, servers: Sequence[str]) -> list[Device]:
    """Return the devices of servers, given as "host:port", for one model; call disconnect() when it is closed.

    EngineError where this build has no RPC backend, or a server can't be used.
    """
    add = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(_function(ggml, b"ggml_backend_rpc_add_server"))
    count = ggml.function("ggml_backend_reg_dev_count", ctypes.c_size_t, ctypes.c_void_p)
    get = ggml.function("ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    for server in servers:
        if not _open[server]:  # else it would be busy with this process
            check_server(server)
    found: list[Device] = []
    for server in servers:
        registry = add(server.encode())
        if not registry:
            raise EngineError(f"{server}: offers no device; start the server again")
        found += (described(ggml, get(registry, number)) for number in range(count(registry)))
    _open.update(servers)
    return found


def disconnect(servers: Sequence[str]) -> None:
    """Count a model less on servers; llama.cpp closes a connection with the last model that has a part there."""
    _open.subtract(servers)


def check_server(server: str) -> None:
    """Raise EngineError unless a server answers that it knows this protocol."""
    host, port = endpoint(server)
    try:
        # llama.cpp knows IPv4 alone.
        with socket.create_connection((socket.gethostbyname(host), port), ANSWER_SECONDS) as connection:
            connection.sendall(_HELLO.pack(14, 24))
            with connection.makefile("rb") as answer:
                said = answer.read(_VERSION.size)
    except TimeoutError as error:
        raise EngineError(
            f"{server}: no answer within {ANSWER_SECONDS:g} seconds; a server works for one program at a time, and "
            "another may use this one"
        ) from error
    except OSError as error:
        raise EngineError(
            f"{server}: can't be reached ({error.strerror or error}); start `tritgguf rpc-server` there"
        ) from error
    if len(said) != _VERSION.size or _VERSION.unpack(said)[0] != _VERSION.size - 8:
        raise EngineError(f"{server}: isn't an RPC server of llama.cpp; start `tritgguf rpc-server` there")
    _, major, minor, patch = _VERSION.unpack(said)
    if major != _MAJOR or minor > _MINOR:
        raise EngineError(
            f"{server}: has version {major}.{minor}.{patch} of llama.cpp's RPC protocol, expected {_MAJOR}.{_MINOR}; "
            "install the same tritgguf on both machines"
        )


def serve(ggml: GgmlFunctions, host: str, port: int, devices: Sequence[Device], n_threads: int) -> None:
    """Compute for others on devices of this machine, until the process ends; EngineError if it can't listen there."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, size, size, pointer)
    start = prototype(_function(ggml, b"ggml_backend_rpc_start_server"))
    addresses = (pointer * len(devices))(*(device.address for device in devices))
    start(f"{host}:{port}".encode(), None, n_threads, len(devices), ctypes.addressof(addresses))
    raise EngineError(f"{host}:{port}: llama.cpp's server ended; see above")


def is_built(ggml: GgmlFunctions) -> bool:
    """Return whether this build of llama.cpp has the RPC backend."""
    try:
        _function(ggml, b"ggml_backend_rpc_add_server")
    except (EngineError, AttributeError):  # Windows finds ggml's functions in other libraries
        return False
    return True


def _function(ggml: GgmlFunctions, name: bytes) -> int:
    """Return the address of one of the backend's functions; EngineError where this build hasn't it."""
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    registry = ggml.function("ggml_backend_reg_by_name", pointer, text)(b"RPC")
    named = ggml.function("ggml_backend_reg_get_proc_address", pointer, pointer, text)
    address: int | None = named(registry, name) if registry else None
    if not address:
        raise EngineError(MISSING)
    return address
