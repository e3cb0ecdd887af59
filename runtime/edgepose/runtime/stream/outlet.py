"""Pose lines to a file or a pipe by a thread of its own, so that a slow reader never holds up the camera."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import click

from edgepose.runtime.errors import EdgeposeError

_WAITING = 1000  # lines that may wait for the reader; then the oldest is dropped
STDOUT = "-"


class LineOutlet:
    """Writes whole lines in order. `dropped` counts those that their reader did not take.

    Not through a draft: a log is read while it grows; it has whole lines but for a full disk.
    """

    def __init__(self, target: str) -> None:
        """`target` is a path (replaced when it exists) or `-` for standard output."""
        self.dropped = 0
        self.error: OSError | None = None  # stopped the writing; that of the last line is known after `close`
        self._name = "standard output" if target == STDOUT else target
        self._file = _standard_output() if target == STDOUT else _create(target)
        self._lines: deque[str] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Leave a line without its newline. Raises the OSError that stopped the writing, if one did."""
        if self.error:
            raise self.error
        with self._changed:
            if len(self._lines) >= _WAITING:
                self._lines.popleft()
                self.dropped += 1
            self._lines.append(line)
            self._changed.notify()

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is waiting, for `timeout_s` at most."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)
        self.dropped += len(self._lines)

    def _run(self) -> None:
        try:
            self._write_lines()
        except OSError as error:
            error.filename = self._name
            self.error = error

    def _write_lines(self) -> None:
        try:
            while (line := self._next()) is not None:
                self._write(line)
        finally:
            os.close(self._file)  # a network's disk may be full only here

    def _write(self, line: str) -> None:
        try:
            _write_all(self._file, line.encode() + b"\n")
        except OSError:
            with self._changed:
                self.dropped += 1
            raise

    def _next(self) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closed)
            return self._lines.popleft() if self._lines else None


def _standard_output() -> int:
    if sys.stdout is None:  # so Python says that it was closed; its number may be another file's meanwhile
        raise EdgeposeError("--poses -: standard output is closed; open it, or give a path")
    return os.dup(1)


def _create(target: str) -> int:
    try:
        return os.open(Path(target), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError as error:
        raise EdgeposeError(
            f"--poses {target}: cannot be written ({error.strerror}); give another path"
        ) from error


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


@contextlib.contextmanager
def outlet_of(target: str | None) -> Iterator[LineOutlet | None]:
    """What `--poses` names, while the block lasts; None for nothing.

    Raises the OSError that stopped the writing, but for a reader of `| head` that has seen enough.
    """
    if not target:
        yield None
        return
    outlet = LineOutlet(target)
    try:
        yield outlet
    finally:
        outlet.close()
    if outlet.error and not isinstance(outlet.error, BrokenPipeError):
        raise outlet.error


def say(text: str, err: bool) -> None:
    """To whoever reads it: that nobody does is no fault of the stream."""
    try:
        click.echo(text, err=err)
    except BrokenPipeError:
        # Python writes at its end what could not be written here, and would end with 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), (sys.stderr if err else sys.stdout).fileno())
