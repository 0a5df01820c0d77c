"""A simulated ObjectAwareModel.pt (same classes, same globals, half precision) and a corpus of hostile files."""

import copy
import hashlib
import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samexport.errors import CheckpointError
from samexport.models.architectures import object_detector
from samexport.models.architectures.object_detector import DETECTOR_TEST, ObjectDetector
from samexport.models.weights import inert_pickle, pickled_models
from samexport.models.weights.detector_checkpoint import load_detector, read_detector_checkpoint

PLACES = {
    object_detector.Conv: "ultralytics.nn.modules.conv.Conv",
    object_detector.Bottleneck: "ultralytics.nn.modules.block.Bottleneck",
    object_detector.C2f: "ultralytics.nn.modules.block.C2f",
    object_detector.SPPF: "ultralytics.nn.modules.block.SPPF",
    object_detector.DistanceBins: "ultralytics.nn.modules.block.DFL",
    object_detector.Head: "ultralytics.nn.modules.head.Segment",
    object_detector.ObjectDetector: "ultralytics.nn.tasks.SegmentationModel",
    nn.Identity: "ultralytics.nn.modules.conv.Concat",
}


class Settings:
    """Pickled like the original's namespace: a call of the class without arguments, then its attributes."""

    def __reduce__(self):
        return type(self), (), {"imgsz": 1024}


def place(monkeypatch, path, base):
    """A class that pickles under ``path``."""
    name, _, attribute = path.rpartition(".")
    parts = name.split(".")
    for package in (".".join(parts[: i + 1]) for i in range(len(parts))):
        if package not in sys.modules:
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    made = type(attribute, (base,), {"__module__": name})
    monkeypatch.setattr(sys.modules[name], attribute, made, raising=False)
    return made


@pytest.fixture
def detector():
    torch.manual_seed(0)
    made = ObjectDetector(DETECTOR_TEST)
    for name, buffer in made.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return made.eval().half()


@pytest.fixture
def official(detector, monkeypatch, tmp_path):
    """Saves a copy of the detector as the original file was saved; returns its path."""
    live = copy.deepcopy(detector)
    size = live.__dict__.pop("size")
    classes = {own: place(monkeypatch, path, nn.Module) for own, path in PLACES.items()}
    detect = place(monkeypatch, "ultralytics.nn.modules.head.Detect", nn.Module)
    settings = place(monkeypatch, "ultralytics.yolo.utils.IterableSimpleNamespace", Settings)
    detect.forward = lambda: None
    detect.forward.__qualname__, detect.forward.__module__ = "Detect.forward", detect.__module__
    for module in list(live.modules()):
        if type(module) in classes:
            module.__class__ = classes[type(module)]
    live.model[22].__dict__.update(nc=size.classes, reg_max=size.reg_max, detect=detect.forward)
    live.model[22].__dict__.update(stride=torch.tensor([8.0, 16.0, 32.0]), shape=torch.Size([1, 3]))
    live.__dict__.update(yaml={"nc": 1}, names={0: "object"}, save=[4, 6, 9], args=settings())
    live.model[9].register_buffer("scratch", torch.zeros(3), persistent=False)
    path = tmp_path / "ObjectAwareModel.pt"
    content = {"epoch": -1, "best_fitness": None, "model": live, "ema": None, "optimizer": None, "date": "2023"}
    torch.save(content, path)
    return path


def rewrite(path, **entries):
    """Replace entries of the torch zip at ``path``: data.pkl as ``pkl``, others by name; None removes."""
    with zipfile.ZipFile(path) as archive:
        old = {name: archive.read(name) for name in archive.namelist()}
    folder = next(name for name in old if name.endswith("/data.pkl")).removesuffix("data.pkl")
    old |= {folder + name.replace("pkl", "data.pkl").replace("__", "/"): data for name, data in entries.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in old.items():
            if data is not None:
                archive.writestr(name, data)


def test_tensors_of_a_live_model_are_found_under_their_official_names(detector, official):
    checkpoint = read_detector_checkpoint(official)
    wanted = detector.state_dict()
    assert list(checkpoint.tensors) == list(wanted)
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(checkpoint.tensors[name], tensor.numpy())
        assert checkpoint.tensors[name].dtype == tensor.numpy().dtype
    assert checkpoint.batch_norm_eps == 0.001


def test_loaded_detector_has_the_sizes_and_outputs_of_the_original(detector, official):
    loaded, sha256 = load_detector(official)
    assert sha256 == hashlib.sha256(official.read_bytes()).hexdigest()
    assert loaded.size == DETECTOR_TEST
    image = torch.rand(1, 3, 64, 96)
    for ours, original in zip(loaded(image), detector.float()(image), strict=True):
        torch.testing.assert_close(ours, original, rtol=0, atol=0)


@pytest.mark.parametrize("eps", [1e-5, 0.01])
def test_batch_norm_eps_comes_from_the_file(detector, eps, official, monkeypatch):
    data = zipfile.ZipFile(official).read("ObjectAwareModel/data.pkl")
    pack = lambda value: pickle.BINFLOAT + np.array(value, ">f8").tobytes()  # noqa: E731
    rewrite(official, pkl=data.replace(pack(1e-3), pack(eps)))
    assert load_detector(official)[0].size.batch_norm_eps == eps


def plain_files(detector, folder):
    """The detector's state dict as people save it, by file."""
    state = detector.state_dict()
    bare = {key.removeprefix("model."): value for key, value in state.items()}
    layouts = {
        "plain.pt": state,
        "bare.pth": bare,  # of the sequence of layers alone
        "bfloat16.pt": {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()},
        "trainer.ckpt": {"epoch": 3, "state_dict": {f"model.{key}": value for key, value in state.items()}},
        "compiled.bin": {f"_orig_mod.{key}": value for key, value in state.items()},
        "prototypes.pt": state | {"model.22.proto.cv1.conv.weight": torch.ones(4, 4, 3, 3)},
    }
    for name, content in layouts.items():
        torch.save(content, folder / name)
    save_file(state, folder / "plain.safetensors")
    save_file(state, folder / "with_eps.safetensors", {"batch_norm_eps": "0.001"})
    return [*layouts, "plain.safetensors", "with_eps.safetensors"]


def test_a_plain_state_dict_is_read_like_any_state_dict(detector, tmp_path):
    wanted = {key: value.clone() for key, value in copy.deepcopy(detector).float().state_dict().items()}
    for name in plain_files(detector, tmp_path):
        loaded, sha256 = load_detector(tmp_path / name)
        assert sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert loaded.size == DETECTOR_TEST, name
        for key, value in loaded.state_dict().items():
            expected = (
                wanted[key].bfloat16().float() if name == "bfloat16.pt" and value.is_floating_point() else wanted[key]
            )
            assert torch.equal(value, expected), (name, key)


def test_a_tensor_that_the_detector_has_no_place_for_is_refused(detector, tmp_path):
    path = tmp_path / "more.pt"
    torch.save(detector.state_dict() | {"model.23.conv.weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"more\.pt: .*model\.23\.conv\.weight"):
        load_detector(path)


def test_the_eps_of_a_safetensors_file_is_taken_or_refused(detector, tmp_path):
    path = tmp_path / "detector.safetensors"
    save_file(detector.state_dict(), path, {"batch_norm_eps": "0.01"})
    assert load_detector(path)[0].size.batch_norm_eps == 0.01
    for wrong in ("nan", "-1", "2", "much"):
        save_file(detector.state_dict(), path, {"batch_norm_eps": wrong})
        with pytest.raises(CheckpointError, match=r"detector\.safetensors"):
            load_detector(path)


def test_strided_and_offset_tensors_are_read_like_torch_reads_them(tmp_path):
    base = torch.arange(60.0)
    views = {"a": base[3:27].view(4, 6).T, "b": base[5], "c": base[::7], "d": base[:0].view(0, 3)}
    torch.save(OrderedDict(views), tmp_path / "views.pt")
    with zipfile.ZipFile(tmp_path / "views.pt") as opened:
        archive = pickled_models.Archive(opened)
        found = inert_pickle.interpret(archive.read("data.pkl", 1 << 20))
        for name, view in views.items():
            np.testing.assert_array_equal(archive.tensor(found[name]), view.numpy())


class Runs:
    """Unpickling this calls ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


FIRED = []


def attack(*_):
    FIRED.append(1)


def opcodes(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def name(path):
    module, _, attribute = path.rpartition(".")
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


class Marker(str):
    """A global in a hand-made pickle."""


class HandPickler(pickle._Pickler):
    """Writes Markers as globals and ("storage", ...) tuples as persistent ids."""

    def persistent_id(self, value):
        return value if isinstance(value, tuple) and value[:1] == ("storage",) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Marker):
            self.write(name(value))
        elif isinstance(value, Made):
            self.save(Marker(value.path))
            self.save(value.arguments)
            self.write(pickle.REDUCE)
            if value.state is not None:
                self.save(value.state)
                self.write(pickle.BUILD)
        else:
            super().save(value, save_persistent_id)


class Made:
    """A call in a hand-made pickle, and the state set afterwards."""

    def __init__(self, path, arguments=(), state=None):
        self.path, self.arguments, self.state = path, arguments, state


def hand_pickle(value):
    stream = io.BytesIO()
    HandPickler(stream, 2).dump(value)
    return stream.getvalue()


def module(parameters=None, modules=None, path="torch.nn.modules.batchnorm.BatchNorm2d", **state):
    state = {"_parameters": parameters or {}, "_modules": modules or {}, "eps": 0.001, **state}
    return Made(path, (), state)


def view(offset, shape, strides, length, key="0", storage="torch.HalfStorage"):
    arguments = (("storage", Marker(storage), key, "cpu", length), offset, shape, strides, False, {})
    return Made("torch._utils._rebuild_tensor_v2", arguments)


def one_tensor(*numbers, **options):
    return {"model": module({"weight": view(*numbers, **options)})}


def nested(levels):
    inner = module()
    for _ in range(levels):
        inner = module(modules={"m": inner})
    return {"model": inner}


HOSTILE = {
    "os.system": (opcodes(name("os.system"), b"X\x04\x00\x00\x00true\x85R"), "asks for os.system"),
    "pickled os.system": (pickle.dumps(Runs(os.system, "true"), 2), "asks for (posix|nt).system"),
    "eval": (pickle.dumps(Runs(eval, "1"), 2), "asks for builtins.eval"),
    "exec": (pickle.dumps(Runs(exec, "1"), 2), "asks for builtins.exec"),
    "own function": (pickle.dumps(Runs(attack, 1), 2), "asks for .*attack"),
    "protocol 4": (pickle.dumps(Runs(attack, 1), 4), "opcode"),
    "protocol 0": (pickle.dumps(Runs(attack, 1), 0), "opcode PUT"),
    "real getattr": (hand_pickle(Made("builtins.getattr", ((), "__class__"))), "calls builtins.getattr"),
    "call what getattr found": (
        opcodes(name("builtins.getattr"), name("ultralytics.a.B"), b"X\x01\x00\x00\x00c\x86R", b")R"),
        "makes an object",
    ),
    "subprocess": (opcodes(name("subprocess.Popen"), b")R"), "asks for subprocess.Popen"),
    "torch.load": (opcodes(name("torch.load"), b")R"), "asks for torch.load"),
    "functions of torch.nn": (opcodes(name("torch.nn.functional.torch"), b")R"), "asks for torch.nn.functional"),
    "import by name": (opcodes(name("importlib.import_module"), b")R"), "asks for importlib"),
    "dotted way out": (opcodes(name("torch.serialization.os.system"), b")R"), "asks for torch.serialization"),
    "unknown class": (opcodes(name("collections.ChainMap"), b")R"), "asks for collections.ChainMap"),
    "counter": (opcodes(name("collections.Counter"), b")R"), "holds no tensors"),
    "object of a function": (opcodes(name("torch.Size"), b")\x81"), "holds a Size"),
    "class with arguments": (hand_pickle(Made("ultralytics.a.B", (1,))), "calls ultralytics.a.B"),
    "extension registry": (opcodes(b"\x82\x01"), "opcode EXT1"),
    "old instance opcode": (opcodes(b"(ios\nsystem\n"), "opcode INST"),
    "state on a name": (opcodes(name("ultralytics.a.B"), b"}b"), "where Instance belongs"),
    "state on a list": (opcodes(b"]}b"), "a list where Instance belongs"),
    "huge memo index": (opcodes(b"Nr\xff\xff\xff\x7f"), "holds a NoneType"),
    "tuple as key": (opcodes(b"}", b")", b"\x85" * 100_000, b"Ns"), "a tuple where str belongs"),
    "empty": (b"", "damaged or no checkpoint"),
    "no end": (b"\x80\x02]", "damaged or no checkpoint"),
    "empty stack": (opcodes(b"s"), "more from its stack"),
    "no mark": (opcodes(b"t"), "damaged or no checkpoint"),
    "absent memo": (opcodes(b"h\x07"), "damaged or no checkpoint"),
    "not a pickle": (b"<html>", "damaged or no checkpoint"),
    "cut short": (opcodes(b"X\xff\xff\xff\x7fabc"), "damaged or no checkpoint"),
    "negative length": (opcodes(b"\x8b\xff\xff\xff\xff"), "damaged or no checkpoint"),
    "too many opcodes": (opcodes(b"}", b"q\x00" * inert_pickle.MAX_OPCODES), "more than 400000 opcodes"),
    "a list": (opcodes(b"]"), "holds a list"),
    "no model": (opcodes(b"}"), "holds no tensors"),
    "model is a number": (hand_pickle({"model": 7}), "holds no tensors"),
    "storage outside its folder": (hand_pickle(one_tensor(0, (4,), (1,), 4, key="../data.pkl")), "no storage"),
    "storage of another type": (
        hand_pickle(one_tensor(0, (4,), (1,), 4, storage="torch.nn.modules.x.Y")),
        "no storage",
    ),
    "absent storage": (hand_pickle(one_tensor(0, (4,), (1,), 4, key="99")), "no item named"),
    "storage of another length": (hand_pickle(one_tensor(0, (4,), (1,), 5)), "another length"),
    "beyond the end": (hand_pickle(one_tensor(1, (4,), (1,), 4)), "outside its data"),
    "stride beyond the end": (hand_pickle(one_tensor(0, (2, 2), (3, 1), 4)), "outside its data"),
    "negative offset": (hand_pickle(one_tensor(-1, (4,), (1,), 4)), "outside its data"),
    "negative stride": (hand_pickle(one_tensor(3, (4,), (-1,), 4)), "outside its data"),
    "strides that do not fit": (hand_pickle(one_tensor(0, (4,), (1, 1), 4)), "outside its data"),
    "blown up by stride 0": (hand_pickle(one_tensor(0, (1 << 40,), (0,), 4)), "outside its data"),
    "modules without end": (hand_pickle(nested(40)), "nested too deeply"),
    "modules by the thousand": (
        hand_pickle({"model": module(modules={str(i): module() for i in range(5000)})}),
        "more than 4000 modules",
    ),
    "two kinds of eps": (hand_pickle({"model": module(modules={"a": module(eps=0.1)})}), "no common eps"),
    "eps that is no number": (hand_pickle({"model": module(eps="0.001")}), "a str where float belongs"),
    "no batch norm": (hand_pickle({"model": module(path="torch.nn.modules.conv.Conv2d")}), "no common eps"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_pickle_is_refused_and_nothing_runs(case, tmp_path):
    data, reason = HOSTILE[case]
    path = tmp_path / "bad.pt"
    torch.save({"x": torch.zeros(4, dtype=torch.float16)}, path)
    rewrite(path, pkl=data)
    with pytest.raises(CheckpointError, match=rf"bad\.pt.*{reason}"):
        read_detector_checkpoint(path)
    assert FIRED == []


def test_hand_made_pickles_are_read_when_they_are_sound(tmp_path):
    path = tmp_path / "good.pt"
    torch.save({"x": torch.arange(4).half()}, path)
    rewrite(path, pkl=hand_pickle(one_tensor(1, (3,), (1,), 4)))
    np.testing.assert_array_equal(read_detector_checkpoint(path).tensors["weight"], [1, 2, 3])


def test_damaged_or_foreign_files_are_one_line_errors(official, tmp_path):
    def broken(data, suffix=".pt"):
        path = tmp_path / f"broken{suffix}"
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            read_detector_checkpoint(path)
        assert "\n" not in str(caught.value)

    data = official.read_bytes()
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        broken(data[:length])
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0xFF
    broken(bytes(flipped))
    broken(b"not safetensors", ".safetensors")
    with pytest.raises(CheckpointError, match="give the path"):
        read_detector_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError):
        read_detector_checkpoint(tmp_path)


def test_compressed_big_endian_and_repeated_entries_are_refused(official, tmp_path):
    with zipfile.ZipFile(official) as archive:
        entries = [(n, archive.read(n)) for n in archive.namelist()]
    path = tmp_path / "other.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in entries:
            archive.writestr(*entry)
    with pytest.raises(CheckpointError, match="compressed"):
        read_detector_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        for entry in entries:
            archive.writestr(*entry)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(*entries[0])
    with pytest.raises(CheckpointError, match="no name twice"):
        read_detector_checkpoint(path)
    rewrite(official, byteorder=b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_detector_checkpoint(official)


def test_size_limits_hold(official, monkeypatch):
    for limit in ("MAX_FILE", "MAX_PICKLE", "MAX_TENSORS"):
        with monkeypatch.context() as patch:
            patch.setattr(pickled_models, limit, 100)
            with pytest.raises(CheckpointError, match="100"):
                read_detector_checkpoint(official)


def test_nan_weights_are_refused(tmp_path):
    path = tmp_path / "nan.pt"
    torch.save({"x": torch.tensor([1, float("nan"), 1, 1]).half()}, path)
    rewrite(path, pkl=hand_pickle(one_tensor(0, (4,), (1,), 4)))
    with pytest.raises(CheckpointError, match="NaN"):
        read_detector_checkpoint(path)


def test_other_networks_are_refused_by_name_of_the_missing_tensor(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"x": torch.zeros(4).half()}, path)
    rewrite(path, pkl=hand_pickle(one_tensor(0, (4,), (1,), 4)))
    with pytest.raises(CheckpointError, match=r"model\.0\.conv\.weight"):
        load_detector(path)
