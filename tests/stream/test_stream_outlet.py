"""Pose lines on their way to a file or to a reader that may be slow or gone."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import pytest

from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.stream.outlet import LineOutlet


def test_lines_are_there_while_it_is_open_and_an_older_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "poses.jsonl"
    path.write_text("old\n" * 100)
    outlet = LineOutlet(str(path))
    outlet.put("one")
    outlet.put("zwei ü")
    end_s = time.monotonic() + 5
    while path.read_text(encoding="utf-8") != "one\nzwei ü\n" and time.monotonic() < end_s:
        time.sleep(0.01)
    assert path.read_text(encoding="utf-8") == "one\nzwei ü\n"
    for number in range(500):
        outlet.put(str(number))
    outlet.close()
    assert path.read_text(encoding="utf-8").split("\n")[2:] == [*map(str, range(500)), ""]
    assert outlet.dropped == 0


def test_a_reader_that_does_not_read_costs_lines_and_no_time(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        outlet = LineOutlet(str(pipe))
        start_s = time.monotonic()
        for number in range(3000):
            outlet.put(f"{number:06d}" + "x" * 94)  # 300 kB, a pipe holds 64
        assert outlet.dropped > 1000  # at most 1000 wait
        outlet.close(timeout_s=0.2)
        assert time.monotonic() - start_s < 2
        received = os.read(reader, 1 << 16).decode().split("\n")
        numbers = [int(line[:6]) for line in received[:-1]]
        assert len(numbers) > 600
        assert numbers == sorted(set(numbers))
        assert outlet.dropped <= 3000 - len(numbers)
    finally:
        os.close(reader)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_line_that_could_not_be_written_counts_and_the_reason_is_known_at_the_end() -> None:
    outlet = LineOutlet("/dev/full")
    outlet.put("the only one")
    outlet.close()
    assert outlet.dropped == 1
    assert outlet.error is not None
    assert (outlet.error.errno, outlet.error.filename) == (errno.ENOSPC, "/dev/full")


def test_a_disk_that_is_full_only_when_the_file_is_closed_is_said_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network's disk."""
    outlet, close = LineOutlet(str(tmp_path / "poses.jsonl")), os.close

    def full(file: int) -> None:
        close(file)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "close", full)
    outlet.close()
    monkeypatch.undo()
    assert outlet.error is not None
    assert (outlet.error.errno, outlet.dropped) == (errno.ENOSPC, 0)


def test_a_standard_output_that_was_closed_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `>&-` leaves it."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(EdgeposeError, match="--poses -: standard output is closed; open it, or give a path"):
        LineOutlet("-")


def test_a_target_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    for target in (tmp_path, tmp_path / "missing" / "poses.jsonl"):
        with pytest.raises(EdgeposeError, match="cannot be written"):
            LineOutlet(str(target))
