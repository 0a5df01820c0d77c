"""Golden folders that someone damaged, or made to harm: one line, before memory is taken."""

import io
import json
import struct
import warnings
import zipfile

import numpy as np
import pytest

from samexport.errors import BundleError, FileError
from samexport.runtimes.arrays import parse_npy, read_npz
from samexport.runtimes.parity.golden_files import load_golden
from samexport.runtimes.parity.verify import compare_cases
from samexport.runtimes.verdicts import Verdict


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def header(shape: str, dtype: str = "<f4") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"


def test_a_plain_array_is_read_back():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for array in (values, np.asfortranarray(values), np.float16(values), np.array(5)):
        stream = io.BytesIO()
        np.save(stream, array)
        assert np.array_equal(parse_npy(stream.getvalue(), "x"), array)


HOSTILE = {
    "claims 3.6 TiB": npy(header("(1000000, 1000000)")),
    "claims 6 EiB": npy(header("(1844674407370955161,)")),
    "overflows": npy(header("(4294967296, 4294967296, 4294967296)")),
    "negative": npy(header("(-1, 4)"), bytes(16)),
    "too short": npy(header("(4,)"), bytes(15)),
    "too long": npy(header("(4,)"), bytes(17)),
    "objects": npy(header("(1,)", "|O"), bytes(8)),
    "complex": npy(header("(1,)", "<c8"), bytes(8)),
    "text": npy(header("(1,)", "<U4"), bytes(16)),
    "records": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", bytes(4)),
    "no header": b"\x93NUMPY\x01\x00",
    "code": npy("__import__('os').system('true')"),
    "unbalanced": npy("{'descr': '<f4', ((((("),
    "future": b"\x93NUMPY\x09\x00" + bytes(64),
    "empty": b"",
    "not numpy": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_an_array_holds_what_it_claims_or_is_refused(what):
    with pytest.raises(FileError, match="not a usable"):
        parse_npy(HOSTILE[what], "x.npy")


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t0.npy", npy(header("(26214400,)"), bytes(100 << 20)))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(FileError, match="unpacks to more than 50 MiB"):
        read_npz(path, limit=50 << 20)


def rewrite(bundle, change):
    path = bundle.folder / "golden" / "cases.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


CASES = {
    "graphs empty": lambda c: c["cases"][0].update(graphs=[]),
    "graphs as text": lambda c: c["cases"][0].update(graphs="encoder"),
    "strides a list": lambda c: c["cases"][1].update(strides=[]),
    "strides as text": lambda c: c["cases"][1]["strides"].update(low_res_masks="7"),
    "a stride of zero": lambda c: c["cases"][1]["strides"].update(low_res_masks=0),
    "a stride of scores": lambda c: c["cases"][1]["strides"].update(nothing=7),
    "inputs a list": lambda c: c["cases"][1].update(inputs=[]),
    "an unknown tensor": lambda c: c["cases"][1]["inputs"].update(point_coords="t99"),
    "nothing expected": lambda c: c["cases"][1].update(expected={}),
    "a huge letterbox": lambda c: c["cases"][0].update(letterbox=640000),
    "a huge seeded input": lambda c: c["cases"][0].update(made={"image": {"kind": "normal", "shape": [65536, 65536]}}),
    "an input made of nothing known": lambda c: c["cases"][0].update(made={"image": {"kind": "photo"}}),
    "a frame that is none": lambda c: c["cases"][0].update(later=[{"inputs": {}, "expected": {}}]),
    "a crooked letterbox": lambda c: c["cases"][0].update(letterbox=33),
    "no name": lambda c: c["cases"][0].update(name=None),
    "a null case": lambda c: c["cases"].append(None),
    "no cases": lambda c: c.pop("cases"),
}


@pytest.mark.parametrize("what", CASES)
def test_cases_are_checked_in_type_and_range(own_bundle, what):
    rewrite(own_bundle, CASES[what])
    with pytest.raises(BundleError, match="export the bundle again") as caught:
        load_golden(own_bundle.folder, own_bundle.manifest.frame)
    assert "\n" not in str(caught.value)


def test_every_bit_of_the_tensors_can_flip_without_a_traceback(own_bundle):
    path = own_bundle.folder / "golden" / "tensors.npz"
    data = bytearray(path.read_bytes())
    refused = 0
    # spread over the file; the central directory at the end in full
    places = [*np.linspace(0, len(data) - 1, 150).astype(int), *range(len(data) - 60, len(data))]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            load_golden(own_bundle.folder, own_bundle.manifest.frame)
        except BundleError:
            refused += 1
    assert refused > len(places) // 2


@pytest.mark.parametrize("change", [np.isnan, lambda v: v[:1], lambda v: v * np.nan, lambda v: v / 0])
def test_logits_that_are_none_are_refused(own_bundle, change):
    path = own_bundle.folder / "golden" / "tensors.npz"
    with np.load(path) as archive:
        tensors = dict(archive)
    others = {name: value for name, value in tensors.items() if name != "low_res_masks"}
    np.savez_compressed(path, **others)
    # an earlier version has none
    assert load_golden(own_bundle.folder, own_bundle.manifest.frame).low_res_masks is None
    with np.errstate(all="ignore"):
        np.savez_compressed(path, **others, low_res_masks=change(tensors["low_res_masks"]))
    with pytest.raises(BundleError, match=r"low_res_masks|not a usable"):
        load_golden(own_bundle.folder, own_bundle.manifest.frame)


def test_numbers_beyond_float32_become_infinite_without_a_warning(own_bundle):
    path = own_bundle.folder / "golden" / "tensors.npz"
    with np.load(path) as archive:
        tensors = dict(archive)
    key = _key(own_bundle, "low_res_masks")
    tensors[key] = tensors[key].astype(np.float64)
    tensors[key].flat[0] = 1e300
    np.savez_compressed(path, **tensors)
    with warnings.catch_warnings(action="error"):
        golden = load_golden(own_bundle.folder, own_bundle.manifest.frame)
        rows = list(compare_cases(own_bundle, golden))
    (case,) = (c for c in golden.cases if np.isinf(c.expected.get("low_res_masks", 0)).any())
    wrong = [row for row in rows if (row.check.case, row.output) == (case.name, "low_res_masks")]
    assert {row.verdict for row in wrong} == {Verdict.FAIL}


def _key(bundle, output):
    """Of the first case with that output."""
    cases = json.loads((bundle.folder / "golden" / "cases.json").read_text())["cases"]
    return next(case["expected"][output] for case in cases if output in case["expected"])
