"""Reading PyTorch's files against what PyTorch wrote and read (golden/pytorch, recorded by record_pytorch.py)."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests import packed_checkpoints
from tests.checkpoints import build
from tests.command_line import run
from tests.pytorch_files import TINY, Storage, dumped, state, tensor, whole, write
from tritgguf.converter import SourceError, TensorError, UnsupportedError, convert, quantize
from tritgguf.converter.checkpoint.folder import open_checkpoint
from tritgguf.converter.checkpoint.pytorch_reader import StridedTensor, read_file
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.checkpoint.stored_tensor import StoredTensors
from tritgguf.converter.core.dtypes import FLOAT_DTYPES, ITEM_BYTES
from tritgguf.converter.inspection.inspection import inspect

GOLDEN = Path(__file__).parents[2] / "golden" / "pytorch"
VALUES = np.load(GOLDEN / "values.npz")
STRIDED = {"transposed", "columns", "every_second", "column", "transposed_f16"}


def found_in(case: str, name: str) -> np.ndarray:
    """Return a tensor's values as we read them, in its own shape."""
    read = read_file(GOLDEN / f"{case}.bin")[name]
    if read.dtype in FLOAT_DTYPES:
        return read.read(slice(None)).reshape(read.shape)
    kind = np.float64 if read.dtype == "F64" else VALUES[f"{case}/{name}"].dtype
    return read.data.view(kind).reshape(read.shape)


@pytest.mark.parametrize("key", VALUES.files)
def test_values_and_shapes_equal_torch_s(key: str) -> None:
    found = found_in(*key.split("/"))
    assert found.shape == VALUES[key].shape
    np.testing.assert_array_equal(found, VALUES[key])


def test_every_tensor_of_a_file_is_read() -> None:
    for case in ("dtypes", "views", "parameters", "module"):
        expected = {key.split("/")[1] for key in VALUES.files if key.startswith(f"{case}/")}
        assert set(read_file(GOLDEN / f"{case}.bin")) == expected


def test_dtypes_have_the_names_of_safetensors() -> None:
    found = {name: tensor.dtype for name, tensor in read_file(GOLDEN / "dtypes.bin").items()}
    assert {name: dtype for name, dtype in found.items() if name != dtype.lower()} == {"number": "F32", "empty": "F32"}


@pytest.mark.parametrize("case", ["protocol4", "nested"])
def test_other_ways_to_save_a_state_dict(case: str) -> None:
    assert list(read_file(GOLDEN / f"{case}.bin")) == ["f32"]
    read = read_file(GOLDEN / f"{case}.bin")["f32"].read(slice(None))
    np.testing.assert_array_equal(read, VALUES["dtypes/f32"])


def test_tied_tensors_share_their_bytes() -> None:
    views = read_file(GOLDEN / "views.bin")
    assert np.shares_memory(views["whole"].data, views["tied"].data)
    assert np.shares_memory(views["whole"].data, views["transposed"].data)


def test_only_views_with_gaps_or_turned_are_strided() -> None:
    views = read_file(GOLDEN / "views.bin")
    assert {name for name, view in views.items() if isinstance(view, StridedTensor)} == STRIDED


@pytest.mark.parametrize("name", sorted(STRIDED - {"column"}))
def test_strided_rows_are_read_by_slice_and_by_index(name: str) -> None:
    read, expected = read_file(GOLDEN / "views.bin")[name], VALUES[f"views/{name}"]
    np.testing.assert_array_equal(read.read(slice(1, 3)), expected[1:3])
    order = np.array([3, 0, 2, 2])
    np.testing.assert_array_equal(read.read(order), expected[order])
    np.testing.assert_array_equal(np.concatenate([values for _, values in read.chunks()]), expected)


def test_a_nan_in_a_transposed_tensor_is_named_in_its_own_rows(tmp_path: Path) -> None:
    values = np.zeros((8, 20), np.float32)
    values[5, 13] = np.nan
    code = state(w=tensor(Storage("0", 160), (20, 8), (1, 20)))
    path = write(tmp_path / "pytorch_model.bin", code, {"0": values.tobytes()})
    with pytest.raises(TensorError, match=r"pytorch_model.bin: tensor w has 1 NaN .* row 13, column 5"):
        read_file(path)["w"].read(slice(10, 20))


REFUSED = {
    "beside": r"beside.bin holds epoch \(int\); expected names with tensors alone",
    "two_nested": "several state dicts, model and module: save one of them alone",
    "complex": "names torch.ComplexFloatStorage, which no state dict of plain tensors needs: nothing of it was run",
    "sparse": "names torch._utils._rebuild_sparse_tensor",
    "whole_module": "names torch.nn.modules.linear.Linear",
    "expanded": r"tensor expanded of F32 has the strides \(0,\) for the shape \(5,\).* call .contiguous\(\)",
    "transposed_u8": r"tensor packed of U8 has the strides \(1, 4\)",
    "legacy": r"format of PyTorch before 1.6, a bare pickle; .* torch.load\(file, weights_only=True\)",
    "script": "is compressed or encrypted; .*a TorchScript program has others",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_state_dict_of_plain_tensors_is_refused(case: str) -> None:
    with pytest.raises(SourceError, match=REFUSED[case]):
        read_file(GOLDEN / f"{case}.bin")


KINDS = {"U8": "Byte", "F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long"}


def write_tensors(path: Path, tensors: StoredTensors) -> None:
    """Write tensors of safetensors files as torch.save would."""
    code, storages = {}, {}
    for key, (name, stored) in enumerate(tensors.items()):
        storage = Storage(str(key), stored.n_bytes // ITEM_BYTES[stored.dtype], f"{KINDS[stored.dtype]}Storage")
        code[name], storages[storage.key] = tensor(storage, stored.shape), stored.data.tobytes()
    write(path, state(**code), storages)


@pytest.mark.parametrize("name", ["llama-rows", "14b-seed", "1bitllm"])
def test_packed_weights_are_the_same_as_from_safetensors(name: str, tmp_path: Path) -> None:
    model = packed_checkpoints.build(name, tmp_path / "model")
    expected = convert(model, tmp_path / "expected.gguf", check=False).out.read_bytes()
    write_tensors(model / "pytorch_model.bin", read_tensors(model))
    (model / "model.safetensors").unlink()
    assert convert(model, tmp_path / "found.gguf", check=False).out.read_bytes() == expected


@pytest.mark.parametrize("single", [False, True])
def test_a_model_s_file_is_the_same_as_from_safetensors(single: bool, tmp_path: Path) -> None:
    model = build("tiny", tmp_path / "model", TINY)
    expected = convert(model, tmp_path / "expected.gguf", "f16", check=False).out.read_bytes()
    tensors = read_tensors(model)
    (model / "model.safetensors").unlink()
    if single:
        write_tensors(model / "pytorch_model.bin", tensors)
    else:
        shutil.copytree(GOLDEN / "model", model, dirs_exist_ok=True)
    assert convert(model, tmp_path / "found.gguf", "f16", check=False).out.read_bytes() == expected
    assert inspect(model).refused is None
    quantize(model, tmp_path / "out", "bitnet")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_safetensors_win_as_in_transformers(tmp_path: Path) -> None:
    model = build("tiny", tmp_path / "model", TINY)
    (model / "pytorch_model.bin").write_bytes(b"not even a zip archive")
    assert open_checkpoint(model, ()).packing == "plain floats"


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "model", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(
        SourceError, match=r"names the shard pytorch_model-00002-of-00002\.bin, which isn't in the folder"
    ):
        open_checkpoint(tmp_path / "model", ())


def rewritten(path: Path, change) -> Path:
    """Write the members of the golden `dtypes` again, each as `change` returns it; None leaves it out."""
    with zipfile.ZipFile(GOLDEN / "dtypes.bin") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = change(name.partition("/")[2], source.read(name))
            if data is not None:
                target.writestr(name, data)
    return path


def test_rewritten_as_it_was_it_is_read(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "a.bin", lambda name, data: data)
    np.testing.assert_array_equal(read_file(path)["f32"].read(slice(None)), VALUES["dtypes/f32"])


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("byteorder", b"big", "byte order is b'big'; expected b'little'"),
        ("data/0", None, "tensor f32 needs the storage '0' of 60 bytes, which the file doesn't have"),
        ("data/0", b"short", "tensor f32 needs the storage '0' of 60 bytes, which has 5 bytes"),
        ("data.pkl", None, "holds no dtypes/data.pkl: it isn't a file of torch.save"),
        ("data.pkl", b"\x80\x02}", "data.pkl is cut off"),
        ("data.pkl", whole(dumped(())), r"holds no dict \(tuple\)"),
        ("constants.pkl", b"", "is a TorchScript program"),
    ],
)
def test_what_contradicts_itself_is_refused(name: str, data: bytes | None, expected: str, tmp_path: Path) -> None:
    path = rewritten(tmp_path / "a.bin", lambda member, old: data if member == name else old)
    if name == "constants.pkl":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("dtypes/constants.pkl", b"")
    with pytest.raises(SourceError, match=expected):
        read_file(path)


def test_before_torch_2_1_files_have_no_byte_order(tmp_path: Path) -> None:
    assert read_file(rewritten(tmp_path / "a.bin", lambda name, data: None if name == "byteorder" else data))


def latents(folder: Path, recipe: str = "llama-gqa") -> Path:
    model = build(recipe, folder)
    (model / "modeling.py").write_text("class TernaryFakeQuantizer:\n    pass\n")
    return model


def test_weights_that_their_own_code_rounds_are_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "convert", latents(tmp_path / "model"), tmp_path / "out.gguf") == 1
    assert "modeling.py holds a fake quantizer, and the weights are on no grid" in capsys.readouterr().err
    assert convert(latents(tmp_path / "merged", "llama-tied"), tmp_path / "out.gguf", check=False).plan.tensors


@pytest.mark.parametrize(
    "place", ["BitCPM-CANN-1B-unquantized", "models--openbmb--BitCPM4-CANN-1B-unquantized/snapshots/0a"]
)
def test_the_name_of_latent_weights_is_known(place: str, tmp_path: Path) -> None:
    model = build("llama-gqa", tmp_path / place)
    with pytest.raises(UnsupportedError, match="its name says that it is unquantized"):
        convert(model, tmp_path / "out.gguf", check=False)


def test_other_unquantized_models_are_floats_to_convert(tmp_path: Path) -> None:
    """As google's gemma-3-4b-it-qat-q4_0-unquantized, whose code rounds nothing."""
    model = build("llama-gqa", tmp_path / "some-qat-q4_0-unquantized")
    (model / "modeling_llama.py").write_text("class Plain:\n    pass\n")
    assert convert(model, tmp_path / "out.gguf", "f16", check=False).plan.tensors
    assert json.loads((model / "config.json").read_text())["model_type"] == "llama"
