"""Per-tensor types and keys on the command line: what is refused in one line, and what the real runtime reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

import tritgguf.runtime
from tests import packed_checkpoints
from tests.attacks.damage import assert_one_error_line
from tests.checkpoints import build
from tests.command_line import run, run_captured
from tests.oracles import libggml
from tritgguf.converter import UnsupportedError, convert, plan
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.model.decoder import pair_neighbours
from tritgguf.converter.planning.key_overrides import named, parse_override
from tritgguf.converter.verification.verification import verify


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama-gqa", tmp_path_factory.mktemp("models") / "llama-gqa")


@pytest.fixture(scope="module")
def source(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a GGUF file."""
    return convert(model, tmp_path_factory.mktemp("source") / "source.gguf", "f16", check=False).out


def kinds(path: Path) -> dict[str, str]:
    return {name: tensor.dtype for name, tensor in read_gguf(path).tensors.items()}


REFUSED = {
    "--tensor-type q8_0": r"--tensor-type q8_0: expected REGEX=TYPE, such as attn_v=q8_0",
    "--tensor-type =q8_0": r"--tensor-type =q8_0: expected REGEX=TYPE",
    "--tensor-type attn_v=q9": r"attn_v=q9: unknown tensor type 'q9'; expected one of auto, bf16, f16",
    "--tensor-type attn_v=": r"attn_v=: unknown tensor type ''; expected one of auto",
    "--tensor-type attn_(=q8_0": r"attn_\(=q8_0: the pattern is no regular expression: missing \)",
    "--tensor-type (a+)+b=q8_0": r"\(a\+\)\+b=q8_0: the pattern can take for ever to match",
    "--tensor-type .*.*.*.*x=q8_0": r"the pattern can take for ever to match; expected at most 3 repetitions",
    "--tensor-type (.|.)(.|.)(.|.)(.|.)(.|.)x=q8_0": r"can take for ever to match; .* and 4 groups of alternatives",
    "--tensor-type ffn_gat_e=q8_0": r"matches no tensor; the file's tensors are token_embd.weight, blk.N.attn_norm",
    "--tensor-type attn=f16": r"attn=f16 matches blk\.0\.attn_norm\.weight, which has to be F32 for the graph",
    "--tensor-type attn_v=q8_0 --tensor-type 1.attn_v=f16": r"1.attn_v=f16 has no effect: earlier --tensor-type",
    "--tensor-type attn_v=q2_0 --for ollama": r"--tensor-type attn_v=q2_0 contradicts --for ollama",
    "--tensor-type attn_v=q2_k": r"v_proj.weight isn't on a grid .* only written for these here: .* attn_v=q3_k$",
    "--override-kv llama.context_length": r"expected KEY=TYPE:VALUE with the type int, float, bool, str",
    "--override-kv llama.context_length=1024": r"expected KEY=TYPE:VALUE",
    "--override-kv llama.context_length=arr:[1]": r"expected KEY=TYPE:VALUE",
    "--override-kv llama.context_length=int:": r"'' is no int; expected a whole number",
    "--override-kv llama.context_length=int:1e3": r"'1e3' is no int; expected a whole number",
    "--override-kv llama.context_length=int:-1": r"-1 doesn't fit the key's type, uint32",
    "--override-kv llama.context_length=int:4294967296": r"4294967296 doesn't fit the key's type, uint32",
    "--override-kv llama.context_length=float:1": r"llama.context_length is 2048, of type int; expected .*=int:VALUE",
    "--override-kv llama.rope.freq_base=int:1": r"of type float; expected llama.rope.freq_base=float:VALUE",
    "--override-kv llama.rope.freq_base=float:inf": r"'inf' is no float; expected a finite number",
    "--override-kv llama.rope.freq_base=float:1e39": r"1e\+39 doesn't fit the key's type, float32",
    "--override-kv a=bool:yes": r"'yes' is no bool; expected true or false",
    "--override-kv =int:1": r"a key has 1 to 200 printable ASCII characters",
    "--override-kv ä=int:1": r"a key has 1 to 200 printable ASCII characters",
    "--override-kv a=int:1 --override-kv a=int:2": r"a=int:1 and --override-kv a=int:2 set the same key; give one",
    "--override-kv general.name=str:a --name b": r"general.name=str:a and --name b set the same key; give one",
    "--override-kv general.alignment=int:64": r"general.alignment describes the file itself: .*; leave it out",
    "--override-kv general.file_type=int:1": r"general.file_type describes the file itself",
    "--override-kv general.architecture=str:gemma": r"general.architecture describes the file itself",
    "--override-kv split.count=int:2": r"split.count describes the file itself",
    "--override-kv tokenizer.ggml.tokens=str:a": r"tokenizer.ggml.tokens is an array, which can't be overridden",
    "--name ": r"--name '' is no name; expected a text",
}


@pytest.mark.parametrize("options", REFUSED)
def test_a_bad_option_is_one_line(options: str, model: Path, source: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    for path in (model, source):
        assert run(monkeypatch, "convert", path, tmp_path / "out.gguf", "--type", "f16", *options.split(" ")) == 1
        assert_one_error_line(capsys, REFUSED[options].replace("v_proj", "(v_proj|attn_v)"))
        assert not list(tmp_path.iterdir())


def test_texts_that_are_no_unicode_are_refused() -> None:
    """As Python passes on arguments with bytes that are no UTF-8."""
    with pytest.raises(UnsupportedError, match="is no str; expected valid Unicode"):
        parse_override("a=str:\udc80")
    with pytest.raises(UnsupportedError, match="is no name; expected a text"):
        named("\udc80")


def test_rows_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    model = build("llama-hidden-192", tmp_path / "model")
    options = ["--type", "f16", "--tensor-type", "attn_v=q6_k", "--fallback", "f16", "--dry-run"]
    assert run(monkeypatch, "convert", model, *options) == 1
    assert_one_error_line(capsys, r"v_proj.weight: rows of 192 values aren't a multiple of 256, .*attn_v=f16$")


@pytest.mark.parametrize("of", ["folder", "GGUF file"])
def test_the_first_pattern_decides_and_the_runtime_computes_with_it(
    of: str, model: Path, source: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    out = tmp_path / "out.gguf"
    wanted = {r"blk\.0\.attn_v": "q8_0", "attn_v": "q6_k", r"^(output|token_embd)\.": "q4_k", "ffn_up": "f32"}
    wanted |= {"ffn_gate": "q4_0", "attn_norm": "f32"}
    options = [f"--tensor-type={pattern}={name}" for pattern, name in wanted.items()]
    given = model if of == "folder" else source
    code, said, errors = run_captured(monkeypatch, capsys, "convert", given, out, "--type", "bf16", *options)
    assert (code, said.count("\n")) == (0, 2), errors
    found = kinds(out)
    assert found["blk.0.attn_v.weight"] == "Q8_0"
    assert found["blk.1.attn_v.weight"] == "Q6_K"
    assert (found["output.weight"], found["token_embd.weight"]) == ("Q4_K", "Q4_K")
    assert (found["blk.1.ffn_up.weight"], found["blk.1.ffn_gate.weight"]) == ("F32", "Q4_0")
    assert found["blk.0.attn_q.weight"] == "BF16"
    planned = plan(given, "bf16", tensor_type=[option.removeprefix("--tensor-type=") for option in options])
    assert planned.file_bytes == out.stat().st_size
    reasons = {tensor.spec.name: tensor.reason for tensor in planned.tensors}
    assert reasons["blk.1.attn_v.weight"].startswith("linear: --tensor-type attn_v=q6_k")
    with tritgguf.runtime.open(out, n_ctx=64) as session, tritgguf.runtime.open(source, n_ctx=64) as plain:
        exact, rounded = plain.logits([5, 6, 7]), session.logits([5, 6, 7])
    assert 0 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < 0.2


def test_a_single_tensor_on_no_grid_becomes_q4_0_as_ggml_makes_it(model: Path, tmp_path: Path) -> None:
    """Not three of its sixteen levels, as `--type q4_0` makes of models that are to become ternary."""
    out = convert(model, tmp_path / "out.gguf", "f16", tensor_type=["attn_q=q4_0"], check=False).out
    stored = read_gguf(out).tensors["blk.1.attn_q.weight"]
    values = read_tensors(model)["model.layers.1.self_attn.q_proj.weight"].read(slice(None))
    expected = libggml.quantize(values[pair_neighbours(4, 64)], stored.ggml_type)
    np.testing.assert_array_equal(stored.data.reshape(expected.shape), expected)


def test_auto_for_some_tensors(tmp_path: Path) -> None:
    model = build("llama-tied", tmp_path / "model")
    planned = plan(model, "f16", target="any", tensor_type=["attn_q=auto", "token_embd=auto"])
    found = {tensor.spec.name: tensor.codec.name for tensor in planned.tensors}
    assert (found["blk.0.attn_q.weight"], found["blk.0.attn_k.weight"]) == ("q2_k", "f16")
    assert found["token_embd.weight"] == "f16"


OVERRIDES = {
    "llama.context_length=int:1024": (1024, "UINT32"),
    "llama.rope.freq_base=float:50000": (50000.0, "FLOAT32"),
    "tokenizer.ggml.add_bos_token=bool:false": (False, "BOOL"),
    "general.author=str:Ada: a=b": ("Ada: a=b", "STRING"),
    "mine.small=int:-5": (-5, "INT32"),
    "mine.large=int:5000000000": (5_000_000_000, "UINT64"),
}


def test_overridden_keys_are_written_and_read(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "out.gguf"
    options = [f"--override-kv={text}" for text in OVERRIDES]
    code, said, errors = run_captured(
        monkeypatch, capsys, "convert", model, out, "--type", "f16", *options, "--name", "Ada's"
    )
    assert (code, said.count("\n")) == (0, 1)  # token ids aren't compared
    fields = GGUFReader(out).fields
    for text, (value, kind) in OVERRIDES.items():
        field = fields[text.split("=")[0]]
        assert (field.contents(), field.types[0].name) == (value, kind)
    assert fields["general.name"].contents() == "Ada's"
    for line in (
        "note: llama.context_length is 1024, instead of 2048: --override-kv",
        "note: mine.small is -5, a new key: --override-kv",
        "note: general.name is \"Ada's\", instead of 'llama-gqa': --name",
        "note: token ids aren't compared with the source tokenizer's, since --override-kv changes the tokenizer",
    ):
        assert line in errors.splitlines()
    with tritgguf.runtime.open(out) as session:
        plain = convert(model, tmp_path / "plain.gguf", "f16").out
        assert session.n_ctx <= 1024
        with tritgguf.runtime.open(plain) as other:
            ids = other.tokenize("hello")
            assert session.tokenize("hello") == ids[1:]


def test_a_dry_run_shows_overrides(model: Path, monkeypatch, capsys) -> None:
    options = ["--dry-run", "--json", "--type", "f16", "--override-kv=a.b=int:1", "--name=x"]
    code, said, _ = run_captured(monkeypatch, capsys, "convert", model, *options)
    assert code == 0
    assert {"a.b is 1, a new key: --override-kv", "general.name is 'x', instead of 'llama-gqa': --name"} <= set(
        json.loads(said)["notes"]
    )


def test_verify_expects_the_overrides_that_it_is_given(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "out.gguf"
    texts = list(OVERRIDES)
    convert(model, out, "tq2_0", override_kv=texts, name="x", tensor_type=["attn_v=q4_0"], embedding_type="q6_k")
    good = verify(model, out, override_kv=texts, name="x")
    assert (good.problems, good.other_keys, good.strings_checked) == ([], (), 0)
    options = [f"--override-kv={text}" for text in OVERRIDES]
    code, said, errors = run_captured(monkeypatch, capsys, "verify", model, out, *options, "--name", "x")
    assert (code, errors) == (0, "")
    assert "Metadata: every key that the model needs is correct." in said
    code, said, errors = run_captured(monkeypatch, capsys, "verify", model, out)
    assert code == 1
    assert "metadata: llama.context_length is 1024; expected 2048" in said
    assert "metadata: if convert set these keys with --override-kv, give verify the same options\n" in said
    assert errors.startswith("note: ")
    assert errors.splitlines()[-1].startswith("error: out.gguf differs from the model: llama.context_length is 1024;")
    wrong = verify(model, out, override_kv=[*texts[1:], "llama.context_length=int:512"])
    assert wrong.wrong_keys == ("llama.context_length is 1024; expected 512",)


def test_a_gguf_source_keeps_its_keys_but_the_overridden(source: Path, tmp_path: Path) -> None:
    before = read_gguf(source).metadata
    out = convert(source, tmp_path / "out.gguf", "q8_0", override_kv=["llama.context_length=int:99"], name="new").out
    after = read_gguf(out).metadata
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {"llama.context_length", "general.name", "general.file_type"}
    assert verify(source, out, override_kv=["llama.context_length=int:99"], name="new").problems == []


@pytest.mark.parametrize("name", ["bitnet-b1.58", "bitnet"])
def test_a_file_with_two_sets_of_keys_gets_an_override_in_both(name: str, tmp_path: Path) -> None:
    """tritgguf's runtime reads those of the graph, other programs refuse the file by the first."""
    folder = packed_checkpoints.build("2b4t", tmp_path / "model")
    option = f"{name}.attention.layer_norm_rms_epsilon=float:0.5"
    files = [convert(folder, tmp_path / "plain.gguf", "f16", check=False).out]
    files.append(convert(folder, tmp_path / "folder.gguf", "f16", check=False, override_kv=[option]).out)
    files.append(convert(files[0], tmp_path / "file.gguf", "f16", check=False, override_kv=[option]).out)
    keys = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**keys, "rms_norm_eps": 0.5}), encoding="utf-8")
    files.append(convert(folder, tmp_path / "expected.gguf", "f16", check=False).out)
    logits = []
    for file in files:
        with tritgguf.runtime.open(file, n_ctx=32) as session:
            logits.append(session.logits([5, 9, 2, 7]))
    assert np.linalg.norm(logits[3] - logits[0]) > 0.05 * np.linalg.norm(logits[0])
    for file, found in zip(files[1:3], logits[1:3], strict=True):
        np.testing.assert_array_equal(found, logits[3])
        for prefix in ("bitnet-b1.58", "bitnet"):
            assert read_gguf(file).value(f"{prefix}.attention.layer_norm_rms_epsilon") == 0.5
    other = {"bitnet": "bitnet-b1.58", "bitnet-b1.58": "bitnet"}[name]
    with pytest.raises(UnsupportedError, match=r"--override-kv .* and --override-kv .* set the same key"):
        plan(folder, "f16", override_kv=[option, f"{other}.attention.layer_norm_rms_epsilon=float:0.25"])
