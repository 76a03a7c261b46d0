"""`tritgguf rpc-server`: this machine computes layers of models that others run with --rpc."""

from __future__ import annotations

import ipaddress
import signal
import socket
import sys
from typing import Annotated

import typer

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.cli import verbosity
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.native_library import prepare_native_library


def rpc_server(
    host: Annotated[
        str, typer.Option(help="IPv4 address to listen on; 0.0.0.0 lets every machine in that reaches this one.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 50052,
    threads: Annotated[
        int | None, typer.Option(min=1, max=512, help="Number of threads (default: one per physical performance core).")
    ] = None,
) -> None:
    """Compute layers for another machine's --rpc, with llama.cpp's RPC server: on its GPUs, or else its CPU."""
    _check_address(host, port)
    prepare_native_library()
    from tritgguf.runtime.engine import backend, devices, rpc  # not at the top: the help is fast
    from tritgguf.runtime.engine.hardware import default_threads

    ggml = backend.ggml()
    if not rpc.is_built(ggml):
        raise EngineError(rpc.MISSING)
    kernels = backend.cpu_kernels()  # installs them
    verbosity.detail(f"CPU kernels: {kernels}")
    offered = devices.gpus(ggml) or [device for device in devices.all_devices(ggml) if device.kind == devices.CPU]
    if not ipaddress.ip_address(host).is_loopback:
        print(
            "warning: llama.cpp's RPC protocol has no key and no encryption: whoever reaches this address can use, and "
            "perhaps take over, this machine; listen in a network of your own only",
            file=sys.stderr,
        )
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # no Python runs while the server does
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    names = ", ".join(f"{device.name} ({device.description})" for device in offered)
    address = "ADDRESS-OF-THIS-MACHINE" if ipaddress.ip_address(host).is_unspecified else host
    print(f"serves {names} to one program at a time, --rpc {address}:{port}; Ctrl-C ends it", flush=True)
    rpc.serve(ggml, host, port, offered, threads or default_threads())


def _check_address(host: str, port: int) -> None:
    """Raise EngineError if nothing can listen there: llama.cpp says less about it."""
    try:
        ipaddress.IPv4Address(host)
    except ValueError as error:
        raise EngineError(f"--host is {host!r}, expected an IPv4 address such as 127.0.0.1 or 0.0.0.0") from error
    try:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        raise EngineError(
            f"{host}:{port}: can't listen there ({error.strerror or error}); choose another --port"
        ) from error


COMMAND = Command("rpc-server", rpc_server, rank=4)
