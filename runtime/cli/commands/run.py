"""`tritgguf run`: get a model, convert it unless that is done, and chat with it."""

from __future__ import annotations

from tritgguf.runtime.cli import chatting, model_options, options, placing
from tritgguf.runtime.cli.command import Command
from tritgguf.runtime.cli.progress_bar import show_progress


def run(
    model: model_options.ModelName,
    revision: options.Revision = None,
    prompt: chatting.Prompt = None,
    system: chatting.System = None,
    type: model_options.TypeName = None,
    target: model_options.Target = None,
    fallback: options.Fallback = None,
    allow_lossy: options.AllowLossy = False,
    max_bits: model_options.MaxBits = None,
    smallest: options.Smallest = False,
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
    stats: chatting.Stats = False,
) -> None:
    """Get a model by its name, convert it exactly for this machine, and chat; the next time it starts at once."""
    from tritgguf.runtime.hub.cache import Cache  # not at the top: the help needn't wait for it
    from tritgguf.runtime.hub.obtain import Obtainer

    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    sampling |= {"repeat_penalty": repeat_penalty, "seed": seed}
    settings = chatting.checked(sampling)
    form = model_options.wanted_form(type, target, fallback, allow_lossy, max_bits, smallest)
    placement = placing.wanted(gpu_layers, main_gpu, tensor_split, rpc)
    source = model_options.wanted_source(model, revision)
    texts = chatting.one_shot_texts(prompt)
    with model_options.reports_interruption(source.name), show_progress(False) as progress:
        entry, made = Obtainer(Cache(), model_options.note, progress).obtain(source, form)
    if made:
        model_options.note(entry.record.summary)
    entry.touch()
    asked = chatting.Chat(texts, settings, system, max_tokens, think, stats)
    asked.hold(entry.paths[0], ctx=ctx, threads=threads, placement=placement)


COMMAND = Command("run", run, rank=0)
