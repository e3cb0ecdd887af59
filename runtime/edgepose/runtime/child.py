"""A verb in a process of its own, as a user would type it; a signal ends it when it has saved its work."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from edgepose.runtime.errors import EdgeposeError, GateFailed, HardwareError, MissingLibrary
from edgepose.runtime.signals import handled

log = logging.getLogger(__name__)

ERRORS = {error.exit_code: error for error in (GateFailed, EdgeposeError, MissingLibrary, HardwareError)}
INTERRUPTED = 130


def command_of(*words: object) -> list[str]:
    """`edgepose VERB …` for this Python."""
    return [sys.executable, "-m", "edgepose.runtime.cli", *map(str, words)]


def run_verb(*words: object, may_fail: bool = False) -> str:
    """What a verb writes to stdout; its bars and words go where ours do. `may_fail`: at a gate of its own.

    Raises the error of its exit code, and KeyboardInterrupt when it or we were told to stop.
    """
    log.info("edgepose %s", " ".join(map(str, words)))
    code, output = waited_for(command_of(*words))
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code not in ((0, GateFailed.exit_code) if may_fail else (0,)):
        kind = ERRORS.get(code, EdgeposeError)
        raise kind(f"`edgepose {words[0]}` failed with exit code {code}; see above")
    return output


def waited_for(command: Sequence[str]) -> tuple[int, str]:
    """Exit code and stdout of a command, which is never killed.

    Raises KeyboardInterrupt when the command has ended after Ctrl-C or SIGTERM.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, left_to(process) as came:
        output, _ = process.communicate()
    if came:
        raise KeyboardInterrupt
    return process.returncode, output


@contextmanager
def left_to(process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """The signals that come inside: Ctrl-C, which the process hears as we do; SIGTERM, which it is sent."""
    came: list[int] = []

    def handler(number: int, _: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGTERM:
            process.send_signal(number)

    with handled(handler):
        yield came
