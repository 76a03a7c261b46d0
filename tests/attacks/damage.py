"""How checkpoints are damaged, and what an error must look like."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def split_header(path: Path) -> tuple[dict, bytes]:
    blob = path.read_bytes()
    length = int.from_bytes(blob[:8], "little")
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def join_header(path: Path, header: dict | bytes, body: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def edit_entry(folder: Path, tensor: str, **changes: object) -> None:
    header, body = split_header(folder / "model.safetensors")
    header[tensor].update(changes)
    join_header(folder / "model.safetensors", header, body)


def poison(folder: Path, tensor: str, value: float) -> None:
    """Set one value in the middle of a bf16 tensor."""
    header, body = split_header(folder / "model.safetensors")
    start, stop = header[tensor]["data_offsets"]
    assert header[tensor]["dtype"] == "BF16"
    middle = start + (stop - start) // 4 * 2
    bits = (np.float32([value]).view(np.uint32) >> 16).astype("<u2").tobytes()
    join_header(folder / "model.safetensors", header, body[:middle] + bits + body[middle + 2 :])


def assert_one_error_line(capsys: pytest.CaptureFixture[str], expected: str) -> None:
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if not line.startswith("note: ")]
    assert len(errors) == 1, printed.err
    assert errors[0].startswith("error: ")
    assert re.search(expected, errors[0]), errors[0]
    assert "Traceback" not in printed.err
