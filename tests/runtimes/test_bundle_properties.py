"""Bundles with anything changed in them: they open and verify, or end in one of our errors, never in another."""

import io
import json
import shutil
import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samexport.errors import SamExportError
from samexport.models.spec import axis_sizes
from samexport.runtimes import bundle as bundles
from samexport.runtimes.base import Runtime
from samexport.runtimes.bundle import open_bundle
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.parity.verify import verify_bundle
from samexport.runtimes.verdicts import Verdict

MANIFEST, CASES, TENSORS, PICTURE = "bundle.json", "golden/cases.json", "golden/tensors.npz", "golden/picture.png"
MANY = settings(
    max_examples=100, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 7, 64, 640000, 1 << 31, -(1 << 63), 1 << 64, 10**30]),
    st.integers(-4, 4),
    st.sampled_from([0.0, -0.5, 1.5, 1e300, -1e300, 1e-300]),
    st.sampled_from(["", ".", "..", "../x", "/etc/passwd", "x\0y", "x\ny", "\ud800", "float99", "x" * 300, "encoder"]),
    st.text(max_size=4),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


class Zeros(Runtime):
    """Answers every call with zeros of the right shapes, so that verifying takes milliseconds."""

    name = "zeros"

    def _run(self, inputs):
        sizes = axis_sizes(self.graph.inputs, {name: value.shape for name, value in inputs.items()})
        return {
            t.name: np.zeros([sizes[d] if isinstance(d, str) else d for d in t.shape], np.float32)
            for t in self.graph.outputs
        }

    def placement(self):
        return "nowhere"


class Data(bytes):
    """A file's content; hypothesis prints what it draws from."""

    def __repr__(self):
        return f"<{len(self)} bytes>"


class Files(dict):
    def __repr__(self):
        return "<the small files of a bundle>"


@pytest.fixture(scope="module")
def original(tiny_bundle):
    """The small files of a bundle, by name."""
    return Files({name: Data((tiny_bundle.folder / name).read_bytes()) for name in (MANIFEST, CASES, TENSORS, PICTURE)})


def places(value, path=()):
    """Every path into a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


@st.composite
def changed_json(draw, text):
    """The JSON with one to three values replaced, removed, doubled or renamed."""
    content = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([*places(content)]))
        if not path:
            return json.dumps(draw(JSON)).encode()
        inside = content
        for key in path[:-1]:
            inside = inside[key]
        last, how = path[-1], draw(st.sampled_from(["replace", "replace", "remove", "double", "rename"]))
        if how == "replace":
            inside[last] = draw(JSON)
        elif how == "remove":
            del inside[last]
        elif isinstance(inside, list):
            inside.append(inside[last])
        else:
            inside[draw(st.text(max_size=5))] = inside[last] if how == "double" else inside.pop(last)
    return json.dumps(content).encode()


@st.composite
def changed_bytes(draw, data):
    """The bytes with bits flipped, a part cut out, or a part repeated."""
    changed = bytearray(data)
    how = draw(st.sampled_from(["flip", "flip", "cut", "truncate", "repeat"]))
    place = draw(st.integers(0, len(data) - 1))
    length = draw(st.integers(1, 64))
    if how == "flip":
        for _ in range(draw(st.integers(1, 3))):
            changed[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif how == "cut":
        del changed[place : place + length]
    elif how == "truncate":
        del changed[place:]
    else:
        changed[place:place] = changed[place : place + length]
    return bytes(changed)


HEADERS = st.sampled_from(
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4398046511104,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<c16', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': True, 'shape': (0, 5), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (), }",
        "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<f4'}",
        "[" * 500,
        "",
        "\0",
    ]
)


def npy(header, data):
    text = header.encode("latin1").ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@st.composite
def changed_archive(draw, data):
    """The archive with one member damaged, replaced, renamed, left out or there twice."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = draw(st.sampled_from([*members]))
    how = draw(st.sampled_from(["header", "bytes", "shape", "rename", "remove", "twice", "plain"]))
    if how == "header":
        members[chosen] = npy(draw(HEADERS), draw(st.binary(max_size=32)))
    elif how == "bytes":
        members[chosen] = draw(changed_bytes(members[chosen]))
    elif how == "shape":
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        buffer = io.BytesIO()
        value, kind = draw(
            st.sampled_from(
                [(0, "f4"), (np.nan, "f4"), (np.inf, "f2"), (1e300, "f8"), (1, "i8"), (1, "u1"), (1j, "c8")]
            )
        )
        np.save(buffer, np.full(shape, value, kind))
        members[chosen] = buffer.getvalue()
    elif how == "rename":
        members[draw(st.sampled_from(["../x.npy", "x", "masks.npy", "t0.npy", " "]))] = members.pop(chosen)
    elif how == "remove":
        del members[chosen]
    buffer = io.BytesIO()
    kind = zipfile.ZIP_STORED if how == "plain" else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if how == "twice":
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr(zipfile.ZipInfo(chosen), members[chosen][:-1])
    return buffer.getvalue()


def check(original, **changed):
    """Open, read and verify; only our errors may come, and what was judged failed, for the files are not there."""
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "golden").mkdir()
        for name, data in {**original, **{names[key]: value for key, value in changed.items()}}.items():
            (folder / name).write_bytes(data)
        try:
            bundle = open_bundle(folder)
        except SamExportError:
            return
        try:
            load_golden(folder, bundle.manifest.frame)
        except SamExportError:
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bundles, "open_runtime", lambda path, graph, file_format, **_: Zeros(graph))
            try:
                report = verify_bundle(bundle)
            except SamExportError:
                return
        assert report.verdict is Verdict.FAIL
        json.dumps([row.to_json() for row in report.rows], allow_nan=False)
    finally:
        shutil.rmtree(folder)


names = {"manifest": MANIFEST, "cases": CASES, "tensors": TENSORS, "picture": PICTURE}


def test_the_stand_in_gets_as_far_as_the_numbers(original, monkeypatch):
    reached = []
    monkeypatch.setattr(Zeros, "_run", lambda self, inputs: reached.append(self.graph.name) or {})
    check(original)
    assert set(reached) == {"encoder", "decoder", "decoder_with_mask"}


@MANY
@given(data=st.data())
def test_any_json_in_the_manifest(original, data):
    check(original, manifest=data.draw(changed_json(original[MANIFEST])))


@MANY
@given(data=st.data())
def test_any_bytes_in_the_manifest(original, data):
    check(original, manifest=data.draw(changed_bytes(original[MANIFEST])))


@MANY
@given(data=st.data())
def test_any_json_in_the_list_of_cases(original, data):
    check(original, cases=data.draw(changed_json(original[CASES])))


@MANY
@given(data=st.data())
def test_any_bytes_in_the_tensors(original, data):
    check(original, tensors=data.draw(changed_bytes(original[TENSORS])))


@MANY
@given(data=st.data())
def test_any_member_in_the_tensors(original, data):
    check(original, tensors=data.draw(changed_archive(original[TENSORS])))


@MANY
@given(data=st.data())
def test_any_bytes_in_the_picture(original, data):
    check(original, picture=data.draw(changed_bytes(original[PICTURE])))


@MANY
@given(data=st.data())
def test_anything_in_several_files(original, data):
    check(
        original,
        manifest=data.draw(changed_json(original[MANIFEST])),
        cases=data.draw(changed_json(original[CASES])),
        tensors=data.draw(changed_archive(original[TENSORS])),
    )
