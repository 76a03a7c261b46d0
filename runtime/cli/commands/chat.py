"""`tritgguf chat`: answers --prompt or standard input, or holds a conversation on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.cli import chatting, options, placing
from tritgguf.runtime.cli.answer_form import answer_form
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.model_argument import local_model

DEMO_MODEL = Path("models/demo.gguf")  # what `make demo` writes


def chat(
    model: Annotated[
        str,
        typer.Argument(help=f"GGUF file, or {options.ON_THE_HUB} (default: the file that `make demo` writes)."),
    ] = str(DEMO_MODEL),
    revision: options.Revision = None,
    prompt: chatting.Prompt = None,
    system: chatting.System = None,
    max_tokens: chatting.MaxTokens = None,
    temperature: chatting.Temperature = None,
    top_p: chatting.TopP = None,
    top_k: chatting.TopK = None,
    min_p: chatting.MinP = None,
    repeat_penalty: chatting.RepeatPenalty = None,
    seed: chatting.Seed = None,
    ctx: chatting.Ctx = None,
    threads: chatting.Threads = None,
    gpu_layers: placing.GpuLayers = None,
    main_gpu: placing.MainGpu = None,
    tensor_split: placing.TensorSplit = None,
    rpc: placing.Rpc = None,
    think: chatting.Think = None,
    json_schema: chatting.JsonSchema = None,
    grammar: chatting.AnswerGrammar = None,
    stats: chatting.Stats = False,
) -> None:
    """Chat with a model, or answer --prompt or piped input and exit."""
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    sampling |= {"repeat_penalty": repeat_penalty, "seed": seed}
    settings = {**chatting.checked(sampling), **answer_form(json_schema, grammar)}
    placement = placing.wanted(gpu_layers, main_gpu, tensor_split, rpc)
    if Path(model) == DEMO_MODEL and not DEMO_MODEL.exists():
        raise EngineError(f"no model given, and {DEMO_MODEL} doesn't exist: give a GGUF file, or run `make demo` first")
    file = local_model(model, revision, prefer="gguf")
    texts = chatting.one_shot_texts(prompt)
    asked = chatting.Chat(texts, settings, system, max_tokens, think, stats)
    asked.hold(file, ctx=ctx, threads=threads, placement=placement)


COMMAND = Command("chat", chat, rank=2)
