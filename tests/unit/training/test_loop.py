import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from export3d.errors import CheckpointError, ConfigError, MissingExtra, TrainingError
from export3d.training.loop import _Run, train
from export3d.training.loop_config import LoopConfig
from export3d.training.record import read_log
from export3d.training.schedule import ema_decay
from export3d.training.state import latest_state, load_state, states
from export3d.weights.file import load_weights, save_weights

pytest.importorskip("accelerate")

TINY = Path(__file__).with_name("tiny.py")


def assert_same_state(a: Path, b: Path) -> None:
    """Model, averaged model and optimiser agree bit for bit, and so does a second network."""
    one, two = load_state(a), load_state(b)
    assert (one.opponent is None) == (two.opponent is None)
    for left, right in (
        (one.model, two.model),
        (one.ema, two.ema),
        ((one.opponent or [{}])[0], (two.opponent or [{}])[0]),
    ):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)
    optimizers = [(one.optimizer, two.optimizer)]
    if one.opponent and two.opponent:
        optimizers.append((one.opponent[1], two.opponent[1]))
    for left, right in optimizers:
        assert left["param_groups"] == right["param_groups"]
        assert left["state"].keys() == right["state"].keys()
        for index, entries in left["state"].items():
            assert entries.keys() == right["state"][index].keys()
            assert all(torch.equal(entries[key], right["state"][index][key]) for key in entries)
    assert one.counters["images_seen"] == two.counters["images_seen"]
    assert one.counters["step"] == two.counters["step"]


# ---- stop and resume -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulate": 2}, {"weight_decay": 0.1, "decay_from": 0.5}, {"precision": "bf16"}],
    ids=["plain", "accumulated", "decayed", "bf16"],
)
def test_eight_steps_are_four_and_resume_and_four_bit_for_bit(tiny, tmp_path, changes):
    whole = train(tiny.TinyTask(), tmp_path / "whole", tiny.tiny_config(**changes))
    train(tiny.TinyTask(), tmp_path / "halves", tiny.tiny_config(**changes, max_images=16))
    torch.rand(100)
    second = train(tiny.TinyTask(), tmp_path / "halves", tiny.tiny_config(**changes))
    assert (whole.images_seen, whole.step, whole.reason) == (32, 8, "max_images")
    assert_same_state(whole.checkpoint, second.checkpoint)


def test_validation_and_sheets_do_not_disturb_training(tiny, tmp_path):
    quiet = train(tiny.TinyTask(), tmp_path / "quiet", tiny.tiny_config())
    task = tiny.TinyTask()
    busy = train(task, tmp_path / "busy", tiny.tiny_config(validate_every=4, sheet_every=8))
    assert task.validated == 8
    assert len(list((tmp_path / "busy" / "sheets").glob("*.png"))) == 5  # the first step, then every second
    assert_same_state(quiet.checkpoint, busy.checkpoint)


def test_the_same_seed_gives_the_same_losses_and_another_seed_others(tiny, tmp_path):
    losses = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        task = tiny.TinyTask()
        train(task, tmp_path / name, tiny.tiny_config(seed=seed))
        losses.append(task.first_losses)
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_every_step_draws_new_random_numbers(tiny, tmp_path):
    drawn = []
    task = tiny.TinyTask(hook=lambda images_seen: drawn.append(float(torch.rand(()))))
    train(task, tmp_path, tiny.tiny_config())
    assert len(set(drawn)) == len(drawn) == 8


def test_training_leaves_the_trained_weights_in_the_module(tiny, tmp_path):
    task = tiny.TinyTask()
    result = train(task, tmp_path, tiny.tiny_config())
    saved = load_state(result.checkpoint).model
    assert all(torch.equal(value, saved[name]) for name, value in task.module.state_dict().items())


def test_a_finished_run_started_again_changes_nothing(tiny, tmp_path):
    first = train(tiny.TinyTask(), tmp_path, tiny.tiny_config())
    again = train(tiny.TinyTask(), tmp_path, tiny.tiny_config())
    assert (again.images_seen, again.checkpoint, again.reason) == (32, first.checkpoint, "max_images")


def test_a_run_is_only_resumed_on_request(tiny, tmp_path):
    train(tiny.TinyTask(), tmp_path, tiny.tiny_config())
    with pytest.raises(ConfigError, match="already contains a run"):
        train(tiny.TinyTask(), tmp_path, tiny.tiny_config(), resume=False)


def test_settings_may_change_on_resuming(tiny, tmp_path):
    train(tiny.TinyTask(), tmp_path, tiny.tiny_config(max_images=16))
    result = train(tiny.TinyTask(), tmp_path, tiny.tiny_config(lr=5e-4, batch_size=8))
    groups = load_state(result.checkpoint).optimizer["param_groups"]
    assert {group["lr"] for group in groups} == {5e-4}
    assert (result.step, result.images_seen) == (6, 32)


def test_a_state_of_another_architecture_is_refused(tiny, tmp_path):
    train(tiny.TinyTask(), tmp_path, tiny.tiny_config())
    task = tiny.TinyTask()
    task.module.third = nn.Linear(8, 3)
    with pytest.raises(CheckpointError, match=r"third\.weight"):
        train(task, tmp_path, tiny.tiny_config())


def test_an_optimiser_state_of_other_parameters_is_refused(tiny, tmp_path):
    train(tiny.TinyTask(), tmp_path, tiny.tiny_config(max_images=16))
    task = tiny.TinyTask()
    task.module.third.requires_grad_(False)
    with pytest.raises(CheckpointError, match="optimiser state"):
        train(task, tmp_path, tiny.tiny_config())


# ---- why a run stops -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_nan_stops_the_run_and_keeps_the_last_good_state(tiny, tmp_path, poison):
    task = tiny.TinyTask(hook=lambda images_seen: poison if images_seen >= 20 else None)
    with pytest.raises(TrainingError, match=r"diverged after 20 images: .*nan.*checkpoint-00000016"):
        train(task, tmp_path, tiny.tiny_config(max_images=None))
    healed = train(tiny.TinyTask(), tmp_path, tiny.tiny_config())
    whole = train(tiny.TinyTask(), tmp_path / "whole", tiny.tiny_config())
    assert_same_state(healed.checkpoint, whole.checkpoint)


def test_a_nan_before_the_first_state_says_so(tiny, tmp_path):
    with pytest.raises(TrainingError, match="no state had been saved"):
        train(tiny.TinyTask(hook=lambda _: "loss"), tmp_path, tiny.tiny_config())
    assert latest_state(tmp_path / "checkpoints") is None


def test_losses_without_a_total_are_refused(tiny, tmp_path):
    task = tiny.TinyTask()
    task.losses = lambda batch, images_seen: {"error": task.module(batch["x"]).mean()}
    with pytest.raises(TrainingError, match="without 'total'"):
        train(task, tmp_path, tiny.tiny_config())


def test_a_frozen_module_is_refused(tiny, tmp_path):
    task = tiny.TinyTask()
    task.module.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing to train"):
        train(task, tmp_path, tiny.tiny_config())


def test_the_clock_stops_the_run_after_the_current_step_and_saves(tiny, tmp_path):
    task = tiny.TinyTask(slow_s=0.05)
    result = train(task, tmp_path, tiny.tiny_config(max_images=None, max_minutes=0.5 / 60, save_every=0))
    assert result.reason == "max_minutes"
    assert 0.5 / 60 <= result.minutes < 0.5
    assert result.images_seen == 4 * len(task.first_losses) > 0
    assert latest_state(tmp_path / "checkpoints") == result.checkpoint
    assert load_state(result.checkpoint).counters["images_seen"] == result.images_seen
    assert read_log(tmp_path / "log.jsonl")[-1]["images_seen"] == result.images_seen


def test_the_clock_is_that_of_this_start_and_the_minutes_add_up(tiny, tmp_path):
    config = tiny.tiny_config(max_images=None, max_minutes=0.3 / 60)
    first = train(tiny.TinyTask(slow_s=0.02), tmp_path, config)
    saved_minutes = load_state(first.checkpoint).counters["minutes"]
    second = train(tiny.TinyTask(slow_s=0.02), tmp_path, config)
    assert second.images_seen > first.images_seen
    assert second.minutes >= saved_minutes + 0.3 / 60


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_finishes_the_step_saves_and_ends_cleanly(tiny, tmp_path, name):
    number = getattr(signal, name, None)
    if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
        pytest.skip("this system has no such signal, or the tests run under nohup")

    def hook(images_seen):
        if images_seen == 12:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    result = train(tiny.TinyTask(hook=hook), tmp_path / "run", tiny.tiny_config(save_every=0))
    assert (result.reason, result.images_seen, result.exit_code) == ("interrupted", 16, 130)
    assert signal.getsignal(number) is before
    resumed = train(tiny.TinyTask(), tmp_path / "run", tiny.tiny_config())
    assert resumed.exit_code == 0
    whole = train(tiny.TinyTask(), tmp_path / "whole", tiny.tiny_config())
    assert_same_state(resumed.checkpoint, whole.checkpoint)


def test_a_second_interrupt_acts_at_once(tiny, tmp_path):
    def hook(images_seen):
        if images_seen == 12:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore interrupts
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tiny.TinyTask(hook=hook), tmp_path, tiny.tiny_config())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert load_state(latest_state(tmp_path / "checkpoints")).counters["images_seen"] == 8


def test_training_works_outside_the_main_thread(tiny, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(tiny.TinyTask(), tmp_path, tiny.tiny_config())))
    thread.start()
    thread.join()
    assert results[0].images_seen == 32


# ---- the step --------------------------------------------------------------------------------------------------------


def test_the_weights_average_follows_its_formula_and_buffers_are_copied(tiny, tmp_path):
    """A slow twin over the saved trajectory: ema <- decay * ema + (1 - decay) * weights."""
    config = tiny.tiny_config(save_every=4, keep=8)
    train(tiny.TinyTask(), tmp_path, config)
    trajectory = [load_state(path) for path in states(tmp_path / "checkpoints")]
    assert len(trajectory) == 8
    parameters = [name for name, _ in tiny.TinyTask().module.named_parameters()]
    average = {name: value.double() for name, value in tiny.TinyTask().module.state_dict().items()}
    for number, state in enumerate(trajectory):
        decay = ema_decay(4 * number, 4, halflife_images=16, rampup=0.5)
        for name in parameters:
            average[name] = decay * average[name] + (1 - decay) * state.model[name].double()
            torch.testing.assert_close(state.ema[name].double(), average[name], rtol=1e-5, atol=1e-6)
        assert torch.equal(state.ema["mean"], state.model["mean"])
        assert int(state.ema["seen"]) == 4 * (number + 1)
    assert not torch.equal(trajectory[-1].ema["first.weight"], trajectory[-1].model["first.weight"])


def test_without_a_half_life_the_average_is_the_weights(tiny, tmp_path):
    state = load_state(train(tiny.TinyTask(), tmp_path, tiny.tiny_config(ema_halflife_images=0)).checkpoint)
    assert all(torch.equal(state.ema[name], value) for name, value in state.model.items())


def test_the_gradient_is_clipped_and_its_norm_before_clipping_is_logged(tiny, tmp_path):
    task = tiny.TinyTask()
    train(task, tmp_path, tiny.tiny_config(grad_clip=1e-3))
    norm = torch.stack([p.grad.norm() for p in task.module.parameters()]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-2)
    assert min(line["grad_norm"] for line in read_log(tmp_path / "log.jsonl")) > 1e-2


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tiny, tmp_path):
    ends = []
    for accumulate in (1, 2, 4):
        config = tiny.tiny_config(accumulate=accumulate)
        ends.append(load_state(train(tiny.TinyTask(random=False), tmp_path / str(accumulate), config).checkpoint).model)
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ends[2][name], value, rtol=1e-4, atol=1e-6)


def test_the_loss_falls(tiny, tmp_path):
    """Constant targets can be learnt: the loop minimises the loss."""
    task = tiny.TinyTask(random=False)
    draw = task.batch
    task.batch = lambda *place: {**draw(*place), "y": torch.tensor([0.5, -0.5])}
    train(task, tmp_path, tiny.tiny_config(max_images=800, save_every=0))
    assert task.first_losses[-1] < 0.02 * task.first_losses[0]


def test_weight_decay_leaves_biases_alone(tiny, tmp_path):
    state = load_state(train(tiny.TinyTask(), tmp_path, tiny.tiny_config(weight_decay=0.3)).checkpoint)
    decays = [(len(group["params"]), group["weight_decay"]) for group in state.optimizer["param_groups"]]
    assert decays == [(3, 0.3), (2, 0.0)]


def test_bf16_computes_in_bf16_and_keeps_weights_in_float32(tiny, tmp_path):
    seen = []
    task = tiny.TinyTask()
    task.module.first.register_forward_hook(lambda module, given, out: seen.append(out.dtype))
    state = load_state(train(task, tmp_path, tiny.tiny_config(precision="bf16")).checkpoint)
    assert set(seen) == {torch.bfloat16}
    assert {value.dtype for value in state.model.values()} == {torch.float32, torch.int64}


@pytest.mark.slow
def test_channels_last_applies_to_kernels_and_images_and_not_on_disk(tiny, tmp_path):
    class Pictures(tiny.TinyTask):
        def __init__(self):
            torch.manual_seed(1)
            self.module, self.config, self.formats = nn.Conv2d(3, 4, 3), {}, []

        def batch(self, images_seen, batch_size, rank, world):
            return {"x": torch.randn(batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(images_seen))}

        def losses(self, batch, images_seen):
            self.formats.append(batch["x"].is_contiguous(memory_format=torch.channels_last))
            return {"total": self.module(batch["x"]).square().mean()}

    ends = []
    for channels_last in (False, True):
        task = Pictures()
        config = tiny.tiny_config(channels_last=channels_last)
        ends.append(load_state(train(task, tmp_path / str(channels_last), config).checkpoint).model)
        assert set(task.formats) == {channels_last}
        assert task.module.weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        train(
            Pictures(), tmp_path / f"cut {channels_last}", tiny.tiny_config(channels_last=channels_last, max_images=16)
        )
        resumed = train(Pictures(), tmp_path / f"cut {channels_last}", config).checkpoint
        assert torch.equal(load_state(resumed).model["weight"], ends[-1]["weight"])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-5)


def test_compiling_calls_the_module_and_changes_no_key(tiny, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    task = tiny.TinyTask()
    keys = list(task.module.state_dict())
    state = load_state(train(task, tmp_path, tiny.tiny_config(compile=True)).checkpoint)
    assert compiled == [task.module]
    assert sorted(state.model) == sorted(state.ema) == sorted(keys)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_end_step_is_called_once_per_step(tiny, tmp_path, accumulate):
    task = tiny.TinyTask()
    train(task, tmp_path, tiny.tiny_config(accumulate=accumulate))
    assert task.steps_ended == 8


# ---- two networks against each other ---------------------------------------------------------------------------------


def duel(tiny, run_dir, task=None, **changes):
    task = task or tiny.TinyDuel()
    return train(task, run_dir, tiny.tiny_config(**changes), opponent=task.opponent)


@pytest.mark.parametrize("stop", [8, 16, 20])
def test_a_duel_resumes_bit_for_bit_also_between_two_lazy_steps(tiny, tmp_path, stop):
    whole = duel(tiny, tmp_path / "whole")
    first = duel(tiny, tmp_path / "halves", max_images=stop)
    assert load_state(first.checkpoint).opponent is not None
    torch.rand(100)
    task = tiny.TinyDuel()
    second = duel(tiny, tmp_path / "halves", task)
    assert_same_state(whole.checkpoint, second.checkpoint)
    assert task.opponent.steps == list(range(stop // 4, 8))


def test_both_networks_are_updated_and_neither_affects_the_others_gradient(tiny, tmp_path):
    """A slow twin: two optimisers by hand, each with the gradient of its own loss alone."""
    given = {"grad_clip": None, "warmup_images": 0, "max_images": 16, "precision": "fp32"}
    result = duel(tiny, tmp_path, tiny.TinyDuel(random=False), **given)
    twin = tiny.TinyDuel(random=False)
    own = torch.optim.AdamW(twin.module.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    other = torch.optim.AdamW(twin.opponent.module.parameters(), lr=2e-2, betas=(0.0, 0.99), weight_decay=0.0)
    for step in range(4):
        batch = twin.batch(4 * step, 4, 0, 1)
        mine = torch.autograd.grad(twin.losses(batch, 4 * step)["total"], list(twin.module.parameters()))
        theirs = torch.autograd.grad(
            twin.opponent.losses(batch, step)["total"], list(twin.opponent.module.parameters())
        )
        for optimizer, module, grads in ((own, twin.module, mine), (other, twin.opponent.module, theirs)):
            for parameter, grad in zip(module.parameters(), grads):
                parameter.grad = grad
            optimizer.step()
    state = load_state(result.checkpoint)
    for found, wanted in (
        (state.model, twin.module.state_dict()),
        (state.opponent[0], twin.opponent.module.state_dict()),
    ):
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_an_opponent_at_rest_leaves_the_task_alone(tiny, tmp_path):
    """If the task's loss ignores the opponent, its numbers are those of a run without one."""
    task = tiny.TinyTask()
    task.opponent = tiny.TinyOpponent()
    task.opponent.shown = torch.zeros(4, 2)
    beside = duel(tiny, tmp_path / "beside", task)
    alone = train(tiny.TinyTask(), tmp_path / "alone", tiny.tiny_config())
    one, two = load_state(beside.checkpoint), load_state(alone.checkpoint)
    assert all(torch.equal(one.model[name], value) for name, value in two.model.items())


def test_accumulated_parts_of_a_duel_give_the_gradient_of_the_whole_batch(tiny, tmp_path):
    ends = []
    for accumulate in (1, 2):
        result = duel(tiny, tmp_path / str(accumulate), tiny.TinyDuel(random=False), accumulate=accumulate)
        ends.append(load_state(result.checkpoint).opponent[0])
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-6)


def test_both_gradients_are_clipped_each_by_its_own_norm(tiny, tmp_path):
    task = tiny.TinyDuel()
    duel(tiny, tmp_path, task, grad_clip=1e-3)
    for module in (task.module, task.opponent.module):
        norm = torch.stack([p.grad.norm() for p in module.parameters()]).norm().item()
        assert norm == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_a_nan_of_the_opponent_stops_the_run_and_keeps_the_last_good_state(tiny, tmp_path, poison):
    task = tiny.TinyDuel(against=lambda step: poison if step >= 5 else None)
    with pytest.raises(TrainingError, match=r"diverged after 20 images: opponent .*nan.*checkpoint-00000016"):
        duel(tiny, tmp_path / "run", task, max_images=None)
    healed = duel(tiny, tmp_path / "run")
    assert_same_state(healed.checkpoint, duel(tiny, tmp_path / "whole").checkpoint)


def test_runs_with_and_without_an_opponent_do_not_resume_each_other(tiny, tmp_path):
    duel(tiny, tmp_path / "two", max_images=16)
    with pytest.raises(CheckpointError, match="with a second network and cannot resume without one"):
        train(tiny.TinyTask(), tmp_path / "two", tiny.tiny_config())
    train(tiny.TinyTask(), tmp_path / "one", tiny.tiny_config(max_images=16))
    with pytest.raises(CheckpointError, match="without a second network and cannot resume with one"):
        duel(tiny, tmp_path / "one")


def test_the_log_has_the_opponents_figures_and_a_lazy_term_is_a_mean_of_the_steps_that_have_it(tiny, tmp_path):
    duel(tiny, tmp_path / "each")
    duel(tiny, tmp_path / "all", log_every=32)
    each, last = read_log(tmp_path / "each" / "log.jsonl"), read_log(tmp_path / "all" / "log.jsonl")[-1]
    assert all(line["opponent"]["losses"].keys() >= {"real", "fake", "total"} for line in each)
    assert ["lazy" in line["opponent"]["losses"] for line in each] == [step % 3 == 0 for step in range(8)]
    assert each[-1]["opponent"]["lr"] == 2e-2
    assert "adversarial" in each[-1]["losses"]
    lazy = [line["opponent"]["losses"]["lazy"] for line in each[1:] if "lazy" in line["opponent"]["losses"]]
    assert last["opponent"]["losses"]["lazy"] == pytest.approx(sum(lazy) / len(lazy))
    config = json.loads((tmp_path / "each" / "config.json").read_text())
    assert config["opponent"]["lr"] == 2e-2
    assert config["opponent"]["parameters"] == 25


# ---- spikes ----------------------------------------------------------------------------------------------------------


def spiking(tiny, spikes):
    """A task whose loss is a thousand times its usual value in the steps `spikes`."""
    task = tiny.TinyTask()
    losses = task.losses

    def spiked(batch, images_seen):
        terms = losses(batch, images_seen)
        return {**terms, "total": terms["total"].abs() * 0.0 + (1000.0 if images_seen // 4 in spikes else 1.0)}

    task.losses = spiked
    return task


@pytest.mark.slow
def test_a_loss_spike_is_logged_and_training_continues(tiny, tmp_path, caplog):
    result = train(spiking(tiny, {25, 30, 31}), tmp_path, tiny.tiny_config(max_images=160, log_every=0))
    assert result.images_seen == 160
    spikes = [line for line in read_log(tmp_path / "log.jsonl") if line["kind"] == "spike"]
    assert [line["images_seen"] for line in spikes] == [104, 124, 128]
    assert spikes[0]["losses"]["total"] == 1000.0
    assert spikes[0]["usual"] == 1.0
    assert [r.getMessage() for r in caplog.records if "spike" in r.getMessage()] == [
        "loss spike after 104 images: total 1000, usually 1",
        "loss spike after 124 images: total 1000, usually 1",
    ]


def test_a_loss_that_stays_far_above_its_usual_value_stops_the_run(tiny, tmp_path):
    task = spiking(tiny, range(30, 1000))
    match = (
        r"diverged after 320 images: total 1000, more than 3 times its usual value 1 for 50 steps; .*checkpoint-00000"
    )
    with pytest.raises(TrainingError, match=match):
        train(task, tmp_path, tiny.tiny_config(max_images=None, save_every=100))
    assert latest_state(tmp_path / "checkpoints") is not None


# ---- what a run leaves -----------------------------------------------------------------------------------------------


def test_every_log_line_has_its_figures(tiny, tmp_path):
    train(tiny.TinyTask(), tmp_path, tiny.tiny_config(log_every=8, validate_every=16))
    lines = read_log(tmp_path / "log.jsonl")
    training = [line for line in lines if line["kind"] == "train"]
    assert [line["images_seen"] for line in training] == [4, 8, 16, 24, 32]
    for line in training:
        assert line["losses"].keys() == {"total", "error"}
        assert all(math.isfinite(line[name]) for name in ("minutes", "lr", "grad_norm", "images_per_second"))
    assert [line["lr"] for line in training] == [1e-5, 5e-3, 1e-2, 1e-2, 1e-2]
    validations = [line for line in lines if line["kind"] == "validation"]
    assert [line["images_seen"] for line in validations] == [16, 32]
    assert validations[0]["figures"]["noise"] == validations[1]["figures"]["noise"]  # seeded: figures can be compared


def test_a_log_line_is_the_mean_since_the_line_before(tiny, tmp_path):
    task = tiny.TinyTask()
    train(task, tmp_path, tiny.tiny_config(log_every=16))
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["images_seen"] for line in lines] == [4, 16, 32]
    assert lines[1]["losses"]["error"] == pytest.approx(sum(task.first_losses[1:4]) / 3)


def test_a_resumed_log_has_no_line_twice(tiny, tmp_path):
    task = tiny.TinyTask(hook=lambda images_seen: "loss" if images_seen >= 20 else None)
    with pytest.raises(TrainingError):
        train(task, tmp_path, tiny.tiny_config())
    assert read_log(tmp_path / "log.jsonl")[-1]["images_seen"] == 20
    train(tiny.TinyTask(), tmp_path, tiny.tiny_config())
    assert [line["images_seen"] for line in read_log(tmp_path / "log.jsonl")] == list(range(4, 33, 4))


def test_the_resolved_configuration_and_command_are_written(tiny, tmp_path):
    train(tiny.TinyTask(), tmp_path, tiny.tiny_config(), command=["export3d", "train", "my data"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["loop"]["batch_size"] == 4
    assert config["task"] == {"width": 8}
    assert config["precision"] == "fp32"
    assert (tmp_path / "command.txt").read_text() == "export3d train 'my data'\n"


def test_only_the_last_states_are_kept(tiny, tmp_path):
    train(tiny.TinyTask(), tmp_path, tiny.tiny_config(keep=3, save_every=4))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["checkpoint-00000024", "checkpoint-00000028", "checkpoint-00000032"]


def test_a_state_becomes_weights_that_can_be_released(tiny, tmp_path):
    """Averaged weights are released in half precision, with the configuration that rebuilds the module."""
    state = load_state(train(tiny.TinyTask(), tmp_path / "run", tiny.tiny_config()).checkpoint)
    path = save_weights(
        tmp_path / "w.safetensors", state.ema, state.config["task"], state.counters, dtype=torch.float16
    )
    tensors, config, info = load_weights(path)
    assert config == {"width": 8}
    assert info["images_seen"] == 32
    assert torch.equal(tensors["first.weight"], state.ema["first.weight"].half())


def test_the_progress_bar_shows_images_and_losses(tiny, tmp_path, capsys):
    train(tiny.TinyTask(), tmp_path, tiny.tiny_config(progress=True))
    shown = capsys.readouterr().err
    assert "32/32" in shown
    assert "img" in shown
    assert "total=" in shown


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"batch_size": 6, "accumulate": 4}, "multiple of accumulate"),
        ({"batch_size": 0}, "batch_size"),
        ({"save_every": -1}, "save_every must not be negative"),
        ({"max_minutes": 0.0}, "max_minutes must be positive"),
        ({"max_minutes": math.nan}, "max_minutes must be positive"),
        ({"lr": 0.0}, "lr"),
        ({"keep": 0}, "keep"),
        ({"decay_from": 1.0}, "decay_from"),
        ({"decay": "images", "max_images": None}, "set max_images"),
        ({"decay": "clock"}, "set max_minutes"),
    ],
)
def test_settings_that_cannot_work_name_the_remedy(changes, remedy):
    with pytest.raises(ConfigError, match=remedy):
        LoopConfig(**changes)


def test_a_decay_over_images_reaches_its_end(tiny, tmp_path):
    train(tiny.TinyTask(), tmp_path, tiny.tiny_config(decay="images", final_lr_ratio=0.1, warmup_images=0))
    rates = [line["lr"] for line in read_log(tmp_path / "log.jsonl")]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1e-2
    assert 1e-3 < rates[-1] < 2e-3


def test_without_accelerate_the_remedy_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtra, match=r"pip install -c constraints.txt '\.\[train\]'"):
        train(tiny.TinyTask(), tmp_path, tiny.tiny_config())


# ---- several processes -----------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    source = str(Path(__file__).parents[3] / "src")
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("against", [False, True], ids=["alone", "duel"])
def test_two_processes_train_as_one(tiny, tmp_path, against):
    task = (tiny.TinyDuel if against else tiny.TinyTask)(random=False)
    alone = train(task, tmp_path / "alone", tiny.tiny_config(), opponent=getattr(task, "opponent", None))
    command = [sys.executable, str(TINY), str(tmp_path / "pair"), json.dumps({"random": False, "duel": against}), "2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["max_images 32 0", "max_images 32 1"]
    one, two = load_state(alone.checkpoint), load_state(latest_state(tmp_path / "pair" / "checkpoints"))
    assert two.config["processes"] == 2
    assert (one.opponent is not None) == (two.opponent is not None) == against
    for name, value in one.opponent[0].items() if one.opponent else ():
        torch.testing.assert_close(two.opponent[0][name], value, rtol=1e-4, atol=1e-6)
    for name, value in one.model.items():
        torch.testing.assert_close(two.model[name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(two.ema[name], one.ema[name], rtol=1e-4, atol=1e-6)
    mean = [line["losses"]["total"] for line in read_log(tmp_path / "alone" / "log.jsonl")]
    assert [line["losses"]["total"] for line in read_log(tmp_path / "pair" / "log.jsonl")] == pytest.approx(
        mean, rel=1e-4
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("accumulate", "processes", "channels_last"), [(2, 1, False), (1, 2, True), (2, 2, False)])
def test_phase_one_is_the_same_in_parts_and_processes(tiny, tmp_path, accumulate, processes, channels_last):
    """With ray jitter, augmentation and the tri-plane EMA: the losses of every step, and the final buffers."""
    settings = {"lr": 1e-3, "batch_size": 8, "max_images": 48, "log_every": 8, "channels_last": channels_last}
    whole = train(tiny.pairs(), tmp_path / "whole", tiny.tiny_config(**settings))
    given = json.dumps({**settings, "pairs": True, "accumulate": accumulate})
    command = [sys.executable, str(TINY), str(tmp_path / "parts"), given, str(processes)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("whole", "parts")]
    assert len(logs[0]) == len(logs[1]) == 6
    for one, two in zip(*logs):
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    one, two = load_state(whole.checkpoint), load_state(latest_state(tmp_path / "parts" / "checkpoints"))
    name = "generator.average.value"
    assert one.model[name].abs().max() > 1e-4
    torch.testing.assert_close(two.model[name], one.model[name], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_state(tiny, tmp_path):
    """kill -9 during training, then resume: the result is that of a run that was never killed."""
    command = [sys.executable, str(TINY), str(tmp_path / "run"), json.dumps({"max_images": None, "slow_s": 0.02})]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(6000):
            if latest_state(tmp_path / "run" / "checkpoints") is not None:
                break
            assert process.poll() is None
            threading.Event().wait(0.01)
    finally:
        process.kill()
        process.wait()
    reached = load_state(latest_state(tmp_path / "run" / "checkpoints")).counters["images_seen"]
    config = tiny.tiny_config(max_images=reached + 16)
    resumed = train(tiny.TinyTask(), tmp_path / "run", config)
    whole = train(tiny.TinyTask(), tmp_path / "whole", config)
    assert_same_state(resumed.checkpoint, whole.checkpoint)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_next_batch_is_drawn_before_the_figures_are_read(tiny, tmp_path, monkeypatch, accumulate):
    events, finite = [], _Run._refuse_non_finite

    class Task(tiny.TinyTask):
        def batch(self, images_seen, batch_size, rank, world):
            events.append(images_seen)
            return super().batch(images_seen, batch_size, rank, world)

    monkeypatch.setattr(_Run, "_refuse_non_finite", lambda *given: (events.append("read"), finite(*given))[1])
    train(Task(), tmp_path, tiny.tiny_config(max_images=12, accumulate=accumulate))
    alone = [0, 4, "read", 8, "read", "read"]
    assert events == (alone if accumulate == 1 else [0, 2, 4, "read", 6, 8, "read", 10, "read"])


def test_averaging_the_weights_takes_two_operators(tiny, tmp_path):
    class Calls(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.found = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.found.append(func.__name__)
            return func(*args, **(kwargs or {}))

    config = tiny.tiny_config(batch_size=4, ema_halflife_images=2, ema_rampup=0.5)
    run = _Run(tiny.TinyTask(), None, tmp_path, config, True, None)
    for images_seen, first, part in ((0, "_foreach_copy_.default", 1.0), (400, "_foreach_lerp_.Scalar", 0.75)):
        with torch.no_grad():
            for value in run.module.state_dict().values():
                value.add_(1)
            wanted = [a.lerp(v, part) for a, v in zip(run.ema.parameters(), run.module.parameters())]
        run.images_seen = images_seen
        with Calls() as calls:
            run._average_weights()
        assert calls.found == [first, "_foreach_copy_.default"]
        assert all(torch.equal(a, w) for a, w in zip(run.ema.parameters(), wanted))
        assert all(torch.equal(a, b) for a, b in zip(run.ema.buffers(), run.module.buffers()))
