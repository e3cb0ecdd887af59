"""Ctrl-C and SIGTERM in other hands for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Both go to the handler inside, and afterwards where they went before. In the main thread alone."""
    before = {number: signal.signal(number, handler) for number in STOPPING}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def postponed(told: Callable[[], None]) -> Iterator[list[int]]:
    """Around foreign code that swallows what its callbacks raise: signals wait in the list until it is over.

    The first is `told`, and reaches at the end who would have had it; a second ends the process at once.
    Outside of the main thread, which has the signals, nothing is done.
    """
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if came:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        came.append(number)
        told()

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    try:
        with handled(note):
            yield came
    finally:
        if came:
            signal.raise_signal(came[0])
