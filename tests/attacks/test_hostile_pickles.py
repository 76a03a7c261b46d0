"""PyTorch files that want to run something, fill the memory or lie about sizes: each is refused in one line.

The files that run something when Python's pickle loads them are read in a child process, in which an audit hook sees
whatever Python does; the same hook sees what pickle itself does with them.
"""

from __future__ import annotations

import functools
import json
import operator
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.pytorch_files import ORDERED_DICT, Storage, Torch, dumped, global_, state, tensor, whole, write
from tritgguf.converter.checkpoint.pytorch_reader import read_file
from tritgguf.converter.errors import MAX_MESSAGE, SourceError

TWO = {"0": bytes(8)}  # one storage of two float32 values


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.result = (function, arguments, state)

    def __call__(self) -> None:
        """Pickle demands that what is called can be."""

    def __reduce__(self) -> tuple:
        return self.result


def runs(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def hostile(canary: str) -> dict[str, tuple[bytes, str]]:
    """Return pickles that make a file when they are loaded, and what of each the error names."""
    create = f"open({canary!r}, 'w').close()"
    system = f"{sys.executable} -c {json.dumps(create)}"
    nested = Call(operator.attrgetter("system"), Call(__import__, "os"))
    chain = Call(Call(getattr, Call(__import__, "os"), "system"), system)
    chain_text = runs({"w": Call(os.system, system)})
    by_name = b"(X" + len(create).to_bytes(4, "little") + create.encode() + b"t"
    return {
        "os.system": (chain_text, f"names {os.system.__module__}.system,"),
        "subprocess": (runs({"w": Call(subprocess.call, [sys.executable, "-c", create])}), "names commands.call,"),
        "eval": (runs(Call(eval, create)), "names __builtin__.eval,"),
        "exec": (runs(Call(exec, create)), "names __builtin__.exec,"),
        "reduce in reduce": (runs(nested), "names operator.attrgetter,"),
        "functools.partial": (runs(Call(functools.partial(exec, create))), "names functools.partial,"),
        "exec by its own name": (whole(global_("builtins", "exec") + by_name + b"R"), "names builtins.exec,"),
        "exec by a name on the stack": (
            b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93" + by_name + b"R.",
            "names builtins.exec,",
        ),
        "an instance": (whole(b"(" + dumped(create) + b"ibuiltins\nexec\n"), "opcode b'i'"),
        "an object": (whole(b"(" + global_("builtins", "exec") + dumped(create) + b"o"), "names builtins.exec,"),
        "in a state dict": (state(w=global_("builtins", "exec") + by_name + b"R"), "names builtins.exec,"),
        "as a dict's state": (
            whole(ORDERED_DICT + global_("builtins", "exec") + by_name + b"Rb"),
            "names builtins.exec,",
        ),
        "as backward hooks": (
            state(w=tensor(Storage("0", 2), (2,), hooks=global_("builtins", "exec") + by_name + b"R")),
            "names builtins.exec,",
        ),
        "in the persistent id": (whole(global_("builtins", "exec") + by_name + b"RQ"), "names builtins.exec,"),
        "import and getattr": (runs(chain), "names __builtin__.getattr,"),
    }


WATCHED = """
import json, pickle, sys, zipfile
from pathlib import Path
from tritgguf.converter.checkpoint.pytorch_reader import read_file
from tritgguf.converter.errors import SourceError
events, told, files = [], {}, json.load(sys.stdin)
for path in files["warm"]:  # loads what is loaded when first used
    try:
        read_file(Path(path))
    except SourceError:
        pass
sys.addaudithook(lambda event, arguments: events.append(event if event != "open" else f"open {arguments[0]}"))
for path in files["hostile"]:
    events.clear()
    try:
        if files["by"] == "pickle":
            pickle.loads(zipfile.ZipFile(path).read("archive/data.pkl"))
        else:
            read_file(Path(path))
        said = "read"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    told[path] = [said, sorted({event for event in events if event not in (f"open {path}", "mmap.__new__")})]
json.dump(told, sys.stdout)
"""


def watched(by: str, files: list[Path], warm: list[Path]) -> dict[str, tuple[str, list[str]]]:
    told = {"by": by, "hostile": [str(path) for path in files], "warm": [str(path) for path in warm]}
    child = subprocess.run([sys.executable, "-c", WATCHED], input=json.dumps(told), capture_output=True, text=True)
    assert (child.returncode, child.stderr) == (0, "")
    return {Path(path).stem: (said, events) for path, (said, events) in json.loads(child.stdout).items()}


def test_what_a_pickle_names_is_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    attacks = hostile(str(canary))
    files = [write(tmp_path / f"{name}.bin", code, TWO) for name, (code, _) in attacks.items()]
    warm = [
        write(tmp_path / "sound.bin", state(w=tensor(Storage("0", 2), (2,))), TWO),
        write(tmp_path / "refused.bin", whole(global_("a", "b")), TWO),
    ]
    told = watched("tritgguf", files, warm)
    for name, (_, expected) in attacks.items():
        said, events = told[name]
        assert events == [], name
        assert said.startswith("SourceError: ")
        assert expected in said, name
    assert not canary.exists()


def test_the_hook_sees_what_pickle_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    some = {name: code for name, (code, _) in hostile(str(canary)).items() if name in ("os.system", "exec", "eval")}
    told = watched("pickle", [write(tmp_path / f"{name}.bin", code, TWO) for name, code in some.items()], [])
    assert canary.exists()
    assert all(events for _, events in told.values())


def test_gadgets_that_torch_and_numpy_offer_are_refused(tmp_path: Path) -> None:
    """Functions that torch's own loader once allowed, or that other files hold."""
    names = [
        "torch.load", "torch.jit.load", "torch.hub.load", "torch.storage._load_from_bytes", "torch.Tensor",
        "torch._utils._rebuild_tensor", "torch._utils._rebuild_parameter_with_state", "torch.serialization._get_layout",
        "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_meta_tensor_no_storage", "torch.Size",
        "torch._utils._rebuild_qtensor", "torch.device", "torch.QInt8Storage", "torch.os.system",
        "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar", "numpy.ndarray", "numpy.dtype",
        "collections.defaultdict", "collections.OrderedDict.fromkeys", "_codecs.encode", "argparse.Namespace",
    ]  # fmt: skip
    for name in names:
        module, _, function = name.rpartition(".")
        path = write(tmp_path / "a.bin", state(w=global_(module, function) + b")R"), TWO)
        with pytest.raises(SourceError, match=f"a.bin names {name}, which no state dict of plain tensors needs"):
            read_file(path)
    array = pickle.dumps({"w": np.zeros(3, np.float32)}, protocol=2)
    with pytest.raises(SourceError, match=r"names numpy\.\w*core\.multiarray\._reconstruct"):
        read_file(write(tmp_path / "numpy.bin", array, TWO))


HALF = Storage("0", 2, "HalfStorage")
WRONG_TENSORS = {
    "beyond its storage": (tensor(Storage("0", 2), (3,)), r"shape \(3,\) reaches 3 values into a storage of 2"),
    "offset beyond its storage": (tensor(Storage("0", 2), (2,), (1,), 1), "reaches 3 values into a storage of 2"),
    "huge offset": (tensor(Storage("0", 2), (1,), (1,), 2**62), "reaches 4611686018427387905 values"),
    "huge shape": (tensor(Storage("0", 2), (2**62, 2**62)), "reaches [0-9]+ values"),
    "huge strides": (tensor(Storage("0", 2), (2, 2), (2**62, 2**62)), "reaches [0-9]+ values"),
    "huge and empty": (tensor(Storage("0", 2), (0, 2**62)), None),
    "huge stride of one row": (tensor(Storage("0", 2), (1, 2), (2**62, 1)), None),
    "negative offset": (tensor(Storage("0", 2), (1,), (1,), -1), "that aren't whole numbers from zero up"),
    "negative strides": (tensor(Storage("0", 2), (2,), (-1,)), "that aren't whole numbers from zero up"),
    "negative shape": (tensor(Storage("0", 2), (-1,), (1,)), "that aren't whole numbers from zero up"),
    "fractions": (tensor(Storage("0", 2), (1.5,), (1,)), "that aren't whole numbers from zero up"),
    "truths": (tensor(Storage("0", 2), (True,), (1,)), "that aren't whole numbers from zero up"),
    "texts": (tensor(Storage("0", 2), ("2",), (1,)), "that aren't whole numbers from zero up"),
    "all values in one place": (tensor(Storage("0", 2), (2**40,), (0,)), r"has the strides \(0,\)"),
    "values that overlap": (tensor(Storage("0", 2), (1, 2, 2), (0, 1, 0)), "has the strides"),
    "more strides than sizes": (tensor(Storage("0", 2), (2,), (1, 1)), "a shape that doesn't fit its strides"),
    "more dimensions than any": (tensor(Storage("0", 2), (1,) * 2000), "a tensor with 2000 dimensions"),
    "too few arguments": (global_("torch._utils", "_rebuild_tensor_v2") + b")R", "a tensor made of 0 arguments"),
    "too many arguments": (tensor(Storage("0", 2), (2,), None, 0, None, None), "hooks or metadata"),
    "negated": (tensor(Storage("0", 2), (2,), None, 0, {"neg": True}), "hooks or metadata, which change its values"),
    "hooks": (tensor(Storage("0", 2), (2,), hooks={"a": 1}), "hooks or metadata, which change its values"),
    "a tensor of a tensor": (tensor(tensor(Storage("0", 2), (2,)), (2,)), "a storage that is none"),
    "a tensor of a dtype": (tensor(Torch("torch", "float32"), (2,)), "a storage that is none"),
    "untyped": (tensor(b"", (2,)), "a tensor made of 5 arguments"),
    "a parameter of a text": (
        global_("torch._utils", "_rebuild_parameter") + dumped(("a", True, {})) + b"R",
        "a parameter that is no tensor",
    ),
    "another dtype than its storage": (
        global_("torch._utils", "_rebuild_tensor_v3")
        + dumped((Storage("0", 2), 0, (2,), (1,), False, {}, Torch("torch", "int32")))
        + b"R",
        "a storage of F32 seen as I32",
    ),
    "no dtype": (
        global_("torch._utils", "_rebuild_tensor_v3")
        + dumped((Storage("0", 2), 0, (2,), (1,), False, {}, Storage("0", 2)))
        + b"R",
        "a dtype that is none",
    ),
    "a storage of two sizes": (dumped((Storage("0", 2), Storage("0", 3))), "the storage '0' with two types or sizes"),
    "a storage of two types": (dumped((Storage("0", 2), HALF)), "the storage '0' with two types or sizes"),
    "a smaller storage than claimed": (
        tensor(Storage("0", 2**60), (2,)),
        r"needs the storage '0' of 4611686018427387904 bytes, which has 8 bytes",
    ),
    "a storage of fewer than no items": (dumped(Storage("0", -2)), "a reference to something that isn't a storage"),
    "a storage outside of the archive": (
        tensor(Storage("../../etc/passwd", 2), (2,)),
        "storage '../../etc/passwd' of 8 bytes, which the file doesn't have",
    ),
    "a reference to a text": (dumped("storage") + b"Q", "a reference to something that isn't a storage"),
}


@pytest.mark.parametrize("name", WRONG_TENSORS)
def test_a_tensor_that_lies(name: str, tmp_path: Path) -> None:
    code, expected = WRONG_TENSORS[name]
    path = write(tmp_path / "a.bin", state(w=code), TWO)
    if expected is None:
        assert read_file(path)["w"].n_bytes <= 8
        return
    with pytest.raises(SourceError, match=expected) as caught:
        read_file(path)
    assert len(str(caught.value)) < MAX_MESSAGE


WRONG_PICKLES = {
    "nothing": (b"", "data.pkl is cut off"),
    "no protocol's": (b"\x80\x09}.", "holds pickle protocol 9"),
    "cut off in a name": (b"\x80\x02cos\nsystem", "data.pkl is cut off"),
    "cut off in a text": (b"\x80\x02X\xff\xff\xff\xffabc.", "data.pkl is cut off"),
    "no text": (b"\x80\x02X\x02\0\0\0\xff\xfe.", "a text that isn't UTF-8"),
    "a number of a thousand bytes": (b"\x80\x02\x8a\xff" + bytes(255) + b".", "a number of 255 bytes"),
    "an empty stack": (b"\x80\x02.", "an opcode without a value to work on"),
    "an empty stack remembered": (b"\x80\x02q\x00.", "an opcode without a value to work on"),
    "no mark": (b"\x80\x02}u.", "an opcode without the mark that it needs"),
    "no dict": (whole(b"](" + dumped("a") + b"u"), "an opcode for a dict where there is none"),
    "no list": (whole(b"}" + dumped("a") + b"a"), "an opcode for a list where there is none"),
    "a key without a value": (whole(b"}(" + dumped("a") + b"u"), "a key without a value"),
    "a key twice": (whole(b"}(" + 2 * (dumped("a") + b"N") + b"u"), "the key 'a' twice"),
    "a tensor as a key": (whole(b"}" + tensor(Storage("0", 2), (2,)) + b"Ns"), "a key that is a PickledTensor"),
    "a value that isn't there": (b"\x80\x02h\x07.", "a reference to the value 7, which isn't there"),
    "a call of a text": (whole(dumped("os.system") + b")R"), "a call of something that isn't a function"),
    "a state of a text": (whole(dumped("a") + dumped({}) + b"b"), "an opcode for a dict where there is none"),
    "a dict of something": (whole(global_("collections", "OrderedDict") + b"(NtR"), "an OrderedDict made of something"),
    "an instance of a class": (whole(global_("collections", "OrderedDict") + b")\x81"), r"the opcode b'\\x81'"),
    "an extension": (b"\x80\x02\x82\x01.", r"the opcode b'\\x82'"),
    "a text where the dict should be": (whole(dumped("a")), r"holds no dict \(str\)"),
    "no tensors": (state(epoch=3), r"holds epoch \(int\)"),
    "a dict that holds itself": (whole(b"}q\x00" + dumped("model") + b"h\x00s"), r"holds model \(dict\)"),
}


@pytest.mark.parametrize("name", WRONG_PICKLES)
def test_a_pickle_that_is_broken(name: str, tmp_path: Path) -> None:
    code, expected = WRONG_PICKLES[name]
    with pytest.raises(SourceError, match=expected):
        read_file(write(tmp_path / "a.bin", code, TWO))


BOMBS = {
    "tuples of tuples": (whole(b"N" + b"q\x00h\x00\x86" * 50_000), "holds no dict"),
    "tuples of tuples as a key": (whole(b"}N" + b"q\x00h\x00\x86" * 200 + b"Ns"), "a key that is a tuple"),
    "tuples of tuples as hooks": (
        whole(tensor(Storage("0", 2), (2,), hooks=b"N" + b"q\x00h\x00\x86" * 200)),
        "hooks or metadata",
    ),
    "tuples of tuples as a shape": (
        whole(b"N" + b"q\x00h\x00\x86" * 200 + b"q\x010" + tensor(Storage("0", 2), b"h\x01", (1,))),
        "the opcode b'0'",
    ),
    "deep lists": (whole(b"]" * 50_000 + b"a" * 49_999), "holds no dict"),
    "dicts": (whole(b"}" * 2_100_000), "has more than 2000000 opcodes"),
    "texts": (whole(b"X\x02\0\0\0ab" * 100_000), r"holds no dict \(str\)"),
    "a thousand memos of a long text": (
        whole(b"}(" + b"".join(dumped(f"{n}") + b"h\x00" for n in range(1000)) + b"u").replace(
            b"}(", dumped("a" * 1_000_000) + b"q\x00}(", 1
        ),
        r"holds 0 \(str\)",
    ),
    "a pickle of 20 MB": (bytes(20_000_000), "data.pkl has 20000000 bytes; expected at most 16000000"),
}
CHILD = """
import json, resource, sys
from pathlib import Path
from tritgguf.converter.checkpoint.pytorch_reader import read_file
from tritgguf.converter.errors import SourceError
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
told = {}
for path in json.load(sys.stdin):
    try:
        told[path] = f"read {list(read_file(Path(path)))}"
    except SourceError as error:
        told[path] = str(error)
json.dump(told, sys.stdout)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory")
def test_bombs_are_refused_in_one_line_and_little_memory(tmp_path: Path) -> None:
    files = [str(write(tmp_path / f"{name}.bin", code, TWO)) for name, (code, _) in BOMBS.items()]
    command = [sys.executable, "-c", CHILD]
    child = subprocess.run(command, input=json.dumps(files), capture_output=True, text=True, timeout=300)
    assert (child.returncode, child.stderr) == (0, "")
    for path, said in json.loads(child.stdout).items():
        assert re.search(BOMBS[Path(path).stem][1], said), said
        assert len(said.splitlines()) == 1


def sound(path: Path) -> Path:
    return write(path, state(w=tensor(Storage("0", 2), (2,))), TWO)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_refused_before_they_are_unpacked(compression: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", bytes(20_000_000), {}, compression=compression)
    with pytest.raises(SourceError, match=r"the member 'archive/data\.pkl' is compressed or encrypted"):
        read_file(path)


def central(data: bytearray, name: bytes) -> int:
    """Return where the directory's entry of a member begins."""
    return data.rindex(name) - 46


def edited(path: Path, name: bytes, offset: int, value: int, n_bytes: int = 4) -> Path:
    """Change a field of a member's entry in the directory of a sound file."""
    data = bytearray(sound(path).read_bytes())
    at = central(data, name) + offset
    data[at : at + n_bytes] = value.to_bytes(n_bytes, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "offset", "value", "expected"),
    [
        (b"archive/data/0", 8, 1, "is compressed or encrypted"),
        (b"archive/data/0", 20, 7, "is compressed or encrypted"),
        (b"archive/data/0", 42, 2**31, "lies outside the file"),
        (b"archive/data/0", 42, 0, "isn't where the zip archive's directory says"),
        (b"archive/data/0", 42, 2**32 - 1, "no 64-bit size"),
        (b"archive/data/0", 28, 2**15, "directory is broken"),
        (b"archive/data/0", 0, 0, "directory is broken"),
    ],
)
def test_a_directory_that_lies(name: bytes, offset: int, value: int, expected: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=expected):
        read_file(edited(tmp_path / "a.bin", name, offset, value, 2 if offset in (8, 28) else 4))


def test_a_member_larger_than_the_file(tmp_path: Path) -> None:
    path = edited(tmp_path / "a.bin", b"archive/data/0", 20, 2**30)
    data = bytearray(path.read_bytes())
    at = central(data, b"archive/data/0") + 24
    data[at : at + 4] = (2**30).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(SourceError, match="claims 1073741824 bytes, more than the file has there"):
        read_file(path)


@pytest.mark.parametrize("whole_field", [True, False])
def test_the_64_bit_sizes_of_large_files(whole_field: bool, tmp_path: Path) -> None:
    """As archives have them for members of 4 GB and more, or behind so much: in an extra field, in this order."""
    data = bytearray(sound(tmp_path / "a.bin").read_bytes())
    at, end = central(data, b"archive/data/0"), data.rindex(b"PK\x05\x06")
    offset = int.from_bytes(data[at + 42 : at + 46], "little")
    name_end = at + 46 + len(b"archive/data/0")
    wide = struct.pack("<2H3Q", 1, 24, 8, 8, offset) if whole_field else struct.pack("<2H2Q", 1, 16, 8, 8)
    data[end + 12 : end + 16] = (int.from_bytes(data[end + 12 : end + 16], "little") + len(wide)).to_bytes(4, "little")
    data[name_end:name_end] = wide
    data[at + 30 : at + 32] = len(wide).to_bytes(2, "little")
    data[at + 20 : at + 28], data[at + 42 : at + 46] = b"\xff" * 8, b"\xff" * 4
    (tmp_path / "a.bin").write_bytes(data)
    if whole_field:
        assert read_file(tmp_path / "a.bin")["w"].n_bytes == 8
    else:
        with pytest.raises(SourceError, match="has no 64-bit size in the zip archive's directory"):
            read_file(tmp_path / "a.bin")


def test_members_that_overlap(tmp_path: Path) -> None:
    data = bytearray(sound(tmp_path / "a.bin").read_bytes())
    order, storage = central(data, b"archive/byteorder"), central(data, b"archive/data/0")
    longer = 6 + 30 + len(b"archive/data/0") + 8  # byteorder's bytes, and the whole next member
    for at in (20, 24):
        data[order + at : order + at + 4] = longer.to_bytes(4, "little")
    assert storage > order
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(SourceError, match="the members 'archive/byteorder' and 'archive/data/0' overlap"):
        read_file(tmp_path / "a.bin")


def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = sound(tmp_path / "a.bin")
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(8))
    with pytest.raises(SourceError, match="two members are called 'archive/data/0'"):
        read_file(path)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole_file = sound(tmp_path / "a.bin").read_bytes()
    for n_bytes in range(0, len(whole_file), 3):
        (tmp_path / "a.bin").write_bytes(whole_file[:n_bytes])
        with pytest.raises(SourceError):
            read_file(tmp_path / "a.bin")
