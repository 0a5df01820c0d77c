"""The training loop at 64 pixels."""

import copy

import pytest
import torch
from torch import nn

from samexport.errors import ConfigError, FileError
from samexport.models.catalog import find_model
from samexport.models.loading import load_model
from samexport.training import demo, loop
from samexport.training.demo import draw_curves, train, write_weights
from samexport.training.loop import CPU_STAGES, GPU_STAGES, Stage, Trainer, TrainSettings, settings_for
from samexport.training.measure import measure
from samexport.training.prompts import corrections, first_prompts

TINY = find_model("test.tinyvit64")
STAGES = (Stage(0.5, 32, 4, 4, 1, 0.0, 2), Stage(0.5, 64, 2, 4, 2, 1.0, 4))


def settings(steps, stages=STAGES, **more):
    return TrainSettings(stages, steps=steps, **more)


def everything(trainer):
    tensors = {f"sam.{key}": value for key, value in trainer.sam.state_dict().items()}
    return tensors | {f"average.{key}": value for key, value in trainer.average.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(value.equal(other[key]) for key, value in one.items())


def test_losses_fall_on_scenes_that_stay_the_same(monkeypatch):
    stage = Stage(1.0, 32, 4, 4, 1, 0.0, 2)
    trainer = Trainer(TINY, settings(41, (stage,), seed=1, learning_rate=5e-3))
    batch = trainer._draw(0, stage)
    monkeypatch.setattr(trainer, "_draw", lambda step, stage: batch)
    found = [progress.losses for progress in trainer.run() if progress.losses]
    assert len(found) == 5
    assert found[-1]["mask"] < 0.4 * found[0]["mask"]
    assert found[-1]["best"] > 0.7 > 0.4 > found[0]["best"]


@pytest.mark.parametrize("stopped_after", [2, 3])
def test_a_run_that_was_stopped_and_carried_on_equals_one_that_was_not(stopped_after, tmp_path):
    """Across the border of the stages, which lies at step 3, and with another seed given, which is not taken."""
    whole = Trainer(TINY, settings(6, seed=5))
    for _ in whole.run():
        pass
    first = Trainer(TINY, settings(6, seed=5))
    run = first.run()
    for _ in range(stopped_after):
        next(run)
    first.save(tmp_path / "state.pt")
    run.close()
    second = Trainer(TINY, settings(6, seed=8))
    second.load(tmp_path / "state.pt")
    assert same(everything(second), everything(first))
    sizes = [progress.stage.size for progress in second.run()]
    assert sizes == [32] * (3 - stopped_after) + [64] * 3
    assert same(everything(second), everything(whole))
    assert (second.step, second.pictures) == (6, 3 * 4 + 3 * 2)
    assert not same(everything(second), everything(Trainer(TINY, settings(6, seed=5))))


@pytest.mark.parametrize("content", [b"", b"not a state", None])
def test_what_is_no_state_of_this_model_is_one_line(content, tmp_path):
    path = tmp_path / "state.pt"
    if content is None:
        torch.save({"sam": {"weight": torch.zeros(3)}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(FileError, match=r"state.pt is no state of this model: .*; leave --resume out"):
        Trainer(TINY, settings(1)).load(path)


def test_training_starts_from_weights_that_are_given():
    network, _ = load_model(TINY, random_seed=3)
    trainer = Trainer(TINY, settings(2), network.state_dict())
    wanted = network.state_dict()
    assert all(value.equal(wanted[key]) for key, value in trainer.sam.state_dict().items())
    assert all(value.equal(wanted[key]) for key, value in trainer.average.state_dict().items())


def test_a_seed_is_a_model():
    one, same_seed, other = (loop.new_model(TINY, seed).state_dict() for seed in (1, 1, 2))
    assert same(one, same_seed)
    matrix = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert not one[matrix].equal(other[matrix])
    assert 0.8 < float(one[matrix].std()) < 1.2


def test_a_step_with_gradients_that_are_not_finite_changes_no_weight(monkeypatch):
    trainer = Trainer(TINY, settings(1, STAGES[1:]))
    before = {key: value.clone() for key, value in trainer.sam.named_parameters()}
    honest = loop.losses

    def broken(logits, scores, soft):
        found = honest(logits, scores, soft)
        return loop.Losses(found.total * float("nan"), found.mask, found.score, found.single, found.best)

    monkeypatch.setattr(loop, "losses", broken)
    for _ in trainer.run():
        pass
    assert all(value.equal(before[key]) for key, value in trainer.sam.named_parameters())


def test_gradients_are_those_of_the_mean_loss_of_all_answers(monkeypatch):
    # sums that are rounded to bf16 in another order differ
    monkeypatch.setattr(loop, "fast", lambda device: torch.autocast(device.type, enabled=False))
    stage = Stage(1.0, 64, 2, 3, 2, 1.0, 4)
    trainer, other = (Trainer(TINY, settings(9, (stage,), seed=4)) for _ in range(2))
    trainer.step = 1  # two answers
    _, scenes, targets = trainer._draw(1, stage)
    cost = trainer._answers(scenes, targets, 2, torch.Generator().manual_seed(5))
    generator, soft = torch.Generator().manual_seed(5), targets.soft.flatten(0, 1)
    points, _ = first_prompts(targets.masks.flatten(0, 1), generator)
    with loop.fast(torch.device("cpu")):
        embeddings = loop.embed(other.sam, scenes.pictures, scenes.ids, TINY.frame)
        logits, scores = loop.decode(other.sam, embeddings, points, None)
        first = loop.losses(logits, scores, soft)
        found = logits[torch.arange(len(logits)), scores.argmax(1)].float().detach()
        points = points.with_point(*corrections(found, soft, generator))
        logits, scores = loop.decode(other.sam, embeddings, points, found[:, None].clamp(-32, 32))
        total = (first.total + loop.losses(logits, scores, soft).total) / 2
    total.backward()
    torch.testing.assert_close(cost.total, total.detach())
    pairs = zip(trainer.sam.parameters(), other.sam.parameters(), strict=True)
    gradients = [(one.grad, two.grad) for one, two in pairs if two.grad is not None]
    assert len(gradients) > 100
    for one, two in gradients:
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3 * float(two.abs().max()) + 1e-8)


def test_the_average_follows_the_weights():
    trainer = Trainer(TINY, settings(3))
    key = "mask_decoder.iou_token.weight"
    expected = trainer.sam.state_dict()[key].clone()
    for number, _ in enumerate(trainer.run()):
        # a step's number has grown when it is told
        keep = min(loop.EMA, (number + 1) / (number + 20))
        expected = keep * expected + (1 - keep) * trainer.sam.state_dict()[key]
    torch.testing.assert_close(trainer.average.state_dict()[key], expected)


def test_settling_measures_the_statistics_of_the_average_and_leaves_it_in_evaluation_mode():
    trainer = Trainer(TINY, settings(2))
    for _ in trainer.run():
        pass
    weights = {key: value.clone() for key, value in trainer.average.named_parameters()}
    norms = [m for m in trainer.average.modules() if isinstance(m, nn.BatchNorm2d)]
    first, inputs = norms[0], []
    handle = first.register_forward_pre_hook(lambda module, given: inputs.append(given[0].float()))
    trainer.settle(8)
    handle.remove()
    assert not any(module.training for module in trainer.average.modules())
    assert all(norm.momentum == 0.1 for norm in norms)
    assert len(inputs) == 4
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    variance = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs]).mean(0)
    torch.testing.assert_close(first.running_mean, mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(first.running_var, variance, rtol=1e-3, atol=1e-4)
    assert all(value.equal(weights[key]) for key, value in trainer.average.named_parameters())


def test_written_weights_are_a_checkpoint_in_half_precision_and_small_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PART", 900_000)
    sam = loop.new_model(TINY, 4).eval()
    paths = write_weights(sam, TINY, tmp_path)
    assert len(paths) > 2
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"demo.{n}.safetensors" for n in range(len(paths))]
    assert max(path.stat().st_size for path in paths) < 900_000 + 20_000
    network, info = load_model(TINY, paths)
    assert info.kind == "checkpoint"
    read = [key for key in sam.state_dict() if not key.startswith(TINY.unread) and "num_batches" not in key]
    assert len(read) > 100
    for key in read:
        torch.testing.assert_close(network.state_dict()[key], sam.state_dict()[key], rtol=2**-11, atol=2**-24)


def test_a_run_leaves_weights_log_curves_and_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_EVERY", 0.0)
    monkeypatch.setattr(demo, "measure", lambda sam, frame, size, scenes, device: measure(sam, frame, size, 1, device))
    monkeypatch.setattr(Trainer, "settle", lambda self: None)
    seen = []
    quality = train(TINY, settings(2), tmp_path, shown=seen.append)
    assert [progress.step for progress in seen] == [1, 2]
    assert 0 <= quality.box <= 1
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"demo.0.safetensors", "log.jsonl", "curves.png", "samples.png", "state.pt"}
    rows = [demo.json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [("mask" in row, row.get("final")) for row in rows] == [
        (True, None),
        (False, None),
        (False, None),
        (False, True),
    ]


def test_what_is_done_again_is_logged_once(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"step": 1, "mask": 2}\n{"step": 9, "mask": 1}\n{"step": 5, "final": true}\n{"step": 4, "mask": 1}\n'
    )
    demo._forget_after(5, log)
    assert log.read_text() == '{"step": 1, "mask": 2}\n{"step": 4, "mask": 1}\n'
    demo._forget_after(5, tmp_path / "absent.jsonl")


def test_stages_are_whole_trainings_and_fit_the_model():
    for device, stages in (("cuda", GPU_STAGES), ("cpu", CPU_STAGES)):
        assert sum(stage.share for stage in stages) == pytest.approx(1)
        assert [s.size for s in settings_for(1024, device, 9.0, None, 0).stages] == [s.size for s in stages]
        further = settings_for(1024, device, 9.0, None, 0, further=True)
        assert sum(stage.share for stage in further.stages) == pytest.approx(1)
        assert [s.size for s in further.stages] == [s.size for s in stages[-2:]]
        assert further.learning_rate < TrainSettings.learning_rate
    assert {s.size for s in settings_for(64, "cuda", 9.0, None, 0).stages} == {64}


@pytest.mark.parametrize("name", ["test.vit64", "vit_b"])
def test_an_encoder_for_one_size_alone_is_refused(name):
    with pytest.raises(ConfigError, match="cannot see small pictures, as training does; give --encoder tinyvit"):
        loop.new_model(find_model(name), 0)


def test_curves_of_a_log_without_a_check_can_be_drawn(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "seconds": 1, "mask": 2, "score": 1, "single": 0.1, "best": 0.2}\n')
    draw_curves(log, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_copy_of_the_average_is_no_part_of_training():
    trainer = Trainer(TINY, settings(1))
    other = copy.deepcopy(trainer.average)
    for _ in trainer.run():
        pass
    assert not any(p.requires_grad for p in trainer.average.parameters())
    assert not trainer.average.training
    assert not same(dict(other.named_parameters()), dict(trainer.average.named_parameters()))
