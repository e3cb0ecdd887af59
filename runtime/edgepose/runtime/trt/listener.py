"""What TensorRT says, kept: a failed build or load can then tell why."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)

_KEPT = 64  # a stream runs for months, and TensorRT may warn at every frame
_ERRORS = ("INTERNAL_ERROR", "ERROR")
_KEPT_SEVERITIES = (*_ERRORS, "WARNING")
_NO_MEMORY = ("out of memory", "outofmemory")
# Warnings, of which a builder gives many and succeeds; "insuficient" is TensorRT's.
_SHORT_OF_MEMORY = ("memory is insufficient", "insufficient memory", "insuficient memory")


@dataclass(slots=True)
class Said:
    """The last errors and warnings in the order they came, and whether memory ran out."""

    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT))
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT))

    def add(self, severity: str, text: str) -> None:
        """Keep a line by its severity's name."""
        if severity in _KEPT_SEVERITIES:
            self.lines.append(f"{severity}: {text}")
        if severity in _ERRORS:
            self.errors.append(text)

    def why(self) -> str:
        """The last errors in one line."""
        return "; ".join([*self.errors][-3:]) or "TensorRT gave no reason"

    def out_of_memory(self) -> bool:
        """Whether an error says that the GPU's memory was exhausted."""
        return _mentioned(self.errors, _NO_MEMORY)

    def short_of_memory(self) -> bool:
        """The same, or that a builder passed over what did not fit: then asked of one that found nothing."""
        return self.out_of_memory() or _mentioned(self.lines, _SHORT_OF_MEMORY)


def _mentioned(lines: Iterable[str], phrases: tuple[str, ...]) -> bool:
    return any(phrase in line.lower() for line in lines for phrase in phrases)


_hearing: list[Said] = []  # of whoever has an engine, or builds one


@contextmanager
def heard(said: Said) -> Iterator[trt.ILogger]:
    """TensorRT's logger, which tells `said` too inside.

    One for the whole process: TensorRT 10.16 says that it ignores a second one as long as anything made with
    the first is there, and it keeps a bare pointer to it.
    """
    import tensorrt as trt

    _hearing.append(said)
    try:
        yield _listener(trt.ILogger)
    finally:
        _hearing[:] = [other for other in _hearing if other is not said]


@functools.cache
def _listener(base: Any) -> Any:  # cached: it outlives whatever was made with it
    class Listener(base):
        def __init__(self) -> None:
            base.__init__(self)  # pybind11 insists on the direct call

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            # Errors reach the user as one sentence, from who asked TensorRT; with -v they are seen here.
            level = logging.INFO if severity.name in _KEPT_SEVERITIES else logging.DEBUG
            log.log(level, "%s: %s", severity.name, msg)
            for said in tuple(_hearing):
                said.add(severity.name, msg)

    return Listener()
