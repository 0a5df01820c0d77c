"""Downloads from a local server."""

import contextlib
import functools
import hashlib
import http.server
import os
import resource
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import requests

from samexport.errors import CheckpointError, MissingDependency
from samexport.models.architectures.sam import empty_sam
from samexport.models.catalog import find_model
from samexport.models.spec import Adapter, CheckpointSource
from samexport.models.weights import checkpoints, downloads
from samexport.models.weights.checkpoints import load_weights
from samexport.models.weights.downloads import cache_folder, official_checkpoint
from tests.models.weights.small import EXPECTED, SPEC, STATE, assert_is_state, saved


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/cut.pt":  # announces more than it sends
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)
        elif self.path == "/endless.pt":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                while True:
                    self.server.sent += self.wfile.write(bytes(1 << 16))
        elif self.server.stalls:
            content = (self.server.folder / self.path[1:]).read_bytes()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.server.released.wait(60)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_SCHEME", "http")
    (tmp_path / "served").mkdir()
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.requests, running.folder = [], tmp_path / "served"
        running.sent, running.stalls, running.released = 0, False, threading.Event()
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.released.set()
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


def test_an_adapter_that_no_file_holds_is_downloaded_and_one_that_is_given_is_not(server, cache, tmp_path):
    part = "mask_decoder."
    own = {key: value for key, value in STATE.items() if key.startswith(part)}
    rest = saved(tmp_path, {key: value for key, value in STATE.items() if key not in own}, "rest.pt")
    source = official(server, own, "own.pth").source
    spec = replace(SPEC, adapter=Adapter(source.filename, source.url, source.sha256, part))
    found = load_weights(spec, EXPECTED, checkpoints=[rest])
    assert_is_state(found)
    assert found.source == "rest.pt + own.pth"
    assert found.sha256.endswith(f" + {source.sha256}")
    assert server.requests == ["/own.pth"]
    given = load_weights(spec, EXPECTED, checkpoints=[rest, saved(tmp_path, own, "mine.pth")])
    assert (given.source, server.requests) == ("rest.pt + mine.pth", ["/own.pth"])
    (cache / "own.pth").unlink()
    absent = replace(spec, adapter=replace(spec.adapter, url=f"{source.url}/absent"))
    with pytest.raises(CheckpointError, match="give the file with --adapter FILE, or leave it out"):
        load_weights(absent, EXPECTED, checkpoints=[rest])


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
    pieces = requests.Response.iter_content

    def interrupted(self, size):
        yield next(pieces(self, size))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(requests.Response, "iter_content", interrupted)
        with pytest.raises(KeyboardInterrupt):
            official_checkpoint(spec)
    assert list(cache.iterdir()) == []
    assert_is_state(load_weights(spec, EXPECTED))


@pytest.fixture
def small_disk():
    """No file of this process may grow beyond a kilobyte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_reported_with_the_cache_folder(server, cache, request):
    spec = official(server, STATE)
    request.getfixturevalue("small_disk")
    message = download_refusal(spec, cache)
    assert "the disk is full" in message
    assert str(cache) in message
    assert "SAMEXPORT_CACHE" in message


def test_a_body_without_end_stops_at_a_bound(server, cache):
    spec = replace(official(server, None, "endless.pt"), parameters=1_000_000)
    assert "more than 6048576 bytes" in download_refusal(spec, cache)
    assert server.sent < 20 << 20


def test_the_bound_leaves_room_for_every_official_file():
    for name in ("mobilesam.tinyvit", "sam.vit_b", "sam.vit_l", "sam.vit_h"):
        spec = find_model(name)
        tensors = sum(v.numel() * v.element_size() for v in empty_sam(spec).state_dict().values())
        assert 1.1 * tensors < downloads._most_bytes(spec) < 1.5 * tensors


def test_what_a_killed_download_leaves_is_swept_but_a_running_one_is_left_alone(server, cache):
    spec = official(server, STATE)
    code = f"""
from dataclasses import replace
from samexport.models.spec import Adapter, CheckpointSource
from samexport.models.catalog import find_model
from samexport.models.weights import downloads
downloads._SCHEME = "http"
source = CheckpointSource({spec.source.filename!r}, {spec.source.url!r}, {spec.source.sha256!r})
downloads.official_checkpoint(replace(find_model("tinyvit"), source=source))
"""
    server.stalls = True
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    try:
        # it says so once the server has answered
        assert process.stderr.readline() == b"downloading weights.pt\n"
        server.stalls = False
        assert official_checkpoint(spec).read_bytes() == (server.folder / "weights.pt").read_bytes()
        half = [path for path in cache.iterdir() if path.name != "weights.pt"]
        assert len(half) == 1
    finally:
        process.kill()
        process.communicate()
    assert half[0].exists()
    (cache / "weights.pt").write_bytes(b"damaged")
    official_checkpoint(spec)
    assert [path.name for path in cache.iterdir()] == ["weights.pt"]


def test_what_is_in_the_cache_is_a_regular_file_or_is_reported(server, cache):
    cache.mkdir(parents=True)
    os.mkfifo(cache / "weights.pt")
    with pytest.raises(CheckpointError, match="not a regular file"):
        official_checkpoint(official(server, STATE))


def test_a_file_that_changes_after_it_was_verified_is_not_used(server, cache, monkeypatch):
    spec = official(server, STATE)
    path = official_checkpoint(spec)
    other = saved(cache, {key: value + 1 for key, value in STATE.items()}, "other.pt")
    monkeypatch.setattr(checkpoints, "official_checkpoint", lambda _: other)
    with pytest.raises(CheckpointError, match="changed after it was downloaded"):
        load_weights(spec, EXPECTED)
    assert path.exists()


@pytest.mark.parametrize("folder", ["~nosuchuser", "~nosuchuser/cache"])
def test_the_home_of_nobody_is_no_cache(monkeypatch, folder):
    monkeypatch.setenv("SAMEXPORT_CACHE", folder)
    with pytest.raises(CheckpointError, match="SAMEXPORT_CACHE is '~nosuchuser"):
        cache_folder()
    with pytest.raises(CheckpointError, match="set it to a folder"):
        official_checkpoint(find_model("tinyvit"))


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
    heavy = "'torch', 'safetensors', 'requests', 'rich'"
    code = f"import sys, samexport.models.weights.checkpoints; print([m for m in ({heavy}) if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_download_without_requests_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setenv(downloads.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(MissingDependency, match="downloading weights needs requests: pip install"):
        official_checkpoint(find_model("tinyvit"))
    assert list(tmp_path.iterdir()) == []
