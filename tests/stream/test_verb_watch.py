"""`edgepose watch` reads a served stream as any consumer would: exactly the poses of each picture."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from stream_standins import FPS, feeder, knowing, number_of, truth

from edgepose.runtime.cli import guarded
from edgepose.runtime.stream.counters import Watched
from edgepose.runtime.stream.grammar import parse_endpoint
from edgepose.runtime.stream.lines import people_of
from edgepose.runtime.stream.session import Settings, Stream
from edgepose.runtime.verb_watch import watch

pytest.importorskip("gi", reason="GStreamer's Python bindings come from the distribution (python3-gi)")


def serving(count: int | None = None) -> Stream:
    return Stream(Settings(parse_endpoint(":0/pose"), "none"), feeder(count), knowing())


def run(*arguments: object) -> int:
    return guarded(lambda: watch.main([str(a) for a in arguments], standalone_mode=False))


def test_every_picture_is_saved_and_every_line_is_of_its_picture(tmp_path: Path, capsys) -> None:
    folder, lines = tmp_path / "pictures", tmp_path / "poses.jsonl"
    with serving() as stream:
        assert run(stream.url, "--frames", 12, "--save", folder, "--poses", lines, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    pictures = [cv2.imread(str(path)) for path in sorted(folder.iterdir())]
    assert [path.name for path in sorted(folder.iterdir())][:2] == ["000001.png", "000002.png"]
    assert len(pictures) == figures["pictures"] == 12
    messages = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(messages) == figures["with_poses"] == figures["people"] >= 8
    numbers = {number_of(np.asarray(picture, np.uint8)) for picture in pictures}
    for message in messages:
        assert message["frame"] in numbers
        expected = truth(message["frame"]).keypoints
        np.testing.assert_allclose(people_of(message).keypoints, expected, atol=0.06)
        assert message["received_ns"] > message["t_ns"]
    assert 0 < figures["latency_p50_ms"] <= figures["latency_p95_ms"] < 5000


def test_it_ends_when_it_is_told_to_and_says_what_came(capsys) -> None:
    with serving() as stream:
        assert run(stream.url, "--duration", 1.5) == 0
        assert "people; capture to here p50/p95 ms: " in capsys.readouterr().out
        threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert run(stream.url, "--poses", "-") == 0
    out, err = capsys.readouterr()
    assert "people; capture to here" in err  # standard output has the lines
    assert out == ""  # they went past Python's own stdout


def test_a_reader_of_lines_that_has_seen_enough_ends_it() -> None:
    with serving() as stream:
        verb = [sys.executable, "-m", "edgepose.runtime.cli", "watch", stream.url, "--poses", "-"]
        shell = subprocess.run(
            ["bash", "-o", "pipefail", "-c", 'exec 3>&1; "$@" | head -n 2 >&3', "bash", *verb],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert shell.returncode == 0, shell.stderr
    first, second = map(json.loads, shell.stdout.splitlines())
    assert second["seq"] > first["seq"]
    assert "Traceback" not in shell.stderr


def test_what_cannot_be_watched_gets_one_sentence(tmp_path: Path, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        nobody = f"rtsp://127.0.0.1:{taken.getsockname()[1]}/pose"
        (tmp_path / "full").mkdir()
        for code, arguments in (
            (4, (nobody,)),
            (4, (nobody, "--save", tmp_path / "new")),
            (2, ("/dev/video0",)),
            (2, (tmp_path,)),
            (2, (nobody, "--save", tmp_path / "full")),
            (2, (nobody, "--poses", tmp_path / "no" / "such" / "folder")),
        ):
            assert run(*arguments) == code, arguments
            out, err = capsys.readouterr()
            assert out == ""
            assert err.startswith("edgepose: ")
            assert len(err.splitlines()) == 1
    assert not (tmp_path / "new").exists()  # nothing came


def test_a_server_that_says_nothing_is_waited_for_as_long_as_asked(capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert run(f"rtsp://127.0.0.1:{silent.getsockname()[1]}/pose", "--patience", 1) == 4
    assert "too slow; 0 pictures came" in capsys.readouterr().err


def test_a_stream_that_ends_is_a_fault(capsys) -> None:
    with serving(count=3 * FPS) as stream:
        waiting = threading.Thread(target=stream.wait)
        waiting.start()
        closing = threading.Thread(target=lambda: (waiting.join(), stream.close()))
        closing.start()
        assert run(stream.url) == 4
        closing.join()
    assert "pictures came" in capsys.readouterr().err


def test_figures_are_those_of_what_came() -> None:
    watched = Watched()
    assert watched.as_dict()["fps"] is None
    assert watched.sentence() == "0 pictures, 0 with poses; 0 people; capture to here p50/p95 ms: none"
    start_ns = 1_700_000_000_000_000_000
    for index in range(11):  # 20 pictures a second, each 30 + index ms old
        now_ns = start_ns + 50_000_000 * index
        line = {"people": [{}] * (index % 3), "t_ns": now_ns - (30 + index) * 1_000_000}
        if index == 10:
            line |= {"signal": False, "people": []}
        watched.add(now_ns, None if index == 5 else line)
    figures = watched.as_dict()
    assert (figures["pictures"], figures["with_poses"], figures["no_signal"]) == (11, 10, 1)
    assert figures["people"] == sum(index % 3 for index in (0, 1, 2, 3, 4, 6, 7, 8, 9))
    assert figures["fps"] == pytest.approx(20)
    assert figures["latency_p50_ms"] == pytest.approx(np.median([30, 31, 32, 33, 34, 36, 37, 38, 39, 40]))
    assert "11 pictures in 0.5 s (20.0/s), 10 with poses, 1 of no signal; 7 people" in watched.sentence()
