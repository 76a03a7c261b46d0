"""The report's figures, against inspect's JSON, numpy on the weights, and gguf-py's dequantizers; and hostile names."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import checkpoints, packed_checkpoints
from tests.gguf_edit import rewrite
from tests.paths import ROOT
from tests.report_reader import Report
from tritgguf.converter import convert
from tritgguf.converter.errors import SourceError
from tritgguf.converter.inspection.inspection import Inspection, inspect
from tritgguf.converter.inspection.report.quality import Quality, read_quality
from tritgguf.converter.inspection.report.report import report
from tritgguf.converter.verification.relative_errors import relative_errors

Folder = Callable[[str], Path]
HOSTILE = "</title><script>document.title='owned'</script><img src=http://127.0.0.1:9/ onerror=alert(1)>\"'{{ 7*7 }}"


def read(found: Inspection, out: Path, **figures) -> Report:
    out.write_bytes(report(found, **figures))
    return Report(out)


@pytest.mark.parametrize("name", ["demo-model", "demo.gguf", "14b-seed", "llama-gqa"])
def test_the_figures_are_those_of_the_json(name: str, model: Folder, tmp_path: Path) -> None:
    demo = ROOT / "vendor" / "demo-model"
    if name == "demo.gguf":
        path = convert(demo, tmp_path / name, "tq2_0", check=False).out
    else:
        path = demo if name == "demo-model" else model(name)
    found = inspect(path, scales=True)
    said, page = json.loads(json.dumps(inspect(path).as_json())), read(found, tmp_path / "report.html")
    assert (page.data["file-bytes"], page.data["parameters"]) == (said["file_bytes"], said["parameters"])
    tensors = {tensor["name"]: tensor for tensor in said["tensors"]}
    assert page.values("tensors", "bytes") == {key: tensor["bytes"] for key, tensor in tensors.items()}
    zeros = {key: tensor["zeros"] for key, tensor in tensors.items() if tensor["zeros"] is not None}
    assert page.values("tensors", "zeros") == zeros
    for kind in ("attn_q", "ffn_down"):
        column = {
            f"blk.{layer}.{kind}.weight": share
            for layer, share in page.values("zeros", kind).items()
            if layer.isdigit()
        }
        assert {key: zeros[key] for key in column} == column
        assert {key for key in zeros if key.endswith(f"{kind}.weight")} == column.keys()
    sizes = {key: size["file_bytes"] for key, size in said["sizes"].items() if size["file_bytes"] is not None}
    assert page.values("sizes", "file") == sizes
    runs_on = {key: ", ".join(size["runs_on"]) for key, size in said["sizes"].items()}
    places = {key: cell.text.split(" (")[0] for key, cell in page.column("sizes", "runs on").items()}
    assert places == runs_on
    types = page.values("types", "bytes")
    assert types == {
        dtype: sum(tensor["bytes"] for tensor in tensors.values() if tensor["dtype"] == dtype)
        for dtype in said["dtypes"]
    }


@pytest.mark.parametrize(
    ("name", "group"), [("bonsai", 128), ("llama-tied", "row"), ("llama1", "tensor"), ("14b-newer", 64)]
)
def test_every_scale_is_counted(name: str, group: int | str, model: Folder) -> None:
    """A ternary group's scale is its largest magnitude, whatever packing it is in."""
    weights = (packed_checkpoints if name in packed_checkpoints.PACKED else checkpoints).weights(name)
    linear = [facts for facts in inspect(model(name), scales=True).tensors if facts.role == "linear"]
    for facts in linear:
        values = np.abs(weights[facts.source])
        per_row = values.max(axis=-1)
        scales = per_row if isinstance(group, str) else values.reshape(-1, group).max(axis=-1)
        counts, used = facts.scales, scales[scales > 0]
        assert counts is not None
        assert counts.n_scales == (1 if group == "tensor" else len(scales))
        assert counts.n_zero == (0 if group == "tensor" else len(scales) - len(used))
        assert (counts.smallest, counts.largest) == pytest.approx((used.min(), used.max()), rel=2e-3)
    assert linear


def test_histograms_have_every_scale(model: Folder, tmp_path: Path) -> None:
    found = inspect(model("bonsai"), scales=True)
    page = read(found, tmp_path / "report.html")
    ups = [tensor for tensor in found.tensors if tensor.name.endswith("ffn_up.weight")]
    n_scales = sum(math.prod(tensor.shape) for tensor in ups) // 128
    assert f'aria-label="Histogram of {n_scales} scales of ffn_up, from' in page.text
    assert f'<data value="{n_scales}">{n_scales:,}</data> scales' in page.text


def test_errors_are_those_of_other_decoders(model: Folder, tmp_path: Path) -> None:
    """gguf-py's own dequantizers and numpy say the same; rows of attn_q are permuted, so the others are compared."""
    weights, source = checkpoints.weights("llama-gqa"), model("llama-gqa")
    out = convert(source, tmp_path / "out.gguf", "tq2_0", tensor_type=["attn_v=q8_0"], check=False).out
    errors = relative_errors(source, out)
    names = {tensor.name: tensor.source for tensor in inspect(source).tensors}
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    assert errors.keys() == stored.keys()
    n_lossy = 0
    for name, error in errors.items():
        if "attn_q" not in name and "attn_k" not in name:
            have = gguf.dequantize(stored[name].data, stored[name].tensor_type).astype(np.float64)
            want = weights[names[name]].astype(np.float64)
            assert error == pytest.approx(np.linalg.norm(have - want) / np.linalg.norm(want), rel=1e-9), name
            n_lossy += error > 0
    assert n_lossy >= 8
    page = read(inspect(out, scales=True), tmp_path / "report.html", errors=errors, source_name="llama-gqa")
    assert page.values("tensors", "relative error") == errors
    assert page.values("errors", "ffn_up") == {str(layer): errors[f"blk.{layer}.ffn_up.weight"] for layer in range(2)}
    assert page.column("exactness", "ffn_up")["0"].text == "~tq2_0"
    with pytest.raises(SourceError, match=r"out\.gguf: the shape of .* is .*: name the model"):
        relative_errors(ROOT / "vendor" / "demo-model", out)


def hostile_folder(model: Folder, tmp_path: Path) -> Path:
    folder = checkpoints.build("llama1", tmp_path / "hostile")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {**tensors, f"layers.0.{HOSTILE}\x1b[2J\u202e.weight": np.ones((2, 64), np.float32)},
        folder / "model.safetensors",
    )
    return folder


def hostile_file(model: Folder, tmp_path: Path) -> Path:
    file = convert(model("llama1"), tmp_path / "plain.gguf", "tq1_0", check=False).out
    keys = {"tokenizer.chat_template": HOSTILE, "general.name": HOSTILE}
    extra = {"<b onclick=x>&amp;\"'{{ 7*7 }}": (np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.F32)}
    return rewrite(file, tmp_path / "<img src=x onerror=alert(1)>.gguf", keys=keys, tensors=extra)


@pytest.mark.parametrize("build", [hostile_folder, hostile_file])
def test_names_of_a_model_are_text(build, model: Folder, tmp_path: Path) -> None:
    found = inspect(build(model, tmp_path), scales=True)
    page = read(found, tmp_path / "report.html", quality=[Quality(HOSTILE, 1, 1, 1, 1, None, None, False, True)])
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "b", "iframe", "object", "base", "form"}
    assert not [said for _, said in page.elements if any(key.startswith("on") or key == "src" for key in said)]
    assert [said["href"] for _, said in page.elements if "href" in said] == ["data:,"]
    assert page.text.split("</title>")[0].endswith("· tritgguf report")
    assert not set(page.text) & {"\x1b", "\u202e"}
    assert "{{ 7*7 }}" in page.text
    if build is hostile_folder:
        assert "\\x1b[2J\\u202e" in page.text
        assert "Can't be converted" in page.text


FIGURES = {"path": "m/a.gguf", "file_bytes": 1000, "bits_per_weight": 2.0, "ppl": 9.5, "ppl_error": 0.1}


def test_quality_is_read(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    other = FIGURES | {"path": "b.gguf", "kld_mean": 0.25, "same_top1": 0.5}
    path.write_text(json.dumps({"files": [FIGURES, other], "base": FIGURES | {"path": "base.gguf"}, "ctx": 512}))
    found = read_quality(path, Path("elsewhere/a.gguf"), 1000)
    assert [(one.name, one.is_this, one.is_base) for one in found] == [
        ("a.gguf", True, False),
        ("b.gguf", False, False),
        ("base.gguf", False, True),
    ]
    assert (found[0].ppl, found[0].kld_mean, found[1].kld_mean, found[1].same_top1) == (9.5, None, 0.25, 0.5)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("{", "eval.json is damaged at line 1"),
        ('{"files": 3}', "eval.json has no list of files; write it with tritgguf eval --json"),
        ({"files": [FIGURES | {"path": "b.gguf"}]}, "eval.json has the figures of b.gguf, not of a.gguf; evaluate"),
        ({"files": []}, "eval.json has the figures of no file, not of a.gguf"),
        (
            {"files": [FIGURES | {"file_bytes": 7}]},
            "eval.json has the figures of a.gguf of 7 bytes, this one has 1,000",
        ),
        ({"files": [FIGURES | {"ppl": math.nan}]}, "eval.json: ppl is nan; expected a number"),
        ({"files": [FIGURES | {"ppl": "9"}]}, "eval.json: ppl is '9'; expected a number"),
        ({"files": [FIGURES | {"path": 5}]}, "eval.json has a file without a path"),
    ],
)
def test_eval_json_of_another_file(said: object, line: str, tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    path.write_text(said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(SourceError) as caught:
        read_quality(path, Path("a.gguf"), 1000)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
