"""Layouts that load, files that are refused with one line, hostile pickles, and downloads from a local server."""

import contextlib
import functools
import hashlib
import http.server
import io
import os
import pickle
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace

import pooch
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samexport.errors import CheckpointError, ConfigError
from samexport.models.architectures.sam import Sam
from samexport.models.catalog import find_model
from samexport.models.spec import CheckpointSource
from samexport.models.weights.checkpoints import cache_folder, load_weights, official_checkpoint, read_checkpoint
from samexport.models.weights.random_weights import random_state_dict

SPEC = find_model("mobilesam.tinyvit")
SHAPES = {
    "image_encoder.patch_embed.weight": ((3, 2), "float32"),
    "image_encoder.norm.running_mean": ((3,), "float32"),
    "image_encoder.norm.num_batches_tracked": ((), "int64"),
    "prompt_encoder.no_mask_embed.weight": ((1, 4), "float32"),
    "mask_decoder.iou_token.weight": ((1, 4), "float32"),
}
EXPECTED = {key: torch.empty(shape, dtype=getattr(torch, dtype)) for key, (shape, dtype) in SHAPES.items()}
STATE = {key: torch.from_numpy(array) for key, array in random_state_dict(SHAPES, 3).items()}


def part(prefix):
    return {key.removeprefix(prefix): value for key, value in STATE.items() if key.startswith(prefix)}


def saved(folder, content, name="weights.pt", **options):
    path = folder / name
    torch.save(content, path, **options)
    return path


def refusal(paths, expected=EXPECTED):
    """The message with which a file is refused; it must be one printable line."""
    paths = paths if isinstance(paths, list | tuple) else (paths,)
    with pytest.raises(CheckpointError) as caught:
        load_weights(SPEC, expected, checkpoints=paths)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 900
    assert "weights_only" not in message
    return message


def assert_is_state(weights, expected=STATE):
    assert weights.state.keys() == expected.keys()
    for key, tensor in expected.items():
        assert weights.state[key].dtype == tensor.dtype
        assert torch.equal(weights.state[key], tensor)


# ---------------------------------------------------------------- layouts


LAYOUTS = {
    "plain": STATE,
    "parameters": {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in STATE.items()},
    "under model": {"model": STATE, "epoch": 3, "optimizer": {"lr": 0.1}},
    "under state_dict": {"state_dict": STATE},
    "distributed": {f"module.{key}": value for key, value in STATE.items()},
    "distributed under model": {"model": {f"module.{key}": value for key, value in STATE.items()}},
}


@pytest.mark.parametrize("name", ["weights.pt", "weights.PTH"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_state(tmp_path, layout, name):
    path = saved(tmp_path, LAYOUTS[layout], name)
    weights = load_weights(SPEC, EXPECTED, checkpoints=[path])
    assert_is_state(weights)
    assert (weights.kind, weights.source, weights.seed) == ("checkpoint", name, None)
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_old_torch_format_and_safetensors_give_the_same_state(tmp_path):
    old = saved(tmp_path, STATE, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(old)
    assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[old]))
    save_file(STATE, tmp_path / "weights.safetensors")
    assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[tmp_path / "weights.safetensors"]))


def test_a_real_model_takes_its_own_checkpoint_strictly(tmp_path):
    spec = find_model("test.tinyvit64")
    model, other = Sam(spec), Sam(spec)
    path = saved(tmp_path, model.state_dict())
    other.load_state_dict(load_weights(spec, other.state_dict(), checkpoints=[path]).state, strict=True)
    for key, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_counters_stay_integers(tmp_path, dtype):
    stored = {key: value.to(dtype) if value.is_floating_point() else value.int() for key, value in STATE.items()}
    expected = {key: value.to(STATE[key].dtype) for key, value in stored.items()}
    weights = load_weights(SPEC, EXPECTED, checkpoints=[saved(tmp_path, stored)])
    assert_is_state(weights, expected)


def test_a_bare_encoder_and_the_prompt_guided_decoder_make_a_model_in_either_order(tmp_path):
    encoder = saved(tmp_path, {"model": part("image_encoder."), "epoch": 9}, "encoder.pt")
    halves = {"PromtEncoder": part("prompt_encoder."), "MaskDecoder": part("mask_decoder.")}
    decoder = saved(tmp_path, halves, "decoder.pt")
    for paths in ([encoder, decoder], [decoder, encoder]):
        weights = load_weights(SPEC, EXPECTED, checkpoints=paths)
        assert_is_state(weights)
        assert weights.source == " + ".join(p.name for p in paths)
        assert weights.sha256 == " + ".join(hashlib.sha256(p.read_bytes()).hexdigest() for p in paths)


def test_half_a_model_says_which_keys_are_missing_and_asks_for_a_second_file(tmp_path):
    message = refusal(saved(tmp_path, part("image_encoder."), "encoder.pt"))
    assert "2 missing (prompt_encoder.no_mask_embed.weight, mask_decoder.iou_token.weight)" in message
    assert "no mask_decoder and no prompt_encoder: a second file is needed, repeat --checkpoint" in message
    assert "unexpected" not in message


def test_a_key_in_two_files_must_be_equal_in_both(tmp_path):
    whole = saved(tmp_path, STATE, "whole.pt")
    same = saved(tmp_path, part("image_encoder."), "same.pt")
    assert_is_state(load_weights(SPEC, EXPECTED, checkpoints=[whole, same]))
    other = {"patch_embed.weight": STATE["image_encoder.patch_embed.weight"] + 1}
    message = refusal([whole, saved(tmp_path, other, "other.pt")])
    assert "other.pt: image_encoder.patch_embed.weight has other values than in an earlier file" in message


def test_a_mismatch_names_and_counts_missing_unexpected_and_misshapen_keys(tmp_path):
    state = dict(STATE) | {f"extra.{n}": torch.ones(1) for n in range(5)}
    state["image_encoder.patch_embed.weight"] = torch.ones(2, 3)
    state["image_encoder.norm.running_mean"] = torch.ones(3, dtype=torch.int64)
    del state["mask_decoder.iou_token.weight"]
    message = refusal(saved(tmp_path, state))
    assert "weights.pt does not fit mobilesam.tinyvit" in message
    assert "1 missing (mask_decoder.iou_token.weight)" in message
    assert "5 unexpected (extra.0, extra.1, extra.2, ...)" in message
    assert "image_encoder.patch_embed.weight float (2, 3), not float (3, 2)" in message
    assert "image_encoder.norm.running_mean integer (3,), not float (3,)" in message


def test_a_file_of_another_network_is_not_asked_for_a_second_one(tmp_path):
    message = refusal(saved(tmp_path, {"conv1.weight": torch.ones(2)}))
    assert "5 missing" in message
    assert "1 unexpected (conv1.weight)" in message
    assert "second" not in message


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
        (STATE | {"epoch": 3}, "epoch is a int, not a tensor"),
        ({"net": STATE}, "net is a dict, not a tensor"),
        (STATE | {1: torch.ones(1)}, "a key of type int is a Tensor, not a tensor with a name"),
        (STATE | {"two\nlines\x1b[31m": 3}, r"two\nlines\x1b[31m is a int"),
        ({"model": STATE, "state_dict": STATE}, "several state dicts (model, state_dict)"),
        ({"model": STATE, "MaskDecoder": part("mask_decoder.")}, "several state dicts (model, MaskDecoder)"),
        ({"model": STATE["mask_decoder.iou_token.weight"]}, "5 missing"),
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


def test_pickle_named_safetensors_is_not_unpickled(tmp_path):
    saved(tmp_path, hostile(tmp_path / "trap")["os.system"]).rename(tmp_path / "weights.safetensors")
    assert "no safetensors file" in refusal(tmp_path / "weights.safetensors")
    assert not (tmp_path / "trap").exists()


def test_a_damaged_byte_never_ends_in_a_traceback(tmp_path):
    whole = bytearray(saved(tmp_path, STATE, _use_new_zipfile_serialization=False).read_bytes())
    refused = 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (tmp_path / "weights.pt").write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            read_checkpoint(tmp_path / "weights.pt")
            continue
        refused += 1
    assert refused > len(whole) // 7 // 2


# ---------------------------------------------------------------- random weights


def test_random_weights_fit_and_say_so():
    weights = load_weights(SPEC, EXPECTED, random_seed=3)
    assert_is_state(weights)
    assert (weights.kind, weights.source, weights.sha256, weights.seed) == ("random", "seed 3", None, 3)


def test_random_weights_and_a_checkpoint_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="exclude each other"):
        load_weights(SPEC, EXPECTED, checkpoints=[saved(tmp_path, STATE)], random_seed=0)


# ---------------------------------------------------------------- the official file


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/cut.pt":  # announces more than it sends
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.requests, running.folder = [], tmp_path / "served"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SAMEXPORT_CACHE", str(tmp_path / "new" / "cache"))
    return tmp_path / "new" / "cache"


def official(server, content, name="weights.pt", sha256=None):
    """A model whose official file is ``content`` on the server."""
    served = saved(server.folder, content, name) if content is not None else None
    digest = sha256 or (hashlib.sha256(served.read_bytes()).hexdigest() if served else "0" * 64)
    return replace(SPEC, source=CheckpointSource(name, f"http://127.0.0.1:{server.server_port}/{name}", digest))


def download_refusal(spec, cache):
    with pytest.raises(CheckpointError) as caught:
        load_weights(spec, EXPECTED)
    message = str(caught.value)
    assert message.isprintable()
    assert "--checkpoint FILE" in message
    assert "--weights random" in message
    assert not cache.exists() or list(cache.iterdir()) == []
    return message


def test_the_official_file_is_downloaded_once_and_then_read_without_a_network(server, cache):
    spec = official(server, STATE)
    first = load_weights(spec, EXPECTED)
    assert_is_state(first)
    assert (first.kind, first.source, first.sha256) == ("checkpoint", "weights.pt", spec.source.sha256)
    assert [p.name for p in cache.iterdir()] == ["weights.pt"]
    server.shutdown()
    server.server_close()
    assert_is_state(load_weights(spec, EXPECTED))
    assert server.requests == ["/weights.pt"]


def test_a_damaged_file_in_the_cache_is_never_read_but_fetched_again(server, cache):
    spec = official(server, STATE)
    path = official_checkpoint(spec)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert official_checkpoint(spec).read_bytes() == whole
    assert server.requests == ["/weights.pt"] * 2


def test_a_damaged_file_in_the_cache_without_a_network_is_refused(server, cache):
    spec = official(server, STATE)
    official_checkpoint(spec).write_bytes(b"damaged")
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match="no connection"):
        load_weights(spec, EXPECTED)


def test_another_file_than_the_published_one_is_refused(server, cache):
    assert "sha256 is wrong" in download_refusal(official(server, STATE, sha256="0" * 64), cache)


def test_a_download_that_breaks_is_refused_and_leaves_nothing(server, cache):
    download_refusal(official(server, None, "cut.pt"), cache)
    assert server.requests == ["/cut.pt"]


def test_an_absent_file_is_refused_with_the_servers_answer(server, cache):
    message = download_refusal(official(server, None), cache)
    assert "404" in message
    assert message.count("http://") == 1


def test_a_refused_connection_names_the_host_and_the_ways_out(server, cache):
    spec = official(server, STATE)
    server.shutdown()
    server.server_close()
    assert f"no connection to 127.0.0.1:{server.server_port}" in download_refusal(spec, cache)


def test_an_interrupted_download_leaves_nothing_and_the_next_one_succeeds(server, cache, monkeypatch):
    spec = official(server, STATE)
    download = pooch.HTTPDownloader.__call__

    def interrupted(self, url, output_file, manager):
        download(self, url, output_file, manager)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            official_checkpoint(spec)
    assert list(cache.iterdir()) == []
    assert_is_state(load_weights(spec, EXPECTED))


def test_a_full_disk_is_reported_with_the_cache_folder(server, cache, monkeypatch):
    def full(self, url, output_file, manager):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    message = download_refusal(official(server, STATE), cache)
    assert "No space left on device" in message
    assert str(cache) in message
    assert "SAMEXPORT_CACHE" in message


def test_a_cache_folder_that_is_a_file_is_reported(server, cache):
    cache.parent.mkdir()
    cache.write_text("")
    with pytest.raises(CheckpointError, match="set SAMEXPORT_CACHE to another one"):
        load_weights(official(server, STATE), EXPECTED)
    assert server.requests == []


def test_weights_without_a_published_sha256_are_never_downloaded(cache):
    spec = find_model("tinysam.tinysam")
    assert spec.source.url in download_refusal(spec, cache)
    cache.mkdir(parents=True)
    saved(cache, STATE, spec.source.filename)  # nor trusted, for nobody can tell where it is from
    with pytest.raises(CheckpointError, match="nobody published the sha256"):
        load_weights(spec, EXPECTED)


def test_a_model_without_official_weights_says_so(cache):
    assert "test.tinyvit64 has no official weights" in download_refusal(find_model("test.tinyvit64"), cache)


@pytest.mark.parametrize("url", ["http://example.org/w.pt", "ftp://127.0.0.1/w.pt", "file:///tmp/w.pt"])
def test_only_https_is_fetched(cache, url):
    spec = replace(SPEC, source=CheckpointSource("w.pt", url, "0" * 64))
    assert "not https" in download_refusal(spec, cache)


def test_every_official_source_of_the_catalogue_is_https():
    for name in ("mobilesam.tinyvit", "sam.vit_b", "sam.vit_l", "sam.vit_h"):
        source = find_model(name).source
        assert source.url.startswith("https://")
        assert len(source.sha256) == 64


def test_the_cache_is_the_platforms_unless_the_variable_is_set(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMEXPORT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    for value in (None, ""):
        monkeypatch.delenv("SAMEXPORT_CACHE", raising=False)
        if value is not None:
            monkeypatch.setenv("SAMEXPORT_CACHE", value)
        assert cache_folder().name in ("samexport", "Cache")
        assert cache_folder() != tmp_path


def test_importing_the_module_loads_no_heavy_library():
    heavy = "'torch', 'safetensors', 'pooch', 'requests', 'tqdm'"
    code = f"import sys, samexport.models.weights.checkpoints; print([m for m in ({heavy}) if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
