"""The loop: resume after a kill, Ctrl-C, a full disk, the verb; on a run of seconds."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning_fabric
import pytest
import torch
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning_fabric.plugins import MixedPrecision
from torch import Tensor, nn

from edgepose.calibration.dataset import open_dataset
from edgepose.runtime.cli import guarded
from edgepose.runtime.errors import EdgeposeError
from edgepose.training.average import Average
from edgepose.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from edgepose.training.families import course_of
from edgepose.training.families.course import Group
from edgepose.training.loop import CHECKPOINT, RECIPE, WEIGHTS, Stop, Trainer, precision_of, rate_at
from edgepose.training.models import build, load_published
from edgepose.training.models.weights import read_weights
from edgepose.training.order import _be_quiet
from edgepose.training.recipe import open_recipe
from edgepose.training.run import RESULT, train_and_score
from edgepose.training.sections import Recipe, Schedule, Teacher
from edgepose.training.verb_train import train

FAMILIES = ("qrpose_smoke", "sharpose_smoke")


def smoke(name: str = "qrpose_smoke", **schedule: Any) -> Recipe:
    recipe = open_recipe(name)
    return recipe.model_copy(update={"schedule": recipe.schedule.model_copy(update=schedule)})


def same(a: Path, b: Path) -> bool:
    first, second = read_weights(a), read_weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train_and_score(smoke(name), out)
    return out


def test_a_run_leaves_what_it_says(name: str, whole: Path) -> None:
    assert {CHECKPOINT, WEIGHTS, RECIPE, RESULT, "tensorboard"} == {p.name for p in whole.iterdir()}
    load_published(build(smoke(name).model), whole / WEIGHTS)
    assert open_recipe(str(whole / RECIPE)) == smoke(name)
    assert json.loads((whole / RESULT).read_text())["steps"] == 6
    assert any(whole.joinpath("tensorboard").iterdir())


def test_the_same_recipe_gives_the_same_weights(name: str, whole: Path, tmp_path: Path) -> None:
    train_and_score(smoke(name), tmp_path / "again")
    assert same(whole / WEIGHTS, tmp_path / "again" / WEIGHTS)
    other = smoke(name).model_copy(update={"seed": 1})
    train_and_score(other, tmp_path / "other")
    assert not same(whole / WEIGHTS, tmp_path / "other" / WEIGHTS)


def test_resume_after_a_kill_gives_the_weights_of_an_uninterrupted_run(
    name: str, whole: Path, tmp_path: Path, killed_run: Callable[[Recipe, Path, int], None]
) -> None:
    """Killed in step 5, after the checkpoint of step 4: bit for bit the same in the end."""
    out = tmp_path / "run"
    killed_run(smoke(name), out, 5)
    _, progress = load_checkpoint(out / CHECKPOINT)
    assert progress.step == 4
    train_and_score(smoke(name), out, resume=True)
    assert same(whole / WEIGHTS, out / WEIGHTS)
    assert same(whole / CHECKPOINT, out / CHECKPOINT)


def test_ctrl_c_saves_a_checkpoint_and_resume_goes_on(
    name: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal comes in step 3 (from 1); that step is finished, saved, and the exit code is 130."""
    learn = Trainer.learn

    def interrupted(self: Trainer, batch: Any) -> dict[str, float]:
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return learn(self, batch)

    out = tmp_path / "run"
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "learn", interrupted)
        assert guarded(lambda: train_and_score(smoke(name), out)) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert load_checkpoint(out / CHECKPOINT)[1].step == 3
    train_and_score(smoke(name), out, resume=True)
    assert same(whole / WEIGHTS, out / WEIGHTS)


class Line:
    """In place of a family's course: one layer that should say 0."""

    teacher = None

    def __init__(self, recipe: Recipe, told: int | None = None) -> None:
        self.recipe, self._told = recipe, told  # in which step somebody types Ctrl-C

    def fresh_model(self) -> nn.Module:
        return nn.Linear(3, 1)

    def begin(self, model: nn.Module) -> None: ...

    def groups(self, model: nn.Module) -> list[Group]:
        return [Group(params=list(model.parameters()), weight_decay=0.0, scale=1.0, orthogonal=0)]

    def batches(self, first: int) -> list[Any]:
        return [SimpleNamespace(ids=(0,))] * (self.recipe.schedule.steps - first)

    def terms(self, wrapped: nn.Module, batch: Any, step: int) -> dict[str, Tensor]:
        if step == self._told:
            os.kill(os.getpid(), signal.SIGINT)
        return {"zero": wrapped(torch.ones(1, 3)).square().mean()}


def line(out: Path, told: int | None = None, **changes: Any) -> Trainer:
    make: Any = lambda recipe, rank: Line(recipe, told)  # noqa: E731
    return Trainer(smoke().model_copy(update=changes), out, make)


def test_only_the_first_process_fails_when_told_to_stop(tmp_path: Path) -> None:
    """Another's failure would have Fabric kill the first one, which may still be writing."""
    other = line(tmp_path, told=2)
    other.first = False
    other.run()
    assert other.step == 3
    with pytest.raises(KeyboardInterrupt):
        line(tmp_path, told=2).run()


def test_the_recipe_has_the_last_word_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fabric's launcher of several processes shares the cores out, too."""
    monkeypatch.setattr(lightning_fabric.Fabric, "launch", lambda self: torch.set_num_threads(3))
    line(tmp_path, threads=2)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("seed", [0, 40244023, 10**30])
def test_any_seed_trains(seed: int, tmp_path: Path) -> None:
    trainer = line(tmp_path, seed=seed)
    trainer.run()
    assert trainer.step == 6


def test_half_floats_may_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fabric's own plugin on a CPU, from a scale that is too large: the first steps are left out."""
    real, scaler = lightning_fabric.Fabric, torch.amp.GradScaler("cpu", init_scale=2.0**20)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    monkeypatch.setattr(
        lightning_fabric, "Fabric", lambda **_: real(accelerator="cpu", devices=1, plugins=plugin)
    )
    trainer = line(tmp_path, precision="16-mixed", schedule=smoke(steps=12, clip=1.0).schedule)
    (batch,) = trainer.course.batches(11)
    before = trainer.model.state_dict()["weight"].clone()
    trainer.learn(batch)
    assert torch.equal(trainer.model.state_dict()["weight"], before)
    for _ in range(11):
        trainer.learn(batch)
    assert not torch.equal(trainer.model.state_dict()["weight"], before)


def test_resume_with_or_without_a_teacher_is_another_recipe(tmp_path: Path) -> None:
    trainer = line(tmp_path)
    taught = trainer.recipe.model_copy(update={"teacher": Teacher(weights="shipped")})
    for before, now, told in (
        (trainer.recipe, taught, "teacher.weights was None, is 'shipped'"),
        (taught, trainer.recipe, "teacher.weights was 'shipped', is None"),
    ):
        trainer.recipe = before
        trainer.save()
        trainer.recipe = now
        with pytest.raises(EdgeposeError, match=told):
            trainer.resume()


def test_nobody_to_score_is_said_before_the_training(tmp_path: Path) -> None:
    recipe = smoke()
    data = recipe.data.model_copy(update={"validation": "synthetic:count=2,seed=1,size=40"})
    with pytest.raises(EdgeposeError, match=r"size=40: nobody in its 2 pictures is labelled and 48 px high"):
        train_and_score(recipe.model_copy(update={"data": data}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_after_a_signal_interrupts_at_once_and_sigterm_does_not() -> None:
    with Stop.on_signal() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wanted
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second checkpoint does not fit: exit code 2, one sentence, the first checkpoint whole."""
    write, writes = Path.write_bytes, []

    def full(self: Path, data: Any) -> int:
        writes.append(self)
        if len(writes) == 3:  # checkpoint, weights, checkpoint
            write(self, bytes(data)[:1000])
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return write(self, data)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert guarded(lambda: train_and_score(smoke(), out)) == 2
    assert "disk is full" in capsys.readouterr().err
    assert load_checkpoint(out / CHECKPOINT)[1].step == 2
    assert {p.name for p in out.iterdir()} == {CHECKPOINT, WEIGHTS, RECIPE, "tensorboard"}


class NotANumber(Trainer):
    """A run whose step 5 loses its numbers in one of the pictures' pixels."""

    def learn(self, batch: Any) -> dict[str, float]:
        if self.step == 4:
            images = batch.images.float()
            images[1, 0, 0, 0] = torch.nan
            batch = batch._replace(images=images)
        return super().learn(batch)


def test_a_loss_that_is_no_number_stops_with_the_pictures_ids_and_the_checkpoint_before(
    name: str, whole: Path, tmp_path: Path
) -> None:
    recipe, out = smoke(name), tmp_path / "run"
    course = course_of(recipe)
    ids = list(course.batches(0))[4].ids
    assert len(ids) == recipe.schedule.batch
    dataset = open_dataset(recipe.data.train)
    assert set(ids) <= {dataset[index].image_id for index in range(len(dataset))}
    with pytest.raises(EdgeposeError, match="the loss of step 5 is no finite number") as caught:
        NotANumber(recipe, out).run()
    assert f"for pictures {', '.join(map(str, ids))} of synthetic:" in str(caught.value)
    assert load_checkpoint(out / CHECKPOINT)[1].step == 4
    assert all(tensor.isfinite().all() for tensor in read_weights(out / CHECKPOINT).values())
    train_and_score(recipe, out, resume=True)
    assert same(whole / WEIGHTS, out / WEIGHTS)


def test_another_run_is_not_overwritten_and_not_resumed_with_another_recipe(name: str, whole: Path) -> None:
    with pytest.raises(EdgeposeError, match="holds a training run already; add --resume"):
        train_and_score(smoke(name), whole)
    with pytest.raises(
        EdgeposeError, match=r"another recipe \(schedule\.learning_rate was 0\.002, is 0\.1\)"
    ):
        train_and_score(smoke(name, learning_rate=0.1), whole, resume=True)


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", "truncated", "weights"])
def test_what_is_no_checkpoint_is_refused(whole: Path, tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / CHECKPOINT
    if content is not None:
        good = (whole / CHECKPOINT).read_bytes()
        made = {"truncated": good[:9000], "weights": (whole / WEIGHTS).read_bytes()}
        path.write_bytes(made[content] if isinstance(content, str) else content)
    said = "no checkpoint to resume" if content is None else "damaged.*; remove it and start again"
    with pytest.raises(EdgeposeError, match=said):
        train_and_score(smoke(), tmp_path, resume=True)


def test_checkpoints_round_trip(tmp_path: Path) -> None:
    groups = {
        "model": {"a.weight": torch.randn(3, 2), "n": torch.tensor(4)},
        "ema": {"a.weight": torch.ones(3, 2)},
    }
    save_checkpoint(tmp_path / "c", groups, Progress(7, 1.5, "model: x\n"))
    loaded, progress = load_checkpoint(tmp_path / "c")
    assert progress == Progress(7, 1.5, "model: x\n")
    assert torch.equal(loaded["model"]["a.weight"], groups["model"]["a.weight"])
    assert loaded["model"]["n"] == 4


def test_a_tensor_of_two_names_is_saved_under_both(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    groups = {"model": {"a": shared, "b": shared, "part": shared[:1]}}
    save_checkpoint(tmp_path / "c", groups, Progress(0, 0.0, ""))
    loaded = load_checkpoint(tmp_path / "c")[0]["model"]
    assert loaded.keys() == groups["model"].keys()
    assert all(torch.equal(loaded[name], value) for name, value in groups["model"].items())


def test_the_average_is_the_closed_form() -> None:
    """Constant weights w after a start s: w + (s - w) * product of the decays."""
    model = torch.nn.Linear(1, 1, bias=False)
    average = Average(model, 0.9)
    start = float(model.weight.detach())
    with torch.no_grad():
        model.weight.fill_(2.0)
    left = 1.0
    for step in range(300):
        average.update(model, step)
        left *= min(0.9, (1 + step) / (10 + step))
    assert float(average.state["weight"]) == pytest.approx(2 + (start - 2) * left, abs=1e-6)


def test_the_rate_rises_and_falls() -> None:
    schedule = smoke(steps=1000, learning_rate=1.0, rise=0.1, final_rate=0.01).schedule
    rates = [rate_at(step, schedule) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(1.0) == rates[100]
    assert rates[550] == pytest.approx(0.505, abs=0.01)
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.floats(0, 1))
@example(34, 0.03)
def test_no_step_learns_faster_than_the_recipe_says(steps: int, rise: float) -> None:
    schedule = Schedule(steps=steps, learning_rate=1.0, rise=rise)
    assert max(rate_at(step, schedule) for step in range(steps)) <= 1.0


def test_the_rate_falls_to_tenths_where_the_recipe_says() -> None:
    schedule = smoke(steps=1000, learning_rate=1.0, rise=0.1, drops=(0.5, 0.75)).schedule
    rates = [rate_at(step, schedule) for step in (100, 499, 500, 749, 750, 999)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("cuda", "avx512_bf16", "amx", "expected"),
    [
        (False, False, False, "32-true"),
        (True, False, False, "bf16-mixed"),
        (False, True, False, "bf16-mixed"),
        (False, False, True, "bf16-mixed"),
    ],
)
def test_bf16_is_taken_where_it_is_fast(
    cuda: bool, avx512_bf16: bool, amx: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert precision_of(smoke()) == expected
    assert precision_of(smoke().model_copy(update={"precision": "16-mixed"})) == "16-mixed"


def test_the_verb_prints_figures(tmp_path: Path) -> None:
    run = CliRunner().invoke(train, ["qrpose_smoke", "--out", str(tmp_path / "run"), "--json"])
    assert run.exit_code == 0, run.output
    figures = json.loads(run.stdout)
    assert figures["model"] == "qrpose_tiny"
    assert Path(figures["weights"]).is_file()


SCRIPT = """
import sys, time
from edgepose.runtime.cli import guarded
from edgepose.training.loop import Trainer
from edgepose.training.verb_train import train
together = Trainer._together
def slow(self, stop):
    told = together(self, stop)
    time.sleep(7 * (told and self.first and self.recipe.processes > 1))
    return told
Trainer._together = slow
sys.exit(guarded(lambda: train.main(standalone_mode=False)))
"""  # the first process saves long after the other is done, and longer than Fabric waits to look at it


def stopped(recipe: Path, number: int, out: Path) -> list[str]:
    """The command of a real run, all of whose processes got a signal after the first checkpoint."""
    script = recipe.with_name("train.py")
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(recipe), "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while not (out / CHECKPOINT).exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    return command


def test_sigterm_to_all_processes_saves_a_checkpoint(tmp_path: Path) -> None:
    """As a service manager sends it: the workers, which read the pictures, get it too."""
    recipe, out = tmp_path / "one.yaml", tmp_path / "run"
    text = open_recipe("qrpose_smoke").to_yaml().replace("workers: 0", "workers: 1")
    recipe.write_text(
        text.replace("steps: 6", "steps: 6000").replace("checkpoint_steps: 2", "checkpoint_steps: 1")
    )
    stopped(recipe, signal.SIGTERM, out)
    assert 1 <= load_checkpoint(out / CHECKPOINT)[1].step < 6000


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_train_and_stop_together(family: str, tmp_path: Path) -> None:
    """A real Ctrl-C: both end, a checkpoint is there, resume reaches the end."""
    recipe, out = tmp_path / "two.yaml", tmp_path / "run"
    text = open_recipe(family).to_yaml().replace("processes: 1", "processes: 2")
    recipe.write_text(text.replace("steps: 6", "steps: 60"))
    command = stopped(recipe, signal.SIGINT, out)
    assert load_checkpoint(out / CHECKPOINT)[1].step < 60
    subprocess.run([*command, "--resume"], check=True, timeout=200, capture_output=True)
    assert load_checkpoint(out / CHECKPOINT)[1].step == 60


def test_a_worker_ends_when_its_own_process_says_so_alone() -> None:
    """Else a run that ends with a traceback would wait for it for ever."""
    ready = multiprocessing.Event()

    def wait() -> None:
        _be_quiet(0)
        ready.set()
        time.sleep(60)

    worker = multiprocessing.get_context("fork").Process(target=wait, daemon=True)
    worker.start()
    assert ready.wait(20)
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0
