"""Files that name code: nothing of it may run, and the tensors with it must come out as they went in."""

import argparse
import builtins
import contextlib
import io
import os
import pickle
import struct
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from lit_robust.core.errors import UserError
from lit_robust.models.foreign.checkpoint import open_checkpoint
from lit_robust.models.foreign.reader import LEGACY_MAGIC, LEGACY_PROTOCOL, Inert, RestrictedUnpickler, read_restricted

CONTAINERS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


@pytest.fixture
def gone(monkeypatch):
    """A module whose classes can be pickled; the test deletes it before reading."""
    module = types.ModuleType("gone")
    exec("class Options(dict):\n    pass\nclass Schedule:\n    pass\ndef rate(epoch):\n    return epoch", vars(module))
    for name in ("Options", "Schedule", "rate"):
        getattr(module, name).__module__ = "gone"
    monkeypatch.setitem(sys.modules, "gone", module)
    return module


def tensors():
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "plain": base,
        "transposed": base.t(),
        "view of the same storage": base[1:, 2:],
        "half": torch.randn(3, 4).half(),
        "bfloat16": torch.randn(5).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "empty": torch.empty(0, 3),
        "complex": torch.randn(2, dtype=torch.complex64),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }


@CONTAINERS
def test_tensors_come_out_and_objects_do_not(tmp_path, gone, zipped):
    schedule = gone.Schedule()
    schedule.rate = gone.rate
    extra = {
        "schedule": schedule,
        "options": gone.Options(lr=0.1),
        "args": argparse.Namespace(batch=256),
        "best": np.float64(0.5),
        "array": np.zeros(3),
        "device": torch.device("cpu"),
        "set": {1, 2},
    }
    expected = OrderedDict(tensors())
    torch.save({"model": expected, **extra}, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    del sys.modules["gone"]
    content = read_restricted(tmp_path / "file.pt")
    found = content.value["model"]
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert isinstance(content.value["schedule"], Inert)
    assert {"gone.Schedule", "gone.Options", "gone.rate", "argparse.Namespace"} <= set(content.foreign)


def dill_function():
    """The opcodes by which dill writes a function: a code object, then a call, then a state, then one more call."""
    call = b"cdill._dill\n_create_function\n(cdill._dill\n_create_code\n(K\x01K\x00Vx\ntRc__builtin__\n__main__\ntR"
    state = b"}(V__module__\nV__main__\nub"
    return call + state + b"(K\x01tR"


def test_functions_as_dill_writes_them():
    pickled = b"\x80\x02}(Vmodel\nK\x05Vschedule\n" + dill_function() + b"u."
    unpickler = RestrictedUnpickler(io.BytesIO(pickled), None)
    value = unpickler.load()
    assert value["model"] == 5
    assert isinstance(value["schedule"], Inert)
    assert unpickler.foreign == ["dill._dill._create_function", "dill._dill._create_code", "__builtin__.__main__"]


class Bomb:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@CONTAINERS
@pytest.mark.parametrize("function", ["system", "exec", "getattr", "setattr", "import", "torch.load", "pickle.loads"])
def test_nothing_runs(tmp_path, zipped, function):
    trace = tmp_path / "ran"
    bombs = {
        "system": Bomb(os.system, f"touch {trace}"),
        "exec": Bomb(builtins.exec, f"open({str(trace)!r}, 'w')"),
        "getattr": Bomb(builtins.getattr, os.system, "__name__"),
        "setattr": Bomb(builtins.setattr, torch.nn.ReLU, "forward", None),
        "import": Bomb(builtins.__import__, "antigravity"),
        "torch.load": Bomb(torch.load, str(trace)),
        "pickle.loads": Bomb(pickle.loads, pickle.dumps(Bomb(os.system, f"touch {trace}"))),
    }
    state = {"w": torch.ones(2)}
    torch.save({"model": state, "x": bombs[function]}, tmp_path / "b.pt", _use_new_zipfile_serialization=zipped)
    forward = torch.nn.ReLU.forward
    content = read_restricted(tmp_path / "b.pt")
    assert torch.equal(content.value["model"]["w"], torch.ones(2))
    assert isinstance(content.value["x"], Inert)
    assert not trace.exists()
    assert "antigravity" not in sys.modules
    assert torch.nn.ReLU.forward is forward


@pytest.mark.parametrize(
    "attack",
    [
        # A state for each thing that the table allows: it may neither change nor be kept by what other files use.
        b"ctorch._utils\n_rebuild_tensor_v2\n(N}(V__defaults__\nK\x01utb",
        b"ccollections\nOrderedDict\n(N}(Vitems\nK\x01utb",
        b"ccollections\nOrderedDict\n)R}(Vitems\nK\x01ub",
        b"ctorch\nFloatStorage\n(N}(Vdtype\nK\x01utb",
        b"cos\nsystem\n}(V__call__\nK\x01ub",
        b"cos\npath.join\n(K\x01}(VX\nK\x01utb",
    ],
)
def test_what_stands_for_names_cannot_be_changed(tmp_path, attack):
    stream = io.BytesIO(b"\x80\x04" + attack + b".")
    with contextlib.suppress(TypeError, AttributeError, ValueError):  # Refused, which is as good.
        RestrictedUnpickler(stream, None).load()
    torch.save({"a": OrderedDict(tensors())}, tmp_path / "after.pt")
    after = read_restricted(tmp_path / "after.pt").value
    assert list(after) == ["a"]
    assert torch.equal(after["a"]["plain"], tensors()["plain"])


def test_tensors_cannot_leave_their_storage(tmp_path):
    torch.save({"w": torch.ones(4)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "w.pt").read_bytes()
    # The shape (4,) of the tensor becomes (200,), while its storage keeps 4 numbers.
    assert data.count(b"K\x04\x85") == 1
    (tmp_path / "w.pt").write_bytes(data.replace(b"K\x04\x85", b"K\xc8\x85"))
    with pytest.raises(UserError, match="cannot be read as weights"):
        read_restricted(tmp_path / "w.pt")


def test_tensors_cannot_leave_their_record(tmp_path):
    """A forger announces more numbers than a record of the archive holds, as its tensor does; its checksum is right."""
    torch.save({"w": torch.ones(40)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as source, zipfile.ZipFile(tmp_path / "forged.pt", "w") as forged:
        for name in source.namelist():
            data = source.read(name)
            assert not name.endswith("data.pkl") or data.count(b"K\x28") == 2
            forged.writestr(name, data.replace(b"K\x28", b"M\x00\x01") if name.endswith("data.pkl") else data)
    with pytest.raises(UserError, match=r"forged\.pt cannot be read as weights"):
        open_checkpoint(tmp_path / "forged.pt")


def test_a_storage_larger_than_the_file_is_not_allocated(tmp_path):
    torch.save({"w": torch.ones(4)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    data = (tmp_path / "w.pt").read_bytes()
    huge = b"\x8a\x05" + struct.pack("<Q", 2**36)[:5]
    marker = b"X\x03\x00\x00\x00cpuq"
    place = data.index(marker) + len(marker) + 1
    assert data[place : place + 2] == b"K\x04"
    (tmp_path / "w.pt").write_bytes(data[:place] + huge + data[place + 2 :])
    with pytest.raises(UserError, match="more numbers are announced"):
        read_restricted(tmp_path / "w.pt")


def test_a_mark_beyond_the_file_is_refused():
    # Python's own unpickler would make a table of 2^25 places of 8 bytes for this one.
    tracemalloc.start()
    with pytest.raises(pickle.UnpicklingError, match="a mark is beyond"):
        RestrictedUnpickler(io.BytesIO(b"\x80\x02Nr" + struct.pack("<I", 2**24) + b"."), None).load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path):
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "w.pt")
    assert open_checkpoint(tmp_path / "w.pt").states[""]["w"].shape == (100_000,)
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as stored,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in stored.namelist():
            small.writestr(name, stored.read(name))
    with pytest.raises(UserError, match=r"small\.pt would unpack to 4\d{5} bytes"):
        open_checkpoint(tmp_path / "small.pt")


@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
def test_a_damaged_archive_is_refused(tmp_path, member):
    file = tmp_path / "w.pt"
    torch.save({"w": torch.ones(4000)}, file)
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(f"w/{member}")
        inside = file.read_bytes().index(archive.read(info))
    with file.open("r+b") as stream:
        stream.seek(inside + info.file_size // 2)
        stream.write(b"\x7f")
    with pytest.raises(
        UserError, match=rf"w\.pt is damaged, as w/{member} in it is not what was written: copy it again"
    ):
        open_checkpoint(file)


def test_an_archive_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(4)}, tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(open_checkpoint(tmp_path / "w.pt").states[""]["w"], torch.ones(4))


@CONTAINERS
def test_a_number_repeated_to_a_huge_tensor_is_refused(tmp_path, zipped):
    torch.save({"w": torch.ones(1).expand(2**40)}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="announces far more numbers than it holds"):
        open_checkpoint(tmp_path / "w.pt")


def test_views_of_a_storage_as_very_old_files_know_them(tmp_path):
    """Until torch 0.4 a storage could be a part of another: (key, offset, length) after its own size."""

    class Part(tuple):
        pass

    class Holder:
        def __reduce__(self):
            part = Part(("storage", torch.FloatStorage, "0", "cpu", 10, ("1", 4, 5)))
            return torch._utils._rebuild_tensor_v2, (part, 1, (3,), (1,), False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return tuple(value) if isinstance(value, Part) else None

    with (tmp_path / "w.pt").open("wb") as file:
        for head in (LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True, "type_sizes": {}}):
            pickle.dump(head, file, protocol=2)
        Pickler(file, protocol=2).dump({"w": Holder()})
        pickle.dump(["0"], file, protocol=2)
        file.write(struct.pack("<q", 10) + np.arange(10, dtype="<f4").tobytes())
    found = read_restricted(tmp_path / "w.pt").value["w"]
    # torch's own reader knows them to this day.
    assert torch.equal(found, torch.load(tmp_path / "w.pt", weights_only=True)["w"])
    assert found.tolist() == [5, 6, 7]


def test_names_of_members_lead_nowhere(tmp_path):
    torch.save({"w": torch.ones(4)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    inside = tmp_path / "inside"
    inside.mkdir()
    with zipfile.ZipFile(inside / "w.pt", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr("../escaped", b"x")
        archive.writestr("/tmp/lit_robust_escaped", b"x")
    assert torch.equal(read_restricted(inside / "w.pt").value["w"], torch.ones(4))
    assert [path.name for path in tmp_path.iterdir() if path.name == "escaped"] == []


def test_numbers_of_the_other_byte_order(tmp_path):
    values = {"w": torch.tensor([1.5, -2.0]), "c": torch.tensor([1 + 2j])}
    torch.save(values, tmp_path / "little.pt")
    with (
        zipfile.ZipFile(tmp_path / "little.pt") as little,
        zipfile.ZipFile(tmp_path / "big.pt", "w") as big,
    ):
        for name in little.namelist():
            data = little.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            elif "/data/" in name:
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            big.writestr(name, data)
    found = read_restricted(tmp_path / "big.pt").value
    assert torch.equal(found["w"], values["w"])
    assert torch.equal(found["c"], values["c"])


def test_dictionaries_as_python_2_wrote_them():
    pickled = b"\x80\x02ccollections\nOrderedDict\n]]U\x01aaK\x01aa\x85R."
    assert RestrictedUnpickler(io.BytesIO(pickled), None).load() == {"a": 1}


@CONTAINERS
def test_a_file_cut_short(tmp_path, zipped):
    torch.save({"w": torch.ones(4000)}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    data = (tmp_path / "w.pt").read_bytes()
    for length in (10, 200, len(data) // 2, len(data) - 1):
        (tmp_path / "w.pt").write_bytes(data[:length])
        with pytest.raises(UserError, match="w.pt") as caught:
            read_restricted(tmp_path / "w.pt")
        assert "\n" not in str(caught.value)


def test_programs_and_other_archives(tmp_path):
    torch.save({}, tmp_path / "program.pt")
    with zipfile.ZipFile(tmp_path / "program.pt", "a") as archive:
        archive.writestr("program/constants.pkl", b"")
    with pytest.raises(UserError, match="TorchScript program"):
        read_restricted(tmp_path / "program.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("weights.pth", b"")
    with pytest.raises(UserError, match=r"not one of torch\.save: unpack it"):
        read_restricted(tmp_path / "other.pt")
