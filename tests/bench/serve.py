"""The server under load: python -m tests.bench.serve MODEL [--llama-server PROGRAM] [--kernels stock auto]

Throughput of many conversations in slots, against one slot, llama-server and bare llama.cpp: one loop of llama_decode
over the same batches, which no server on the same library can exceed. Ways take turns. Rates are given per second and
per second of CPU time: other programs that run meanwhile change the first more than the second.

With --storm, what happens to many requests at once, to clients that hang up in mid-stream and to slow readers, and what
the server holds before and after: memory, files, threads.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx

from tests.bench.llama_server import llama_server
from tests.bench.measure import machine
from tests.served import Served, serve
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.context import Context, Row

PROMPT = "small robots went out to look for the end of the world"  # behind a number: no two begin alike
PATIENCE = httpx.Timeout(3600)
KERNELS = "TRITGGUF_CPU_KERNELS"
N_CTX = 512


@dataclass(frozen=True)
class Run:
    """Tokens generated, the seconds that it took, and the process's CPU time meanwhile."""

    tokens: int
    seconds: float
    cpu_seconds: float


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def held(pid: int) -> dict[str, int]:
    """Return what a process holds."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith(("RssAnon", "Threads"))}
    return {
        "anonymous_kb": found["RssAnon"],
        "threads": found["Threads"],
        "files": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
    }


def body(number: int, tokens: int, **more: Any) -> dict[str, Any]:
    options = {"temperature": 0, "max_tokens": tokens, "logit_bias": {"1": -100, "2": -100}, **more}
    return {"prompt": f"{1000 + number} {PROMPT}", **options}


async def throughput(served: Served, model: str, n_requests: int, tokens: int) -> Run:
    """Send the requests at once and wait for all answers."""
    async with httpx.AsyncClient(
        base_url=served.url, timeout=PATIENCE, limits=httpx.Limits(max_connections=None)
    ) as client:

        async def ask(number: int) -> int:
            answer = await client.post("/v1/completions", json={"model": model, **body(number, tokens)})
            return int(answer.raise_for_status().json()["usage"]["completion_tokens"])

        start, cpu = time.perf_counter(), cpu_seconds(served.process.pid)
        counts = await asyncio.gather(*(ask(number) for number in range(n_requests)))
        return Run(sum(counts), time.perf_counter() - start, cpu_seconds(served.process.pid) - cpu)


def bare(path: Path, n_sequences: int, tokens: int, n_threads: int) -> Run:
    """Decode as many tokens by llama.cpp alone: prompts together, then one token of each sequence in a batch."""
    with Model(path) as model:
        prompts = [
            model.vocab.tokenize(f"{1000 + number} {PROMPT}", special=False, add_special=True)
            for number in range(n_sequences)
        ]
        context = Context(model, n_ctx=512, n_threads=n_threads, n_batch=512, n_sequences=n_sequences)
        context.decode(prompts[0], 0)  # reads the weights from the disk
        context.keep(0)
        start, cpu = time.perf_counter(), time.process_time()
        rows = [
            Row(token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        context.decode_batch(rows)
        for step in range(tokens - 1):
            best = context.logits().argmax(axis=1)
            rows = [Row(int(best[n]), len(prompts[n]) + step, n, True) for n in range(n_sequences)]
            context.decode_batch(rows)
        run = Run(n_sequences * tokens, time.perf_counter() - start, time.process_time() - cpu)
        context.close()
        return run


def in_child(kernels: str, function: Callable[..., Run], *arguments: Any) -> Run:
    """Call a function in a process of its own: a process has one kind of kernels for good."""
    os.environ[KERNELS] = kernels
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        del os.environ[KERNELS]


def asked(served: Served, model: str, n_requests: int, tokens: int) -> Run:
    asyncio.run(throughput(served, model, 1, 2))  # the first request reads the weights from the disk
    return asyncio.run(throughput(served, model, n_requests, tokens))


def ways(given: argparse.Namespace) -> dict[str, Callable[[], Run]]:
    """Return what is compared: tritgguf, llama-server if it is there, and llama_decode in a loop."""
    path, name = given.model, given.model.name.removesuffix(".gguf")

    def ours(kernels: str, n_slots: int) -> Run:
        options = ("--slots", n_slots, "--threads", given.threads, "--ctx", N_CTX)
        with serve(path, *map(str, options), env={**os.environ, KERNELS: kernels}) as served:
            return asked(served, name, n_slots if n_slots > 1 else 2, given.tokens)

    def peer(kernels: str, n_slots: int) -> Run:
        with llama_server(
            given.llama_server, path, n_slots=n_slots, n_ctx=N_CTX, n_threads=given.threads, kernels=kernels
        ) as served:
            return asked(served, name, n_slots if n_slots > 1 else 2, given.tokens)

    servers = {"tritgguf": ours, **({"llama-server": peer} if given.llama_server else {})}
    found: dict[str, Callable[[], Run]] = {}
    for kernels in given.kernels:
        for n_slots in (1, given.slots):
            for server, run in servers.items():
                found[f"{server}, {n_slots} slots, {kernels}"] = partial(run, kernels, n_slots)
        loop = partial(in_child, kernels, bare, path, given.slots, given.tokens, given.threads)
        found[f"llama_decode, {given.slots} sequences, {kernels}"] = loop
    return found


def compare(given: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, list[Run]] = {way: [] for way in ways(given)}
    for number in range(given.rounds):
        for way, run in ways(given).items():
            found[way].append(run())
            last = found[way][-1]
            rates = f"{last.tokens / last.seconds:7.1f} per s, {last.tokens / last.cpu_seconds:7.1f} per CPU s"
            print(f"round {number + 1}: {way:34} {rates}", flush=True)
    return {
        way: {
            "tokens_per_second": statistics.median(run.tokens / run.seconds for run in runs),
            "tokens_per_cpu_second": statistics.median(run.tokens / run.cpu_seconds for run in runs),
            "runs": [run.__dict__ for run in runs],
        }
        for way, runs in found.items()
    }


async def storm(served: Served, model: str, n_requests: int, tokens: int) -> dict[str, Any]:
    """Stream all requests at once; every fifth client hangs up after its third piece, every seventh reads slowly."""
    first: list[float] = []
    ends = {"whole": 0, "hung up": 0, "failed": 0}
    async with httpx.AsyncClient(
        base_url=served.url, timeout=PATIENCE, limits=httpx.Limits(max_connections=None)
    ) as client:

        async def ask(number: int) -> None:
            start, n_pieces = time.perf_counter(), 0
            request = {"model": model, "stream": True, **body(number, tokens)}
            async with client.stream("POST", "/v1/completions", json=request) as answer:
                async for line in answer.aiter_lines():
                    if line == "data: [DONE]":
                        ends["whole"] += 1
                    if line.startswith("data: {"):
                        n_pieces += 1
                        ends["failed"] += '"error"' in line
                    if n_pieces == 1:
                        first.append(time.perf_counter() - start)
                        n_pieces += 1
                    if number % 5 == 0 and n_pieces > 3:
                        ends["hung up"] += 1
                        return
                    if number % 7 == 0:
                        await asyncio.sleep(0.05)

        start = time.perf_counter()
        await asyncio.gather(*(ask(number) for number in range(n_requests)))
        seconds = time.perf_counter() - start
    served.wait_until("slots_busy", 0)
    cuts = statistics.quantiles(first, n=20)
    return {"requests": n_requests, **ends, "seconds": seconds, "first_piece_p50": cuts[9], "first_piece_p95": cuts[18]}


def storms(path: Path, slots: int, n_requests: int, tokens: int, threads: int) -> dict[str, Any]:
    name = path.name.removesuffix(".gguf")
    with serve(path, "--slots", str(slots), "--threads", str(threads), "--queue", str(n_requests)) as served:
        asyncio.run(storm(served, name, 2 * slots, tokens))  # buffers that stay are made now
        before, rounds = held(served.process.pid), []
        for _ in range(4):
            found = asyncio.run(storm(served, name, n_requests, tokens))
            rounds.append({**found, "after": held(served.process.pid)})
        totals = {
            key: served.metric(key) for key in ("requests_total", "requests_cancelled_total", "requests_failed_total")
        }
        return {"before": before, "rounds": rounds, **totals}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--storm", type=int, default=0, help="requests at once; 0 measures throughput instead")
    parser.add_argument("--llama-server", type=Path, help="the program, to be measured too")
    parser.add_argument("--kernels", nargs="+", choices=("stock", "auto"), default=["auto"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.storm:
        found = storms(given.model, given.slots, given.storm, given.tokens, given.threads)
    else:
        found = compare(given)
    report = {"machine": machine(), "model": given.model.name, "slots": given.slots, "threads": given.threads, **found}
    print(json.dumps(report, indent=2))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
