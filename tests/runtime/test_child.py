"""A verb in its own process: its exit code becomes our error, and real signals never cost it its work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from edgepose.runtime import child
from edgepose.runtime.errors import EdgeposeError, GateFailed, HardwareError, MissingLibrary

# Told to stop, it takes a second over its work, as the end of a training step and a checkpoint do.
CHILD = """
import signal, sys, time
from pathlib import Path
begun, saved = map(Path, sys.argv[1:])
def stop(number, _):
    time.sleep(1)
    saved.write_text(str(number))
    sys.exit(130)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
begun.touch()
time.sleep(60)
"""
PARENT = """
import sys
from edgepose.runtime.child import waited_for
from edgepose.runtime.cli import guarded
sys.exit(guarded(lambda: waited_for([sys.executable, *sys.argv[1:]])))
"""


@pytest.mark.parametrize(
    ("number", "tell"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_is_waited_out(
    number: signal.Signals, tell: Callable[[int, int], None], tmp_path: Path
) -> None:
    """Ctrl-C goes to the whole group, SIGTERM to the parent alone; the child saves before either ends."""
    (tmp_path / "child.py").write_text(CHILD)
    begun, saved = tmp_path / "begun", tmp_path / "saved"
    command = [sys.executable, "-c", PARENT, str(tmp_path / "child.py"), str(begun), str(saved)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as parent:
        while not begun.exists() and parent.poll() is None:
            time.sleep(0.02)
        tell(parent.pid, number)
        _, errors = parent.communicate(timeout=60)
        assert saved.read_text() == str(int(number)), errors
    assert parent.returncode == 130
    assert errors.startswith("edgepose: interrupted")


@pytest.mark.parametrize(
    ("code", "may_fail", "raised"),
    [
        (0, False, None),
        (1, True, None),
        (1, False, GateFailed),
        (2, True, EdgeposeError),
        (3, False, MissingLibrary),
        (4, False, HardwareError),
        (-9, True, EdgeposeError),
        (130, True, KeyboardInterrupt),
    ],
)
def test_an_exit_code_becomes_its_error(
    code: int, may_fail: bool, raised: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = f"import os; print('said', flush=True); os._exit({code})"
    if code < 0:
        end = f"import os; os.kill(os.getpid(), {-code})"
    monkeypatch.setattr(child, "command_of", lambda *_: [sys.executable, "-c", end])
    with nullcontext() if raised is None else pytest.raises(raised) as caught:
        assert child.run_verb("verify", "bundle", may_fail=may_fail) == "said\n"
    if raised is not None:
        assert caught is not None
        assert type(caught.value) is raised
    if raised not in (None, KeyboardInterrupt):
        assert str(caught.value) == f"`edgepose verify` failed with exit code {code}; see above"
