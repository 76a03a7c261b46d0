"""One server with the demo model for all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.served import Served, serve
from tritgguf.converter import convert

TOOL_TEMPLATE = """{%- if tools %}<|im_start|>system
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Answer with <tool_call>{"name": "...", "arguments": {}}</tool_call> to call one.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "demo.gguf"
    convert(ROOT / "vendor" / "demo-model", out, type="tq2_0")
    return out


@pytest.fixture(scope="session")
def caller(tmp_path_factory: pytest.TempPathFactory, make_model: Callable[..., Path]) -> Path:
    """A model with random weights, whose template has a place for tools and for calls of them."""
    return make_model(tmp_path_factory.mktemp("caller") / "caller.gguf", template=TOOL_TEMPLATE, n_ctx_train=30_000)


@pytest.fixture(scope="session")
def served(demo: Path, caller: Path) -> Iterator[Served]:
    with serve(demo, caller, "--slots", "4", "--threads", "1") as running:
        yield running
