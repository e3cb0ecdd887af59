"""Signals while foreign code has the main thread."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import signal, sys
from edgepose.runtime.signals import postponed
try:
    with postponed(lambda: print("told", flush=True)) as came:
        for _ in range({times}):
            signal.raise_signal(signal.{name})
        print("went on", *came, flush=True)
        {then}
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(
    ("name", "times", "then", "code", "said"),
    [
        ("SIGINT", 1, "", 130, "told went on 2"),
        ("SIGINT", 1, "raise ValueError", 130, "told went on 2"),  # what came of it is not what is told
        ("SIGTERM", 1, "", -15, "told went on 15"),  # nobody handled it before
        ("SIGINT", 2, "", -2, "told"),
        ("SIGTERM", 2, "", -15, "told"),
        ("SIGINT", 0, "", 0, "went on"),
    ],
)
def test_it_waits_and_a_second_one_does_not(name: str, times: int, then: str, code: int, said: str) -> None:
    program = CODE.format(name=name, times=times, then=then)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.split() == said.split()
