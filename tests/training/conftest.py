"""Training tests run on one thread and from one seed: the same every time, and no quarrel over the cores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgepose.training.loop import Trainer
from edgepose.training.run import train_and_score
from edgepose.training.sections import Recipe


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours may handle it."""


@pytest.fixture(autouse=True)
def calm() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def killed_run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe, Path, int], None]:
    """Runs a recipe in a folder until it is killed at the beginning of a step, counted from 0."""

    def run(recipe: Recipe, out: Path, step: int) -> None:
        learn = Trainer.learn

        def dies(self: Trainer, batch: Any) -> dict[str, float]:
            if self.step == step:
                raise Killed
            return learn(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "learn", dies)
            with pytest.raises(Killed):
                train_and_score(recipe, out)

    return run
