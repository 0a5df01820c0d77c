"""Files that are refused with one line, and hostile pickles."""

import argparse
import collections
import contextlib
import datetime
import functools
import hashlib
import io
import os
import pickle
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from samexport.errors import CheckpointError, SamExportError
from samexport.models.architectures.sam import Sam, empty_sam
from samexport.models.catalog import find_model
from samexport.models.weights import layouts, reading
from samexport.models.weights.checkpoints import load_weights
from samexport.models.weights.detector_checkpoint import read_detector_checkpoint
from samexport.models.weights.reading import read_weight_file
from tests.models.weights.small import EXPECTED, SPEC, STATE, assert_is_state, refusal, saved

# ---------------------------------------------------------------- files that are refused


def test_a_file_that_is_absent_empty_a_folder_or_something_else_is_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.pt")
    assert "No such file" in refusal(tmp_path / "absent.safetensors")
    assert "cannot be read" in refusal(tmp_path / ("x" * 300 + ".pt"))
    (tmp_path / "folder.pt").mkdir()
    assert "not a file" in refusal(tmp_path / "folder.pt")
    for name in ("empty.pt", "empty.safetensors"):
        (tmp_path / name).touch()
        assert "0 bytes" in refusal(tmp_path / name)
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert ".safetensors" in refusal(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["old.pt", "weights.pt", "weights.safetensors"])
def test_a_file_cut_anywhere_is_refused(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(STATE, path)
    else:
        saved(tmp_path, STATE, name, _use_new_zipfile_serialization=name != "old.pt")
    whole = path.read_bytes()
    for length in {1, 2, 9, len(whole) // 3, len(whole) // 2, len(whole) - 40, len(whole) - 1}:
        path.write_bytes(whole[:length])
        message = refusal(path)
        # the old format may be cut inside the name of a class
        assert "cut off, damaged or no" in message or (name == "old.pt" and "it is refused" in message)


@pytest.mark.parametrize("name", ["page.pt", "page.safetensors"])
@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html>\n<p>", b"version https://git-lfs\n", bytes(1000), b"\x80\x04."], ids=str
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert "cut off, damaged or no" in refusal(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.ones(1)], "holds a list"),
        (torch.ones(1), "holds a Tensor"),
        ({}, "no tensors"),
        ({"model": {}}, "no tensors"),
        ({"epoch": 3, "args": {"lr": [0.1]}}, "no tensors"),
        (STATE | {1: torch.ones(1)}, "1 unexpected (1)"),
        (STATE | {"two\nlines\x1b[31m": torch.ones(1)}, r"two\nlines\x1b[31m"),
        ({"model": STATE["mask_decoder.iou_token.weight"]}, "4 missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_content_that_is_no_state_dict_is_refused(tmp_path, content, reason):
    assert reason in refusal(saved(tmp_path, content))


KEY = "image_encoder.patch_embed.weight"


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.tensor([[float("nan"), 1], [1, 1], [1, 1]]), "NaN or infinite"),
        (torch.tensor([[float("-inf"), 1], [1, 1], [1, 1]]).half(), "NaN or infinite"),
        (torch.full((3, 2), 1e300, dtype=torch.float64), "NaN or infinite"),  # infinite in float32
        (torch.ones(1).expand(3, 2), "more elements than the file holds"),
        (torch.ones(1).expand(10**6, 10**6), "more elements than the file holds"),
        (torch.ones(3, 2).to_sparse(), "torch.sparse_coo"),
        (torch.ones(3, 2, dtype=torch.complex64), "torch.complex64"),
        (torch.ones(3, 2, dtype=torch.int8), "torch.int8"),
        (torch.ones(3, 2).to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (torch.ones(3, 2, device="meta"), "plain floating-point weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tensors_that_are_no_weights_are_refused(tmp_path, tensor, reason):
    message = refusal(saved(tmp_path, STATE | {KEY: tensor}))
    assert reason in message
    assert f"{KEY} " in message


def test_nan_in_safetensors_is_refused(tmp_path):
    save_file(STATE | {KEY: torch.full((3, 2), torch.nan)}, tmp_path / "weights.safetensors")
    assert f"{KEY} has NaN" in refusal(tmp_path / "weights.safetensors")


# ---------------------------------------------------------------- promise: loading never runs code


class Call:
    """Pickled as a call of ``function``, which a trusting reader would make."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Touches(nn.Module):
    """A live module that acts when it is unpickled."""

    def __init__(self, command):
        super().__init__()
        self.command = command

    def __setstate__(self, state):
        eval(state["command"])


def hostile(trap):
    write = f"open({str(trap)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch '{trap}'"),
        "builtins.eval": Call(eval, write),
        "builtins.exec": Call(exec, write),
        "subprocess": Call(subprocess.call, ["touch", str(trap)]),
        "nested": {"model": STATE | {"norm": [{"deep": (Call(eval, write),)}]}},
        "beside the weights": STATE | {"args": Call(os.system, f"touch '{trap}'")},
        "as a key": {Call(eval, write): torch.ones(1)},
        "a pickled module": Touches(write),
        "a module under model": {"model": Touches(write)},
        "in two steps": Call(functools.partial(eval, write)),
    }


@pytest.mark.parametrize("forbid", ["0", "1"])
@pytest.mark.parametrize("form", ["zip", "old torch", "pickle", "pickle protocol 4", "tar"])
@pytest.mark.parametrize("case", list(hostile("")))
def test_code_in_a_checkpoint_never_runs(tmp_path, monkeypatch, case, form, forbid):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", forbid)
    trap, content = tmp_path / "trap", hostile(tmp_path / "trap")[case]
    path = tmp_path / "weights.pt"
    if form in ("zip", "old torch"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    elif form == "tar":
        path.write_bytes(in_legacy_tar(content))
    else:
        path.write_bytes(pickle.dumps(content, 4 if form.endswith("4") else 2))
    message = refusal(path)
    assert not trap.exists()
    if form in ("zip", "old torch"):
        assert "holds more than tensors" in message
        assert "it is refused" in message
    # the trap is live: a reader that trusts the file springs it
    if form != "tar" and forbid == "0":
        pickle.loads(pickle.dumps(content, 2))
        assert trap.exists()


def in_legacy_tar(content):
    """The oldest torch format: a tar of pickles."""
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(content if name == "pickle" else 0, 2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def test_a_torchscript_program_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)
    assert "holds more than tensors (TorchScript)" in refusal(path)


def test_a_hostile_pickle_named_safetensors_is_refused_too(tmp_path):
    saved(tmp_path, hostile(tmp_path / "trap")["os.system"]).rename(tmp_path / "weights.safetensors")
    assert "holds more than tensors" in refusal(tmp_path / "weights.safetensors")
    assert not (tmp_path / "trap").exists()


# ---------------------------------------------------------------- damage


def small_files():
    """A few tensors of the 64-pixel model in every format, by name."""
    model = Sam(find_model("test.vit64")).state_dict()
    few = {key: value for key, value in model.items() if key.startswith("prompt_encoder.")}
    streams = {name: io.BytesIO() for name in ("zip.pt", "old.pt")}
    for name, stream in streams.items():
        torch.save({"model": few, "epoch": 3}, stream, _use_new_zipfile_serialization=name == "zip.pt")
    return {name: stream.getvalue() for name, stream in streams.items()} | {"weights.safetensors": save(few)}


FILES = small_files()
EMPTY = empty_sam(find_model("test.vit64")).state_dict()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_end_in_our_errors(tmp_path, data):
    name = data.draw(st.sampled_from(sorted(FILES)))
    content = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        # the first and last kilobytes are the structure, most else is numbers
        ends = st.one_of(st.integers(0, 2000), st.integers(len(content) - 2000, len(content) - 1))
        start = data.draw(st.one_of(ends, st.integers(0, len(content) - 1))) % len(content)
        match data.draw(st.sampled_from(["flip", "cut", "delete", "insert", "copy"])):
            case "flip":
                content[start] ^= data.draw(st.integers(1, 255))
            case "cut":
                del content[max(start, 1) :]
            case "delete":
                del content[start : start + data.draw(st.integers(1, 64))]
            case "insert":
                content[start:start] = data.draw(st.binary(min_size=1, max_size=16))
            case "copy":
                source = data.draw(st.integers(0, len(content) - 1))
                content[start : start + 64] = content[source : source + 64]
        if len(content) < 2:
            break
    path = tmp_path / name
    path.write_bytes(bytes(content))
    with contextlib.suppress(SamExportError):
        load_weights(find_model("test.vit64"), EMPTY, checkpoints=[path])
    with contextlib.suppress(SamExportError):
        read_detector_checkpoint(path)


def test_every_seventh_byte_of_an_old_file_damaged(tmp_path):
    whole = bytearray(saved(tmp_path, STATE, _use_new_zipfile_serialization=False).read_bytes())
    refused = 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (tmp_path / "weights.pt").write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            load_weights(SPEC, EXPECTED, checkpoints=[tmp_path / "weights.pt"])
            continue
        refused += 1
    assert refused > len(whole) // 7 // 2


# ---------------------------------------------------------------- what a file may be


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", Path("/dev/zero"), Path("/dev/null")):
        assert "not a regular file" in refusal(path)
        with pytest.raises(CheckpointError, match="not a regular file"):
            read_detector_checkpoint(path)


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop.pt").symlink_to(tmp_path / "loop.pt")
    assert "cannot be read" in refusal(tmp_path / "loop.pt")


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"),
        (b"\x1f\x8b\x08\x00", "unpack it first"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1c\x00\x00\x00TFL3", "a TFLite model"),
        (b'{"metadata": {}, "weight_map": {}}', "the files that it names"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, start, what):
    path = tmp_path / "weights.pth"
    path.write_bytes(start + bytes(100))
    message = refusal(path)
    assert what in message
    assert "cut off, damaged or no checkpoint" in message


def zipped(path, source, compression):
    """The torch file ``source`` packed again at ``path``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return path


def test_compressed_entries_are_refused_before_they_are_unpacked(tmp_path):
    source = saved(tmp_path, STATE)
    assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[zipped(tmp_path / "a.pt", source, zipfile.ZIP_STORED)]))
    bomb = saved(tmp_path, STATE | {"extra": torch.zeros(30_000_000)}, "bomb.pt")
    packed = zipped(tmp_path / "b.pt", bomb, zipfile.ZIP_DEFLATED)
    assert packed.stat().st_size < 1 << 20
    assert "compressed entries" in refusal(packed)


def test_a_zip_of_other_files_is_refused(tmp_path):
    saved(tmp_path, STATE)
    with zipfile.ZipFile(tmp_path / "weights.zip", "w") as archive:
        archive.write(tmp_path / "weights.pt", "weights.pt")
    assert "zip of other files" in refusal(tmp_path / "weights.zip")


def test_an_entry_twice_is_refused(tmp_path):
    path = saved(tmp_path, STATE)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"")
    assert "no name twice" in refusal(path)


def test_limits_of_size_hold(tmp_path, monkeypatch):
    path = saved(tmp_path, STATE)
    old = saved(tmp_path, STATE, "old.pt", _use_new_zipfile_serialization=False)
    for limit, message in (("MAX_PICKLE", "100|damaged"), ("MAX_FILE", "has over 100 bytes")):
        with monkeypatch.context() as patch:
            patch.setattr(reading, limit, 100)
            for file in (path, old):
                with pytest.raises(CheckpointError, match=message):
                    read_weight_file(file)


def test_more_values_than_a_training_file_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "MAX_VALUES", 100)
    assert "holds more than 100 values" in refusal(saved(tmp_path, STATE | {"log": dict.fromkeys(range(100), 0)}))


NESTED = b")" + b"\x85" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        b"}" + NESTED + b"Ns",
        # each tuple holds the one before twice: 80 of them take longer to hash than there is time
        b"}" + b")q\x00" + b"".join(b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(80)) + b"Ns",
        b"cbuiltins\nset\n](" + NESTED + b"e\x85R",
        b"ccollections\nOrderedDict\n](" + NESTED + b"e\x85R",
    ],
    ids=["deep key", "doubled key", "set", "dict"],
)
@pytest.mark.parametrize("form", ["zip", "old"])
def test_keys_that_cannot_be_hashed_are_refused(tmp_path, body, form):
    pickle_bytes = b"\x80\x02" + body + b"."
    path = saved(tmp_path, {"x": torch.ones(1)}, _use_new_zipfile_serialization=form == "zip")
    if form == "zip":
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, pickle_bytes if name.endswith("data.pkl") else content)
    else:
        header = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
        path.write_bytes(header + pickle_bytes + pickle.dumps([], 2))
    assert "where str belongs" in refusal(path)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path, other = saved(tmp_path, STATE), saved(tmp_path, {key: v + 1 for key, v in STATE.items()}, "other.pt")
    load = reading._load

    def swap(stream, name):
        content = load(stream, name)
        os.replace(other, path)
        return content

    monkeypatch.setattr(reading, "_load", swap)
    assert "changed while it was read" in refusal(path)


def test_hash_and_content_are_of_one_file_though_the_name_moves_on(tmp_path, monkeypatch):
    path, other = saved(tmp_path, STATE), saved(tmp_path, {key: v + 1 for key, v in STATE.items()}, "other.pt")
    whole, digest = path.read_bytes(), reading.hashlib.file_digest
    seen = []

    def swap(stream, name):
        seen.append(digest(stream, name))
        os.replace(other, path)
        return seen[0]

    monkeypatch.setattr(reading.hashlib, "file_digest", swap)
    monkeypatch.setattr(reading, "_identity", lambda status: ())
    file = read_weight_file(path)
    assert file.sha256 == hashlib.sha256(whole).hexdigest()
    assert all(torch.equal(file.content[key], value) for key, value in STATE.items())


def test_metadata_of_training_scripts_is_read_past_and_nothing_is_looked_up(tmp_path, monkeypatch):
    place = types.ModuleType("easydict")

    class EasyDict(dict):
        def __init__(self, *args):
            raise AssertionError("the class was used")

    EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"
    place.EasyDict = EasyDict
    monkeypatch.setitem(sys.modules, "easydict", place)
    settings_ = dict.__new__(EasyDict)
    dict.update(settings_, lr=0.1)
    beside = {
        "args": argparse.Namespace(lr=0.1, path=Path("weights"), device=torch.device("cuda")),
        "best": np.float64(0.5),
        "seen": np.int64(3),
        "curve": np.arange(3.0),
        "when": datetime.datetime(2026, 1, 1),
        "history": collections.defaultdict(list, {"loss": [0.5]}),
        "config": settings_,
        "classes": frozenset({"a"}),
        "version": torch.__version__,
        "counts": collections.Counter("aab"),
        "types": {torch.float32: 3},
    }
    for name, content in beside.items():
        path = saved(tmp_path, {"model": STATE, name: content}, f"{name}.pt")
        assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[path]))
    assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[saved(tmp_path, {"model": STATE} | beside)]))
