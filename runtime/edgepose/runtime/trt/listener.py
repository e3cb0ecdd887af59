"""What TensorRT says, kept: a failed build or load can then tell why."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)

_KEPT = 64  # a stream runs for months, and TensorRT may warn at every frame
_ERRORS = ("INTERNAL_ERROR", "ERROR")


@dataclass(slots=True)
class Said:
    """The last errors and warnings in the order they came, and whether memory ran out."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT))
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def add(self, severity: str, text: str) -> None:
        """Keep a line by its severity's name."""
        is_kept = severity in (*_ERRORS, "WARNING")
        # Errors reach the user as one sentence, from who asked TensorRT; with -v they are seen here as well.
        log.log(logging.INFO if is_kept else logging.DEBUG, "%s: %s", severity, text)
        if is_kept:
            self.lines.append(f"{severity}: {text}")
        if severity in _ERRORS:
            self.errors.append(text)

    def why(self) -> str:
        """The last errors in one line."""
        return "; ".join([*self.errors][-3:]) or "TensorRT gave no reason"

    def out_of_memory(self) -> bool:
        """Whether an error says that the GPU's memory was exhausted."""
        return any("out of memory" in text.lower() or "outofmemory" in text.lower() for text in self.errors)


def listener(said: Said) -> trt.ILogger:
    """A TensorRT logger that tells `said`. It must live as long as what was made with it."""
    import tensorrt as trt

    class Listener(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 insists on the direct call

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            said.add(severity.name, msg)

    return Listener()
