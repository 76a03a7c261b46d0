"""`tritgguf serve`: models for programs that know OpenAI's or Ollama's API, and a chat page."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.cli import options, placing
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.native_library import prepare_native_library
from tritgguf.runtime.cli.runnable_model import runnable

KEY_VARIABLE = "TRITGGUF_API_KEY"


def serve(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help=f"{options.RUNNABLE}; requests name files without .gguf."),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in, then set a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    slots: Annotated[int, typer.Option(min=1, max=64, help="Conversations of a model that are decoded together.")] = 4,
    ctx: Annotated[
        int | None,
        typer.Option(help="Context size of each conversation in tokens (default: 4096, or the model's if smaller)."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=512, help="Number of threads (default: one per physical performance core).")
    ] = None,
    gpu_layers: placing.GpuLayers = None,
    main_gpu: placing.MainGpu = None,
    tensor_split: placing.TensorSplit = None,
    rpc: placing.Rpc = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=KEY_VARIABLE,
            show_envvar=True,
            help="Answer only requests with this key; better set by the variable.",
        ),
    ] = None,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait for each model.")] = 256,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a request may take, waiting included.")] = 600.0,
    context_shift: Annotated[
        bool,
        typer.Option(
            "--context-shift",
            help="Where an answer reaches the end of its context, drop the middle and go on, instead of ending it.",
        ),
    ] = False,
    max_body: Annotated[float, typer.Option(min=0.001, help="Size of a request's body in MB at most.")] = 4.0,
) -> None:
    """Serve models by OpenAI's and Ollama's APIs, with a chat page."""
    if api_key is not None and not (api_key.strip() and api_key.isascii() and api_key.isprintable()):
        raise EngineError("the API key is empty or has characters that HTTP can't send; choose another one")
    placement = placing.wanted(gpu_layers, main_gpu, tensor_split, rpc)
    prepare_native_library()
    from tritgguf.runtime.server.http import Limits  # not at the top: the help needs no server
    from tritgguf.runtime.server.models import Capacity, Models
    from tritgguf.runtime.server.run import Options, bind, serve

    def listening(address: str, served: Models) -> None:
        for model in served.all:
            print(f"{model.name}: {model.n_slots} slots with a context of {model.n_ctx} tokens each")
        print(f"{address}: chat page; {address}/v1: OpenAI's API; {address}: Ollama's API; Ctrl-C ends it", flush=True)
        if host not in ("127.0.0.1", "localhost", "::1") and api_key is None:
            print(
                "warning: anyone who reaches this address may use it; --api-key lets in who knows a key",
                file=sys.stderr,
            )

    capacity = Capacity(n_slots=slots, n_ctx=ctx, n_threads=threads, placement=placement)
    limits = Limits(body_bytes=int(max_body * 1e6))
    how = Options(host, api_key, queue, timeout, context_shift, limits)
    with bind(host, port) as listener:  # first: to get a model may take minutes
        found = [runnable(model) for model in models]
        placing.note_limits(placement, [model.path for model in found], capacity.cache_tokens)
        serve(listener, [(model.name, model.path) for model in found], capacity, how, listening=listening)


COMMAND = Command("serve", serve, rank=3)
