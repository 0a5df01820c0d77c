import pytest

from samexport.benchmarks import plan as plan_module
from samexport.benchmarks.contenders.known import KNOWN
from samexport.benchmarks.plan import Plan, jobs_of, pairs_of
from samexport.errors import ConfigError
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
    assert {"onnxruntime", "openvino-bf16", "pytorch", "pytorch-compile"} <= names
    assert not names & {"openvino", "pytorch-cuda", "onnxruntime-basic", "litert"}


def test_baselines_run_all_prompts_at_once_and_one_by_one(tiny_bundle, plain_bundle):
    jobs = jobs_of([tiny_bundle], Plan(ORT, ("decoder",), prompts=(1, 4), baselines=(plain_bundle,)))
    assert brief(jobs)[2:] == [
        ("decoder", "plain", 1, 0),
        ("decoder", "plain", 4, 0),
        ("decoder", "plain", 4, 1),
    ]


def test_tasks_are_jobs_too(tiny_bundle):
    jobs = jobs_of([tiny_bundle], Plan(("onnxruntime", "pytorch"), ("encoder",), tasks=("one click", "64 boxes")))
    assert [(j.graph, j.runtime, j.prompts) for j in jobs if not j.file and j.runtime != "pytorch"] == [
        ("one click", "onnxruntime", 1),
        ("64 boxes", "onnxruntime", 64),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtimes": ("tensorflow",)}, "no runtime is called 'tensorflow'; known: onnxruntime"),
        ({"tasks": ("dance",)}, "no task is called 'dance'"),
        ({"prompts": (0,)}, "at least 1"),
        ({"threads": ()}, "at least 1"),
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
    from samexport.benchmarks.contenders.known import resolve
    from samexport.benchmarks.contenders.torch_variants import MODES

    for contender in KNOWN.values():
        assert callable(resolve(contender.opener))
        assert not contender.prepare or callable(resolve(contender.prepare))
    assert {name for name in KNOWN if name.startswith("pytorch")} == set(MODES)
