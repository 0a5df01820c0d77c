import threading

import numpy as np
import pytest
import torch

from samexport.errors import BundleError, ConfigError
from samexport.runtimes.adapters.litert import LiteRtRuntime
from samexport.runtimes.parity.compare import compare_output, tier
from samexport.runtimes.verdicts import Check, Verdict
from tests.tflite_models import ADD, built, floats, prompts, write_graph

TINY = "test.tinyvit64"


@pytest.fixture(scope="module")
def decoder():
    model = built(TINY, "decoder")
    with LiteRtRuntime(model.path, model.graph, threads=1) as runtime:
        yield runtime


# entry points take 1 prompt of 5 points and 4 prompts of 2
@pytest.mark.parametrize(
    ("count", "points"), [(1, 1), (1, 2), (1, 5), (2, 2), (4, 1), (4, 2), (5, 2), (9, 2), (2, 5), (6, 3)]
)
def test_any_number_of_prompts_gives_what_one_unpadded_call_gives(decoder, count, points):
    model = built(TINY, "decoder")
    inputs = prompts(model.graph, count, points)
    values = model.plain(*(torch.from_numpy(inputs[name]) for name in model.graph.input_names))
    actual = decoder.run(inputs)
    for spec, expected in zip(model.graph.outputs, values, strict=True):
        row = compare_output(Check("case"), spec, expected.numpy(), actual[spec.name], tier("fp32"))
        assert row.verdict is Verdict.PASS, row


def test_more_points_than_any_entry_point_takes_are_refused(decoder):
    with pytest.raises(ConfigError, match="at most 5 points"):
        decoder.run(prompts(decoder.graph, 1, 6) | {"point_labels": np.ones((1, 6), np.float32)})


def test_no_prompt_is_refused(decoder):
    with pytest.raises(ConfigError, match="no prompt"):
        decoder.run(prompts(decoder.graph, 0, 2))


def test_the_encoder_runs_without_prompts():
    model = built(TINY, "encoder")
    image = np.random.default_rng(3).uniform(0, 255, (1, 3, 64, 64)).astype(np.float32)
    with LiteRtRuntime(model.path, model.graph) as runtime:
        actual = runtime.run({"image": image})["image_embeddings"]
    np.testing.assert_allclose(actual, model.plain(torch.from_numpy(image)).numpy(), rtol=0, atol=1e-4)


def test_threads_that_share_a_runtime_get_their_own_results(decoder):
    asked = [prompts(decoder.graph, 1 + i % 6, 2, seed=i) for i in range(8)]
    alone = [decoder.run(inputs) for inputs in asked]
    results = {}

    def work(i):
        results[i] = [decoder.run(asked[i]) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        for found in results[i]:
            np.testing.assert_array_equal(found["low_res_masks"], expected["low_res_masks"])


def test_opening_and_running_are_silent(capfd):
    model = built(TINY, "decoder")
    capfd.readouterr()
    with LiteRtRuntime(model.path, model.graph, threads=2) as runtime:
        runtime.run(prompts(model.graph, 5, 2))
        assert runtime.placement() == "CPU (XNNPACK), 2 threads"
    assert capfd.readouterr() == ("", "")


def test_a_file_of_another_graph_is_refused():
    model = built(TINY, "decoder")
    with pytest.raises(BundleError, match="not those of encoder"):
        LiteRtRuntime(model.path, built(TINY, "encoder").graph)


def test_a_file_of_another_size_is_refused(tmp_path):
    graph = built(TINY, "encoder").graph
    tensors = [("image", (1, 3, 32, 32)), ("c", floats(32)), ("image_embeddings", (1, 3, 32, 32))]
    operators = [("ADD", ["image", "c"], "image_embeddings", ADD)]
    path = write_graph(tmp_path / "x.tflite", tensors, operators, ["image_embeddings"])
    with pytest.raises(BundleError, match=r"x\.tflite, entry point main: image has shape"):
        LiteRtRuntime(path, graph)


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(1000)])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "x.tflite"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"^x\.tflite cannot be opened by LiteRT: [^\n]+$"):
        LiteRtRuntime(path, built(TINY, "encoder").graph)
