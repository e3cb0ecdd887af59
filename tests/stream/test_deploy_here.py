"""A deployment on this machine, with real streams: proven first, watched then, taken back when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from deploy_standins import UNIT, Board, golden, options, running
from stream_standins import free_port

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.cli import guarded
from edgepose.runtime.deploy.here import seen
from edgepose.runtime.deploy.shelf import Shelf
from edgepose.runtime.errors import HardwareError
from edgepose.runtime.stream.client import ReceivedFrame, read_rtsp
from edgepose.runtime.verb_deploy import deploy

pytest.importorskip("gi", reason="GStreamer's Python bindings come from the distribution (python3-gi)")


@pytest.fixture
def make(still_bundle: Path, tmp_path: Path) -> Callable[..., Bundle]:
    """Bundles that differ by a note."""
    return lambda note, moved_px=0: golden(still_bundle, tmp_path / f"{note}.edgepose", note, moved_px)


@pytest.fixture
def refiner(still_refiner: Path, tmp_path: Path) -> Bundle:
    return golden(still_refiner, tmp_path / "refiner.edgepose")


def run(*words: object) -> int:
    return guarded(lambda: deploy.main([str(word) for word in words], standalone_mode=False))


def url(port: int) -> str:
    return f"rtsp://127.0.0.1:{port}/pose"


def test_a_bundle_goes_live_and_the_next_one_takes_its_place(
    board: Board, make: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, port = make("one"), make("two"), free_port()
    assert run(one.path, "--here", "--json", "--", *options(port)) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["name"], first["before"], first["url"]) == ("pose", None, url(port))
    assert first["proof"]["runs"] == "ONNX Runtime"
    assert set(first["proof"]["golden"]) == {"pose.int8.ort"}
    assert first["watched"]["with_poses"] >= 10
    assert (board.linked("live"), board.state()) == (first["release"], "active")
    assert (board.folder / "systemd" / f"{UNIT}.enabled").exists()  # it starts with the machine
    frames = read_rtsp(url(port), 3)
    assert all(len(frame.poses["people"]) == 1 for frame in frames if frame.poses)

    before = board.process()
    assert run(one.path, "--here", "--json") == 0  # the same again: nothing is touched
    assert json.loads(capsys.readouterr().out)["release"] == first["release"]
    assert board.process() == before

    assert run(two.path, "--here") == 0  # with the options of the live one
    said = capsys.readouterr().out
    assert f"streams on ONNX Runtime at {url(port)}" in said
    assert said.endswith(f"before it: {first['release']}\n")
    second = board.linked("live")
    assert board.releases() == {first["release"], second}
    assert board.process() != before

    assert run("--back", "--here") == 0
    assert (board.linked("live"), board.linked("before")) == (first["release"], second)
    assert read_rtsp(url(port), 3)


def test_a_bundle_that_is_not_proven_touches_nothing(
    board: Board, make: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    assert run(make("one").path, "--here", "--", *options(port)) == 0
    before, releases = board.process(), board.releases()
    assert run(make("wrong", moved_px=3).path, "--here") == 1
    assert (
        "still: ONNX Runtime here does not reproduce the golden vectors of pose.int8.ort: it is score 0, "
        in (capsys.readouterr().err)
    )
    assert (board.process(), board.releases()) == (before, releases)
    assert read_rtsp(url(port), 2)


def test_a_release_that_does_not_stream_is_taken_back(
    board: Board, make: Callable[..., Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, port = make("one"), free_port()
    assert run(one.path, "--here", "--", *options(port)) == 0
    live = board.linked("live")
    missing = ("--source", tmp_path / "no.mp4", "--rtsp", f":{port}/pose")
    assert run(one.path, "--here", "--", *missing) == 4
    err = capsys.readouterr().err.splitlines()[-1]
    assert "does not stream: " in err
    assert "no.mp4: no such video file; give an existing one to --source; " in err
    assert err.endswith(f"{live}, which was live before, streams again")
    assert (board.linked("live"), board.linked("trial"), board.releases()) == (live, None, {live})
    assert board.starts() == 3  # what cannot work is not started again and again
    assert read_rtsp(url(port), 2)


def test_a_first_release_that_does_not_stream_leaves_nothing_running(
    board: Board, make: Callable[..., Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ("--source", tmp_path / "no.mp4", "--rtsp", f":{free_port()}/pose")
    assert run(make("one").path, "--here", "--", *missing) == 4
    assert "nothing was live here before, and nothing is now" in capsys.readouterr().err
    assert (board.state(), board.linked("live"), board.releases()) == ("inactive", None, set())
    assert not (board.folder / "systemd" / f"{UNIT}.enabled").exists()


def test_a_login_travels_and_stays(
    board: Board, make: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEPOSE_STREAM_USER", "viewer:p@ss/word")
    port = free_port()
    assert run(make("one").path, "--here", "--", *options(port)) == 0
    monkeypatch.delenv("EDGEPOSE_STREAM_USER")
    assert run(make("two").path, "--here") == 0
    with pytest.raises(HardwareError, match="Unauthorized"):
        read_rtsp(url(port), 1, timeout_s=5)
    assert seen(f"rtsp://viewer:p%40ss%2Fword@127.0.0.1:{port}/pose", 20).with_poses >= 10
    assert running(str(board.shelf))
    assert not running("p@ss/word")
    monkeypatch.setenv("EDGEPOSE_STREAM_USER", "")
    assert run(make("two").path, "--here", "--", *options(port, "--fps", "20")) == 0
    assert read_rtsp(url(port), 1)


def test_a_folder_may_have_any_name(
    make: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = Board(tmp_path / """a b%n $HOME 'x' "y" \\ é""")
    (odd.folder / "systemd").mkdir(parents=True)
    for name, value in odd.environment.items():
        monkeypatch.setenv(name, value)
    port = free_port()
    try:
        assert run(make("one").path, "--here", "--", *options(port)) == 0
    finally:
        odd.end()


def begun(board: Board, bundle: Bundle, port: int) -> subprocess.Popen[str]:
    """A deployment that is watching its release, which takes ten seconds to show enough pictures."""
    slow = ("--", *options(port, "--fps", "1"))
    words = [sys.executable, "-m", "edgepose.runtime.cli", "deploy", str(bundle.path), "--here", *slow]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end_s = time.monotonic() + 30
    while not (board.linked("trial") and board.state() == "active"):
        assert time.monotonic() < end_s
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_a_deployment_that_is_told_to_stop_takes_its_release_back(
    board: Board, make: Callable[..., Bundle]
) -> None:
    port = free_port()
    assert run(make("one").path, "--here", "--", *options(port)) == 0
    live = board.linked("live")
    process = begun(board, make("two"), port)
    assert run(make("three").path, "--here") == 2  # meanwhile nobody else deploys
    process.send_signal(signal.SIGHUP)  # the connection breaks, which is no reason to stop
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"{live}, which was live before, streams again" in err
    assert "Traceback" not in err
    assert (board.linked("live"), board.linked("trial"), board.releases()) == (live, None, {live})
    assert read_rtsp(url(port), 2)


def test_a_deployment_that_is_killed_leaves_what_was_live(
    board: Board, make: Callable[..., Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    port, other = free_port(), free_port()
    assert run(make("one").path, "--here", "--", *options(port)) == 0
    live = board.linked("live")
    for number, again in enumerate(("restart", "deploy")):
        process = begun(board, make(f"two{number}"), other)
        process.kill()
        process.communicate()
        assert board.linked("live") != live
        if again == "restart":  # as after a power cut
            board.systemctl("restart", UNIT)
            assert seen(url(port), 20).with_poses >= 10
        else:
            assert run(make("one").path, "--here") == 0
            assert "the last deployment was killed" in caplog.text
        assert (board.linked("live"), board.linked("trial")) == (live, None)
    assert read_rtsp(url(port), 2)


def test_pictures_of_no_signal_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(*_: object) -> Iterator[ReceivedFrame]:
        for number in range(40):
            line = {"people": [], "t_ns": 0} | ({"signal": False} if number % 4 else {})
            yield ReceivedFrame(np.zeros((2, 2, 3), np.uint8), number, 0, None if number % 8 == 4 else line)
        raise HardwareError("nothing more")

    monkeypatch.setattr("edgepose.runtime.deploy.here.watch_rtsp", shown)
    with pytest.raises(HardwareError, match="nothing more"):  # 5 of 40 are poses of a camera
        seen("rtsp://x", 0.1)
    monkeypatch.setattr("edgepose.runtime.deploy.here.PICTURES", 5)
    assert seen("rtsp://x", 0.1).pictures == 33


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--here",), "give either a BUNDLE"),
        (("{bundle}",), "give either --here or the boards"),
        (("{bundle}", "--here", "--board", "x"), "give either --here or the boards"),
        (("{bundle}", "--here", "--wave", "2"), "--wave and --command are for boards"),
        (("{bundle}", "--here", "--back"), "give either a BUNDLE"),
        (("{bundle}", "--here"), "nothing is live here whose options could hold; give them: "),
        (("--here", "--back"), "pose: there is nothing to go back to here"),
        (("{bundle}", "--here", "--name", "Ä"), "give small letters, digits and dashes"),
        (("/no/such", "--here"), "/no/such: no such bundle"),
        (("{bundle}", "--here", "--", "--source", "v4l2:/dev/video9", "--once"), "a service has no end"),
    ],
)
def test_what_contradicts_itself_or_is_not_there(
    words: tuple[str, ...],
    sentence: str,
    board: Board,
    make: Callable[..., Bundle],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(make("one").path)
    assert run(*(word.replace("{bundle}", path) for word in words)) == 2
    assert sentence in capsys.readouterr().err
    assert not board.shelf.exists() or Shelf(board.shelf).live() is None


def stages(port: int) -> set[str | None]:
    """Which looks the people of the stream's next pictures come from; None: there is no second network."""
    frames = read_rtsp(url(port), 5)
    return {person.get("stage") for frame in frames if frame.poses for person in frame.poses["people"]}


def test_two_networks_go_live_together(
    board: Board,
    make: Callable[..., Bundle],
    refiner: Bundle,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, port = make("one"), free_port()
    pair = (one.path, "--refine", refiner.path, "--here", "--json")
    assert run(*pair, "--", *options(port, "--refine-policy", "always")) == 0
    first = json.loads(capsys.readouterr().out)
    assert set(first["proof"]["golden"]) == {"pose.int8.ort"}
    assert set(first["proof"]["second"]["golden"]) == {"coarse.int8.ort", "fine.int8.ort"}
    assert stages(port) == {"fine"}
    refiner.path.unlink()  # the board has its own

    before = board.process()
    assert run(one.path, "--here") == 0  # the same again: nothing is touched
    assert board.process() == before
    assert run(make("two").path, "--here") == 0  # the second one holds as the options do
    assert "streams on ONNX Runtime, refined on ONNX Runtime at " in capsys.readouterr().out
    assert stages(port) == {"fine"}
    assert run(make("two").path, "--here", "--", *options(port)) == 0
    assert stages(port) == {None}
    assert run("--back", "--here") == 0
    assert stages(port) == {"fine"}


def test_a_second_network_that_is_not_proven_touches_nothing(
    board: Board, make: Callable[..., Bundle], still_refiner: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    assert run(make("one").path, "--here", "--", *options(port)) == 0
    before, releases = board.process(), board.releases()
    wrong = golden(still_refiner, board.folder / "wrong.edgepose", moved_px=5)
    assert run(make("one").path, "--refine", wrong.path, "--here") == 1
    assert "does not reproduce the golden vectors of coarse.int8.ort" in capsys.readouterr().err
    assert (board.process(), board.releases()) == (before, releases)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("{second}",), "cannot find people by itself"),
        (("{first}", "--refine", "{first}"), "so it cannot refine poses; give a bundle of SHaRPose"),
        (("{first}", "--refine", "/no/such"), "/no/such: no such bundle"),
        (("--back", "--refine", "{second}"), "give either a BUNDLE, with what refines it and the options"),
        (("{first}", "--", "--refine", "{second}"), " after --: give it before, and it is brought, kept and"),
        (("{first}", "--", "--refine-policy", "auto"), "nothing to refine with; add --refine BUNDLE"),
    ],
)
def test_two_networks_that_are_no_pair(
    words: tuple[str, ...],
    sentence: str,
    board: Board,
    make: Callable[..., Bundle],
    refiner: Bundle,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = make("one").path
    given = [word.format(first=first, second=refiner.path) for word in words]
    more = options(free_port()) if "--" in words else ["--", *options(free_port())]
    assert run("--here", *given, *([] if "--back" in words else more)) == 2
    assert sentence in capsys.readouterr().err
    assert not board.shelf.exists()


def test_a_disk_without_room_changes_nothing(
    board: Board,
    make: Callable[..., Bundle],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    assert run(make("one").path, "--here", "--", *options(port)) == 0
    before = board.process(), board.releases(), board.linked("live")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28), "a file of the bundle")

    monkeypatch.setattr("shutil.copy2", full)
    assert (
        run(
            board.folder.parent / "one.edgepose",
            "--here",
            "--name",
            "pose",
            "--",
            *options(port, "--fps", "9"),
        )
        == 2
    )
    assert "the disk is full; free some space" in capsys.readouterr().err
    assert (board.process(), board.releases(), board.linked("live")) == before
