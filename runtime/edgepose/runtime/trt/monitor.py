"""A build's progress as bars on stderr, where the release can tell it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from rich.progress import Progress, TaskID

log = logging.getLogger(__name__)


class Phases:
    """TensorRT's nested phases as bars; its threads call in any order."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def start(self, name: str, steps: int) -> None:
        """A phase of `steps` steps begins."""
        self._tasks[name] = self._bar.add_task(name, total=steps)

    def step(self, name: str, step: int) -> None:
        """Step `step`, counted from 0, is done."""
        if name in self._tasks:
            self._bar.update(self._tasks[name], completed=step + 1)

    def finish(self, name: str) -> None:
        """The phase is over, whatever its steps said."""
        if name in self._tasks:
            self._bar.remove_task(self._tasks.pop(name))


def monitor(phases: Phases, signals: Sequence[int]) -> Any:
    """A trt.IProgressMonitor that tells `phases`, and cancels once there are `signals` to stop.

    None before 10.0, which has none.
    """
    import tensorrt as trt

    base: Any = getattr(trt, "IProgressMonitor", None)
    if base is None:
        return None

    class Monitor(base):
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 insists on the direct call

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return not signals

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
