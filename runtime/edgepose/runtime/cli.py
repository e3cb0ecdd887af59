"""The command `edgepose VERB`: one table of verbs, each imported only when it is asked for."""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib.metadata import version
from types import FrameType
from typing import Any, NamedTuple

import click

from edgepose.runtime.errors import DISK_FULL, SOURCE, EdgeposeError, missing


class Verb(NamedTuple):
    """Where a verb lives and its line in `edgepose --help`."""

    target: str  # "module:click command"
    help: str


# In the order of the work. A verb stands here when it works; there are no stubs.
VERBS = {
    "demo": Verb("edgepose.export.verb_demo:demo", "Run the whole chain on this machine and report."),
    "doctor": Verb(
        "edgepose.runtime.verb_doctor:doctor", "Say what this machine can do, and what to install."
    ),
    "train": Verb("edgepose.training.verb_train:train", "Train a model from a recipe."),
    "calibrate": Verb("edgepose.calibration.verb_calibrate:calibrate", "Choose or audit a calibration set."),
    "compress": Verb("edgepose.compression.verb_compress:compress", "Quantize a bundle's graphs to INT8."),
    "prune": Verb("edgepose.export.verb_prune:prune", "Leave channels out of a network for speed."),
    "qat": Verb("edgepose.export.verb_qat:qat", "Train a quantized network on, so that it loses less."),
    "export": Verb("edgepose.export.verb_export:export", "Turn a model into a bundle, or lint an ONNX file."),
    "verify": Verb("edgepose.export.verb_verify:verify", "Score every artefact of a bundle against FP32."),
    "build": Verb(
        "edgepose.export.verb_build:build", "Build, prove and time TensorRT engines on this board."
    ),
    "bench": Verb("edgepose.export.verb_bench:bench", "Time graphs against each other, in turns."),
    "dial": Verb(
        "edgepose.export.verb_dial:dial", "Measure what refining people with a second model brings."
    ),
    "stream": Verb("edgepose.runtime.verb_stream:stream", "Serve a source with its poses over RTSP."),
    "deploy": Verb(
        "edgepose.runtime.verb_deploy:deploy", "Take a bundle live on boards: proven there, or taken back."
    ),
    "watch": Verb("edgepose.runtime.verb_watch:watch", "Read a stream: its poses, its pictures, how late."),
}

EXIT_CODES = """
Exit codes: 0 done; 1 a gate failed (the figures are printed); 2 something you gave is wrong; 3 a library is
missing; 4 hardware (camera, port, encoder, GPU); 130 interrupted.
"""

# With the name of a file these speak of a path that was given; without one, of a call of ours.
WRONG_PATH = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG),
}


class LazyGroup(click.Group):
    """A click group that imports a verb's module only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name].target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("edgepose"), prog_name="edgepose")
@click.option("-v", "--verbose", is_flag=True, help="Log what is being done to stderr.")
def edgepose(verbose: bool) -> None:
    """Take a human-pose network from PyTorch to a camera, and prove what every step cost."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def guarded(run: Callable[[], Any]) -> int:
    """Run a verb; turn what a user can mend into one sentence on stderr and its exit code."""
    try:
        run()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, click.Abort):
        print("edgepose: interrupted; nothing half-written was left behind", file=sys.stderr)
        return 130
    except Exception as error:
        told = _told(error)
        if told is None:
            raise
        print(f"edgepose: {told}", file=sys.stderr)
        return told.exit_code
    return 0


def _told(error: Exception) -> EdgeposeError | None:
    """What the user is told of an error; None of a bug, which keeps its traceback."""
    match error:
        case EdgeposeError():
            return error
        case ModuleNotFoundError(name=str(name)) if name.partition(".")[0] in SOURCE:
            return missing(name, error)
        case OSError(errno=number) if number in DISK_FULL:
            place = error.filename or "output"
            return EdgeposeError(f"{place}: the disk is full; free some space and run it again")
        case OSError(errno=number) if number in WRONG_PATH and error.filename is not None:
            path = error.filename2 or error.filename  # of a rename the second is the user's, not the draft
            return EdgeposeError(f"{path}: {error.strerror}; give another path or the right to use it")
    return None


def _terminated(number: int, _: FrameType | None) -> None:
    """SIGTERM ends a verb as Ctrl-C does. Once: where a whole group is told, it may come twice."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


class _Departure:
    """Leaves Python at once where a verb left a daemon thread behind, as the last of what is done at exit.

    A thread that comes back out of C++ (a long inference) while Python takes itself apart ends in SIGABRT.
    """

    def __init__(self) -> None:
        self.code = 1  # that of a bug, which ends in its traceback
        self._others = threading.enumerate()
        self._left: list[threading.Thread] = []
        atexit.register(self._leave)  # before the verb registers anything: the first is called last

    def take_note(self) -> None:
        """The verb is over; what runs now is what it left."""
        self._left = [t for t in threading.enumerate() if t.daemon and t not in self._others]

    def _leave(self) -> None:
        if any(thread.is_alive() for thread in self._left):
            for stream in filter(None, (sys.stdout, sys.stderr)):
                with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
                    stream.flush()
            os._exit(self.code)


def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, _terminated)
    departure = _Departure()
    try:
        departure.code = guarded(lambda: edgepose.main(standalone_mode=False))
    finally:
        departure.take_note()
    sys.exit(departure.code)


if __name__ == "__main__":
    main()
