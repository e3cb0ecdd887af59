"""The training loop: Lightning Fabric, a moving average of the weights, checkpoints, resume after a kill."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from rich.progress import Progress as ProgressBar
from torch import Tensor, nn

from edgepose.runtime.errors import EdgeposeError, require
from edgepose.runtime.progress import progress_bar
from edgepose.runtime.signals import handled
from edgepose.training.average import Average
from edgepose.training.checkpoint import Progress, load_checkpoint, save_checkpoint, save_tensors
from edgepose.training.families import course_of
from edgepose.training.families.course import Batch, Course
from edgepose.training.models import load_published, shipped_weights
from edgepose.training.models.sparsity import keep, masks_of
from edgepose.training.models.widths import Widths, to_metadata
from edgepose.training.optimizer import MOMENTS, Muon
from edgepose.training.recipe import parse_recipe
from edgepose.training.sections import Recipe, Schedule, Teacher

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
RECIPE = "recipe.yaml"


def rate_at(step: int, schedule: Schedule) -> float:
    """Learning rate of a step: a linear rise, then half a cosine, or tenths after the `drops`."""
    rise = max(1.0, schedule.rise * schedule.steps)
    if step < rise:
        return schedule.learning_rate * min(1.0, (step + 1) / rise)  # a rise may end within a step
    if schedule.drops is not None:
        return schedule.learning_rate * 0.1 ** sum(step >= drop * schedule.steps for drop in schedule.drops)
    done = (step - rise) / max(1.0, schedule.steps - rise)
    low = schedule.final_rate
    return schedule.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * done)) / 2)


@dataclass(slots=True)
class Stop:
    """Set by Ctrl-C or SIGTERM, read between two steps: no step is ever half done."""

    wanted: bool = False

    @classmethod
    @contextlib.contextmanager
    def on_signal(cls) -> Iterator[Stop]:
        """Handles both signals inside; Ctrl-C after one of them interrupts at once.

        Not SIGTERM: it comes twice where a whole group is told and who started us passes theirs on.
        """
        stop = cls()

        def handler(number: int, _: FrameType | None) -> None:
            if stop.wanted and number == signal.SIGINT:
                raise KeyboardInterrupt
            stop.wanted = True

        with handled(handler):
            yield stop


class Trainer:
    """One run of a recipe in one folder."""

    def __init__(
        self, recipe: Recipe, out: Path, make: Callable[[Recipe, int], Course[Any, Any]] = course_of
    ) -> None:
        """`make` gives the course of one process, by its rank."""
        fabric_module = require("lightning_fabric")
        self.recipe, self.out = recipe, out
        self.fabric = fabric_module.Fabric(
            devices=recipe.processes,
            strategy="ddp" if recipe.processes > 1 else "auto",
            precision=precision_of(recipe),
        )
        self.fabric.launch()
        if self.fabric.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, as convolutions have it anyway
        if recipe.threads:
            torch.set_num_threads(recipe.threads)  # launching several processes chooses a number, too
        torch.manual_seed(recipe.seed % (1 << 64))  # no more than torch takes
        self.first = self.fabric.global_rank == 0  # of the processes: the one that writes and prints
        self.course = make(recipe, self.fabric.global_rank)
        self.model = self.course.fresh_model()
        self.course.begin(self.model)
        self.widths: Widths = {}
        if recipe.initial is not None:
            self.widths = load_published(self.model, _weights(recipe.model, recipe.initial))
        self.masks = masks_of(self.model) if recipe.sparsity else {}
        keep(self.model, self.masks)
        if recipe.teacher is not None:
            self.course.teacher = self._teacher(recipe.teacher)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # half the time on CPUs
        self.step, self.seconds = 0, 0.0
        groups = cast(list[dict[str, Any]], self.course.groups(self.model))
        optimizer = Muon(groups, recipe.schedule.learning_rate)
        self.wrapped, self.optimizer = self.fabric.setup(self.model.train(), optimizer)
        self.average = Average(self.model, recipe.schedule.ema)

    def _teacher(self, section: Teacher) -> nn.Module:
        teacher = self.course.teacher_model()
        load_published(teacher, _weights(self.recipe.model, section.weights))
        frozen = teacher.eval().requires_grad_(False)
        frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return frozen.to(self.fabric.device)

    def resume(self) -> None:
        """Continue from the folder's checkpoint. Raises EdgeposeError when it is of another recipe."""
        groups, progress = load_checkpoint(self.out / CHECKPOINT)
        other = parse_recipe(progress.recipe, str(self.out / CHECKPOINT))
        if other != self.recipe:
            raise EdgeposeError(
                f"{self.out}: its checkpoint is of another recipe ({_difference(other, self.recipe)}); "
                f"resume with {self.out / RECIPE}, or choose another --out"
            )
        self.model.load_state_dict(groups["model"])
        self.average.load(groups["ema"])
        for name, parameter in self.model.named_parameters():
            found = {m: groups[m][name] for m in MOMENTS if name in groups.get(m, {})}
            if not found:  # it is frozen
                continue
            # In the parameter's own order of memory: AdamW's one call pairs numbers by where they lie.
            moments = {moment: torch.empty_like(parameter).copy_(value) for moment, value in found.items()}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(progress.step)), **moments}
        self.step, self.seconds = progress.step, progress.seconds

    def save(self) -> None:
        """Publish the checkpoint, and the averaged weights beside it."""
        if not self.first:
            return
        state = self.optimizer.state
        named = {name: p for name, p in self.model.named_parameters() if p in state}  # the others are frozen
        moments = {m: {name: state[p][m] for name, p in named.items() if m in state[p]} for m in MOMENTS}
        groups = {"model": self.model.state_dict(), "ema": self.average.state, **moments}
        progress = Progress(self.step, round(self.seconds, 1), self.recipe.to_yaml())
        save_checkpoint(self.out / CHECKPOINT, groups, progress)
        provenance = {"edgepose.model": self.recipe.model, "edgepose.step": str(self.step)}
        provenance |= to_metadata(self.widths)
        save_tensors(self.out / WEIGHTS, self.average.state, provenance)

    def learn(self, batch: Batch) -> dict[str, float]:
        """One step; the terms of its loss by name.

        Raises EdgeposeError naming the batch's pictures, before anything is learnt from them, when the loss
        is no finite number.
        """
        schedule, step = self.recipe.schedule, self.step
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(step, schedule) * group["scale"]
        torch.manual_seed(_mixed(self.recipe.seed, step, self.fabric.global_rank))
        terms = self.course.terms(self.wrapped, batch, step)
        total = torch.stack(list(terms.values())).sum()
        self._require_finite(terms, total, batch)
        self.optimizer.zero_grad()
        self.fabric.backward(total)
        if schedule.clip is not None:
            # Half floats overflow now and then: their optimiser leaves out that step, and lowers its scale.
            strict = self.recipe.precision != "16-mixed"
            self.fabric.clip_gradients(
                self.wrapped, self.optimizer, max_norm=schedule.clip, error_if_nonfinite=strict
            )
        self.optimizer.step()
        keep(self.model, self.masks)
        self.average.update(self.model, step)
        self.step += 1
        told = {"total": total, **terms}
        values = torch.stack([value.detach() for value in told.values()]).tolist()  # one wait for a GPU
        return dict(zip(told, values, strict=True))

    def _require_finite(self, terms: dict[str, Tensor], total: Tensor, batch: Batch) -> None:
        finite = bool(total.isfinite())
        if not self._together(not finite):
            return
        if finite:
            raise EdgeposeError(
                f"{self.out}: stopped: another process's loss is no finite number; see its message"
            )
        bad = ", ".join(
            f"{name} {float(value.detach()):g}" for name, value in terms.items() if not value.isfinite()
        )
        raise EdgeposeError(
            f"{self.out}: the loss of step {self.step + 1} is no finite number ({bad}) for pictures "
            f"{', '.join(map(str, batch.ids))} of {self.recipe.data.train}; mend or leave out the wrong, "
            f"or lower schedule.learning_rate; {CHECKPOINT} is as it was saved last"
        )

    def run(self, saved: Callable[[], None] = lambda: None) -> dict[str, float]:
        """All steps that are left; the last averages of the loss terms.

        `saved` is called in the first process whenever a checkpoint and the averaged weights are written.
        Raises KeyboardInterrupt after saving a checkpoint when Ctrl-C or SIGTERM asked to stop; in the first
        process alone: if another failed, Fabric would kill the first while it saves.
        """
        batches = self.course.batches(self.step)
        schedule = self.recipe.schedule
        recent: dict[str, float] = {}
        with Stop.on_signal() as stop, self._writer() as write, self._bar() as bar:
            task = bar.add_task("training", total=schedule.steps, completed=self.step)
            for batch in batches:
                began = time.perf_counter()
                terms = self.learn(batch)
                self.seconds += time.perf_counter() - began
                recent = {k: 0.95 * recent.get(k, v) + 0.05 * v for k, v in terms.items()}
                bar.update(task, advance=1, description=f"training, loss {recent['total']:.3f}")
                if self.step % schedule.log_steps == 0:
                    write(self.step, recent)
                if self._together(stop.wanted):
                    break
                if self.step % schedule.checkpoint_steps == 0:
                    self._save_and(saved)
            self._save_and(saved)
        if self.first and self.step < schedule.steps:
            raise KeyboardInterrupt
        return recent

    def _save_and(self, saved: Callable[[], None]) -> None:
        self.save()
        if self.first:
            saved()

    def _together(self, stop: bool) -> bool:
        """Whether any process has to stop: all must leave at the same step."""
        if self.recipe.processes == 1:
            return stop
        return bool(self.fabric.all_reduce(torch.tensor(float(stop)), reduce_op="sum") > 0)

    def _bar(self) -> ProgressBar:
        bar = progress_bar()
        bar.disable = bar.disable or not self.first
        return bar

    @contextlib.contextmanager
    def _writer(self) -> Iterator[Callable[[int, dict[str, float]], None]]:
        """To TensorBoard and to the log."""
        if not self.first:
            yield lambda step, terms: None
            return
        require("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step) as board:

            def write(step: int, terms: dict[str, float]) -> None:
                for name, value in terms.items():
                    board.add_scalar(f"loss/{name}", value, step)
                board.add_scalar("rate", rate_at(step, self.recipe.schedule), step)
                listed = " ".join(f"{name} {value:.3f}" for name, value in terms.items())
                log.info("step %d, %.0f s, %s", step, self.seconds, listed)

            yield write


def _mixed(*numbers: int) -> int:
    """A seed for torch, which takes 64 bits, of numbers of any size."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _weights(model: str, named: str) -> Path:
    return shipped_weights(model) if named == "shipped" else Path(named)


def precision_of(recipe: Recipe) -> str:
    """How Fabric computes: as the recipe says, or as this machine is fastest."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16-mixed" if torch.cuda.is_available() or _multiplies_bf16() else "32-true"


def _multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16; others emulate them."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _difference(before: Recipe, now: Recipe) -> str:
    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in values.items():
            result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return result

    old, new = flat(before.model_dump()), flat(now.model_dump())
    # A section that one of them has not, such as `teacher`, has no keys there.
    key = next(key for key in (*new, *old) if old.get(key) != new.get(key))
    return f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
