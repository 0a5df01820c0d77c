import pkgutil
from dataclasses import replace

import pytest

from samexport.benchmarks import plan as plan_module
from samexport.benchmarks.contenders.known import KNOWN
from samexport.benchmarks.plan import Plan, jobs_of, labels_of, lacking, left_out, not_measured, pairs_of
from samexport.errors import ConfigError
from samexport.models.catalog import find_model
from samexport.models.families.detector import SAMPLER
from samexport.runtimes.base import MOST_THREADS
from samexport.runtimes.tasks.segment import DEFAULT_CHUNK

ORT = ("onnxruntime",)


def brief(jobs):
    return [(j.graph, j.form, j.prompts, j.batch) for j in jobs]


def test_graphs_with_prompts_are_measured_at_every_number_of_them(tiny_bundle):
    jobs = jobs_of([tiny_bundle], Plan(ORT, prompts=(1, 5)))
    assert brief(jobs) == [
        ("encoder", "export", 0, 0),
        ("decoder", "export", 1, 0),
        ("decoder", "export", 5, 0),
        ("decoder_with_mask", "export", 1, 0),
        ("decoder_with_mask", "export", 5, 0),
    ]


def test_many_prompts_go_in_the_batches_that_an_app_uses(tiny_bundle):
    jobs = jobs_of([tiny_bundle], Plan(ORT, ("decoder",), prompts=(320,)))
    assert [j.batch for j in jobs] == [DEFAULT_CHUNK]


def test_batches_can_be_chosen(tiny_bundle):
    jobs = jobs_of([tiny_bundle], Plan(ORT, ("decoder",), prompts=(8,), batches=(1, 4, 8, 64)))
    assert [j.batch for j in jobs] == [1, 4, 0]


def test_every_number_of_threads_and_every_runtime(tiny_bundle):
    jobs = jobs_of([tiny_bundle], Plan(("onnxruntime", "pytorch"), ("encoder",), threads=(1, 2), checkpoints=("w.pt",)))
    assert [(j.runtime, j.threads, j.file, j.checkpoints) for j in jobs] == [
        ("onnxruntime", 1, "encoder.onnx", ()),
        ("onnxruntime", 2, "encoder.onnx", ()),
        ("pytorch", 1, "", ("w.pt",)),
        ("pytorch", 2, "", ("w.pt",)),
    ]


def test_bundles_of_the_same_weights_share_the_rows_of_pytorch(tiny_bundle, own_bundle, half_bundle):
    plan = Plan(("onnxruntime", "pytorch"), ("encoder",))
    runtimes = [job.runtime for job in jobs_of([tiny_bundle, own_bundle, half_bundle], plan)]
    assert runtimes == ["onnxruntime", "pytorch", "onnxruntime", "onnxruntime", "pytorch"]


def test_runtimes_that_do_not_read_the_format_are_left_out(tiny_bundle):
    assert jobs_of([tiny_bundle], Plan(("litert", "mil"))) == []


def test_every_available_runtime_takes_part_when_none_is_named(tiny_bundle, monkeypatch):
    monkeypatch.setattr(plan_module, "why_not", lambda c: "no" if c.device == "cuda" or c.name == "openvino" else "")
    names = {j.runtime for j in jobs_of([tiny_bundle], Plan(graphs=("encoder",)))}
    assert {"onnxruntime", "pytorch"} <= names
    assert not names & {"openvino", "pytorch-cuda", "onnxruntime-basic", "litert"}


SLOW = {"pytorch-compile", "pytorch-bf16", "openvino-bf16", "onnxruntime-basic"}


def test_what_is_slow_or_unusual_takes_part_only_when_it_is_named(tiny_bundle, monkeypatch):
    monkeypatch.setattr(plan_module, "why_not", lambda c: "")
    by_default, every, one = (
        {j.runtime for j in jobs_of([tiny_bundle], Plan(names, ("encoder",)))}
        for names in ((), ("all",), ("pytorch-compile",))
    )
    assert not by_default & (SLOW | {"pytorch-cuda-compile"})
    assert every > SLOW
    assert by_default < every
    assert one == {"pytorch-compile"}


def test_what_was_named_and_has_no_job_is_told_with_the_reason(tiny_bundle, sampler_bundle):
    detector = "everything: 300 boxes of the detector"
    plan = Plan(("onnxruntime", "litert"), ("encoder",), tasks=("one click", detector))
    missing = not_measured([tiny_bundle], plan, jobs_of([tiny_bundle], plan))
    assert [(job.graph, job.runtime, reason) for job, reason in missing] == [
        ("encoder", "litert", "it reads tflite files, the bundles have onnx"),
        (detector, "onnxruntime", "it needs a bundle with a detector (prompt_sampler)"),
    ]
    bundles = [tiny_bundle, sampler_bundle]
    assert [job.runtime for job, _ in not_measured(bundles, plan, jobs_of(bundles, plan))] == ["litert"]
    for plan in (Plan(("all",), ("encoder",), tasks=("all",)), Plan()):
        assert not_measured([tiny_bundle], plan, jobs_of([tiny_bundle], plan)) == []
    plan = Plan(("pytorch",), tasks=("one click",))
    ((job, reason),) = not_measured([tiny_bundle], plan, jobs_of([tiny_bundle], plan))
    assert (job.graph, reason[:22]) == ("one click", "whole tasks run on onn")


def test_bundles_are_called_by_as_much_of_their_path_as_tells_them_apart(tmp_path):
    folders = [tmp_path / name for name in ("a/sam", "b/sam", "b/other")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert list(labels_of(folders).values()) == ["a/sam", "b/sam", "other"]
    assert labels_of(folders[:1])[str(folders[0])] == "sam"
    again = tmp_path / "b" / ".." / "b" / "sam"
    with pytest.raises(ConfigError, match="named twice"):
        labels_of([*folders, again])
    assert labels_of(folders[1:], [again]) == {str(folders[1]): "sam", str(folders[2]): "other", str(again): "sam"}


OPTIONS = {"target": "gpu", "converter": "onnx2tf 1.28.5", "simplifier": "onnxslim"}


def test_a_job_says_of_which_weights_and_how_its_file_was_made(sampler_bundle):
    artifacts = tuple(replace(a, options=OPTIONS) for a in sampler_bundle.manifest.artifacts)
    bundle = replace(sampler_bundle, manifest=replace(sampler_bundle.manifest, artifacts=artifacts))
    plan = Plan(("onnxruntime", "pytorch"), labels={str(bundle.folder): "mine"}, tasks=("all",), prompts=(1,))
    jobs = jobs_of([bundle], plan)
    assert {j.options for j in jobs if j.runtime == "onnxruntime"} == {"target=gpu converter=onnx2tf"}
    assert {j.options for j in jobs if j.runtime == "pytorch"} == {""}
    assert {(j.source.label, j.source.model) for j in jobs} == {("mine", "test.tinyvit64")}
    weights = {j.graph: j.source.weights for j in jobs}
    assert (weights["encoder"], weights["one click"]) == ("seed 7", "seed 7")
    assert weights["everything: 300 boxes of the detector"] == "seed 7 seed 7"
    other = replace(bundle, manifest=replace(bundle.manifest, weights=replace(
        bundle.manifest.weights, kind="checkpoint", seed=None, sha256="1" * 64
    )))  # fmt: skip
    assert {j.source.weights for j in jobs_of([other], plan) if j.graph == "encoder"} == {"1" * 64}


DETECTOR_LACKS = "it was made from seed 7; give that with --checkpoint"


def test_a_detector_has_weights_of_its_own(sampler_bundle):
    info = sampler_bundle.manifest.sampler
    other = replace(info, weights=replace(info.weights, seed=9))
    bundle, plan = replace(sampler_bundle, manifest=replace(sampler_bundle.manifest, sampler=other)), Plan()
    names = ("encoder", SAMPLER, "everything: 300 boxes", "everything: 300 boxes of the detector")
    found = [plan.source(bundle, name).weights for name in names]
    assert found == ["seed 7", "seed 9", "seed 7", "seed 7 seed 9"]


def test_pytorch_runs_a_detector_that_it_can_have(sampler_bundle):
    plan = Plan(("pytorch",), (SAMPLER,))
    assert [j.graph for j in jobs_of([sampler_bundle], plan)] == [SAMPLER]
    info = sampler_bundle.manifest.sampler
    for other in (replace(info, nms="in-graph"), replace(info, weights=replace(info.weights, kind="checkpoint"))):
        bundle = replace(sampler_bundle, manifest=replace(sampler_bundle.manifest, sampler=other))
        assert jobs_of([bundle], plan) == []
        ((job, why),) = not_measured([bundle], plan, [])
        assert (job.graph, job.runtime) == (SAMPLER, "pytorch")
        assert why in ("NMS in the graph has no counterpart in PyTorch", DETECTOR_LACKS)


def test_baselines_run_all_prompts_at_once_and_one_by_one(tiny_bundle, plain_bundle):
    jobs = jobs_of([tiny_bundle], Plan(ORT, ("decoder",), prompts=(1, 4), baselines=(plain_bundle,)))
    assert brief(jobs)[2:] == [
        ("decoder", "plain", 1, 0),
        ("decoder", "plain", 4, 0),
        ("decoder", "plain", 4, 1),
    ]


def test_tasks_are_jobs_too(tiny_bundle):
    runtimes = ("onnxruntime", "onnxruntime-basic", "openvino-bf16", "pytorch")
    jobs = jobs_of([tiny_bundle], Plan(runtimes, ("encoder",), tasks=("one click", "64 boxes")))
    assert [(j.graph, j.runtime, j.prompts) for j in jobs if not j.file and j.runtime != "pytorch"] == [
        ("one click", "onnxruntime", 1),
        ("one click", "openvino-bf16", 1),
        ("64 boxes", "onnxruntime", 64),
        ("64 boxes", "openvino-bf16", 64),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtimes": ("tensorflow",)}, "no runtime is called 'tensorflow'; known: onnxruntime"),
        ({"tasks": ("dance",)}, "no task is called 'dance'"),
        ({"prompts": (0,)}, "at least 1"),
        ({"threads": ()}, "at least 1"),
        ({"threads": (1, 100_000)}, f"100000 threads cannot be; the number is at least 1 and at most {MOST_THREADS}"),
        ({"threads": (99999999999,)}, f"at most {MOST_THREADS}"),
        ({"prompts": (10**9,)}, "at most 4096"),
        ({"batches": (-1,)}, "at least 1"),
        ({"photograph": (0, 10)}, "a picture of 0x10 cannot be"),
        ({"photograph": (10**6, 10**6)}, "a picture of 1000000x1000000 cannot be; at most"),
    ],
)
def test_what_does_not_exist_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Plan(**options)


def test_an_unknown_graph_is_refused(tiny_bundle):
    with pytest.raises(ConfigError, match="no bundle has the graph 'head'; they have decoder"):
        jobs_of([tiny_bundle], Plan(graphs=("head",)))


def test_pairs_with_the_plain_form(tiny_bundle, plain_bundle):
    plan = Plan(ORT, ("encoder", "decoder"), prompts=(1, 4), baselines=(plain_bundle,))
    pairs = pairs_of(jobs_of([tiny_bundle], plan), ("plain", "single"), plan)
    assert [brief(p) for p in pairs] == [
        [("encoder", "export", 0, 0), ("encoder", "plain", 0, 0)],
        [("decoder", "export", 1, 0), ("decoder", "plain", 1, 0)],
        [("decoder", "export", 4, 0), ("decoder", "plain", 4, 0)],
        [("decoder", "export", 4, 0), ("decoder", "plain", 4, 1)],
    ]
    assert all(p[1].bundle == str(plain_bundle.folder) and p[1].file.endswith(".plain.onnx") for p in pairs)


def test_the_step_is_compared_with_the_whole_plain_decoder(split_bundle, plain_bundle):
    plan = Plan(ORT, ("decoder_step",), prompts=(1,), baselines=(plain_bundle,))
    ((step, plain),) = pairs_of(jobs_of([split_bundle], plan), ("plain",), plan)
    assert (step.graph, plain.graph, plain.form) == ("decoder_step", "decoder", "plain")


def test_a_baseline_is_of_the_same_weights(tiny_bundle, plain_bundle):
    manifest = tiny_bundle.manifest
    other = replace(tiny_bundle, manifest=replace(manifest, weights=replace(manifest.weights, seed=8)))
    plan = Plan(ORT, ("encoder",), baselines=(plain_bundle,))
    with pytest.raises(ConfigError, match="nothing to compare with 'plain'"):
        pairs_of(jobs_of([other], plan), ("plain",), plan)


def test_of_several_files_of_another_bundle_the_one_made_alike_is_the_rival(tiny_bundle, split_bundle):
    (encoder,) = (a for a in split_bundle.manifest.artifacts if a.graph == "encoder")
    half = replace(encoder, recipe="fp16", path="encoder.half.onnx")
    rival = replace(split_bundle, manifest=replace(split_bundle.manifest, artifacts=(half, encoder)))
    plan = Plan(ORT, ("encoder",))
    (job,) = jobs_of([tiny_bundle], plan)
    assert plan_module._in_bundle(job, rival, plan).file == "encoder.onnx"
    assert plan_module._in_bundle(replace(job, precision="fp16"), rival, plan).file == "encoder.half.onnx"


def test_pairs_with_another_runtime_and_another_bundle(tiny_bundle, split_bundle):
    plan = Plan(ORT, ("encoder",))
    jobs = jobs_of([tiny_bundle], plan)
    rivals = ("openvino", "pytorch", str(split_bundle.folder))
    pairs = pairs_of(jobs, rivals, plan)
    assert [(p[1].runtime, p[1].file) for p in pairs] == [
        ("openvino", "encoder.onnx"),
        ("pytorch", ""),
        ("onnxruntime", "encoder.onnx"),
    ]
    assert pairs[2][1].bundle == str(split_bundle.folder)


def test_a_rival_without_a_pair_is_refused(tiny_bundle):
    plan = Plan(ORT, ("encoder",))
    with pytest.raises(ConfigError, match="nothing to compare with 'litert'"):
        pairs_of(jobs_of([tiny_bundle], plan), ("litert",), plan)


def test_every_contender_says_how_it_is_opened():
    from samexport.benchmarks.contenders.torch_variants import MODES

    for contender in KNOWN.values():
        assert callable(pkgutil.resolve_name(contender.opener))
        assert not contender.prepare or callable(pkgutil.resolve_name(contender.prepare))
    assert {name for name in KNOWN if name.startswith("pytorch")} == set(MODES)


def of_file(bundle, sha256="1" * 64, **changes):
    weights = replace(bundle.manifest.weights, kind="checkpoint", source="mine.pt", seed=None, sha256=sha256)
    return replace(bundle, manifest=replace(bundle.manifest, weights=weights, **changes))


def test_rows_of_pytorch_need_the_weights_and_are_left_out_with_one_line(tiny_bundle):
    bundle, graphs = of_file(tiny_bundle), ("encoder", "decoder")
    for plan in (Plan(graphs=graphs), Plan(("all",), graphs)):
        assert "pytorch" not in {job.runtime for job in jobs_of([bundle], plan)}
        (line,) = left_out([bundle], plan)
        assert line == (
            "tiny: PyTorch leaves out encoder, decoder: the weights are mine.pt; give them with --checkpoint"
        )
        assert not_measured([bundle], plan, jobs_of([bundle], plan)) == []
    given = Plan(graphs=graphs, checkpoints=("mine.pt",))
    assert "pytorch" in {job.runtime for job in jobs_of([bundle], given)}
    demo = replace(bundle.manifest, weights=replace(bundle.manifest.weights, kind="demo"))
    assert left_out([replace(bundle, manifest=demo)], Plan()) == ()  # they are in the package
    assert left_out([bundle], given) == left_out([tiny_bundle], Plan()) == left_out([bundle], Plan(ORT)) == ()


def test_rows_of_pytorch_that_were_asked_for_by_name_and_cannot_be_are_told_for_each_bundle(tiny_bundle):
    plan = Plan(("onnxruntime", "pytorch"), ("encoder",))
    bundles = [tiny_bundle, of_file(tiny_bundle)]
    jobs = jobs_of(bundles, plan)
    assert [job.runtime for job in jobs] == ["onnxruntime", "pytorch", "onnxruntime"]
    ((job, why),) = not_measured(bundles, plan, jobs)
    assert (job.graph, job.runtime, job.source.weights) == ("encoder", "pytorch", "1" * 64)
    assert why == "the weights are mine.pt; give them with --checkpoint"
    assert left_out(bundles, plan) == ()


def test_the_official_weights_come_from_the_cache_and_are_downloaded_only_for_a_runtime_named(
    tiny_bundle, tmp_path, monkeypatch
):
    monkeypatch.setenv("SAMEXPORT_CACHE", str(tmp_path))
    source = find_model("tinyvit").source
    bundle = of_file(tiny_bundle, source.sha256, model="mobilesam.tinyvit")
    assert "mine.pt" in lacking(bundle, "encoder", Plan())
    assert lacking(bundle, "encoder", Plan(("pytorch",))) == ""
    (tmp_path / source.filename).write_bytes(b"")
    assert lacking(bundle, "encoder", Plan()) == ""
