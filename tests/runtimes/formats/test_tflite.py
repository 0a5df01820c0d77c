import json
import zipfile

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from samexport.errors import BundleError
from samexport.runtimes.formats.tflite import (
    METADATA_NAME,
    append_metadata,
    constant_bytes,
    read_model,
    shape_of,
    write_model,
)  # fmt: skip
from tests.tflite_models import ADD, floats, write_graph


@pytest.fixture
def added(tmp_path):
    tensors = [("x", (1, 4, 3)), ("a", floats(1, 4, 3)), ("b", -floats(3)), ("y", (1, 4, 3)), ("z", (1, 4, 3))]
    operators = [("ADD", ["x", "a"], "y", ADD), ("ADD", ["y", "b"], "z", ADD)]
    return write_graph(tmp_path / "added.tflite", tensors, operators, ["z"])


def run(path, x):
    return Interpreter(str(path)).get_signature_runner("main")(x=x)["z"]


def test_a_file_survives_reading_and_writing(added, tmp_path):
    model = read_model(added)
    assert [shape_of(t) for t in model.subgraphs[0].tensors] == [(1, 4, 3), (1, 4, 3), (3,), (1, 4, 3), (1, 4, 3)]
    write_model(model, tmp_path / "again.tflite")
    assert (tmp_path / "again.tflite").read_bytes() == added.read_bytes()


def test_constants_start_at_multiples_of_16_bytes(added):
    content, model = added.read_bytes(), read_model(added)
    for tensor in model.subgraphs[0].tensors[1:3]:
        data = constant_bytes(model, tensor).tobytes()
        assert content.count(data) == 1
        assert content.index(data) % 16 == 0


def test_metadata_is_found_by_any_unzip_tool_and_ignored_by_litert(added):
    x = floats(1, 4, 3)
    before = run(added, x)
    append_metadata(added, {"graph": "encoder", "sizes": [1, 2]})
    np.testing.assert_array_equal(run(added, x), before)
    np.testing.assert_allclose(before, x + floats(1, 4, 3) - floats(3), rtol=1e-5)
    with zipfile.ZipFile(added) as archive:
        assert archive.namelist() == [METADATA_NAME]
        assert json.loads(archive.read(METADATA_NAME)) == {"graph": "encoder", "sizes": [1, 2]}
    assert len(read_model(added).subgraphs[0].operators) == 2


def test_equal_metadata_gives_equal_bytes(added, tmp_path):
    other = tmp_path / "other.tflite"
    other.write_bytes(added.read_bytes())
    append_metadata(added, {"a": 1, "b": 2})
    append_metadata(other, {"b": 2, "a": 1})
    assert added.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    "content", [b"", b"not a model at all", b"\x10\0\0\0TFL3", b"\xff\xff\xff\x7fTFL3" + bytes(40)]
)
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "x.tflite"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"^x\.tflite [^\n]+$"):
        read_model(path)


def test_a_packed_model_without_data_keeps_its_empty_buffer(tmp_path):
    model = schema.ModelT()
    model.version, model.buffers = 3, [schema.BufferT()]
    write_model(model, tmp_path / "empty.tflite")
    assert [b.data for b in read_model(tmp_path / "empty.tflite").buffers] == [None]
