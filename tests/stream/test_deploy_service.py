"""The unit of a stream as systemd reads it, and the options that a service may have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from deploy_standins import UNIT, Board, options

from edgepose.runtime.deploy.service import Service, require_systemd
from edgepose.runtime.deploy.shelf import Shelf
from edgepose.runtime.deploy.streaming import Streaming
from edgepose.runtime.errors import EdgeposeError, HardwareError, MissingLibrary

ODD = 'a b%n "q" \\ $HOME é'  # all that systemd gives a meaning


def judged(text: str, tmp_path: Path) -> str:
    """What systemd itself says of a unit file; nothing if it is one."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine")
    file = tmp_path / UNIT
    file.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(file)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
    )
    # Of the unit: where no bus is, systemd speaks of that, too.
    return "\n".join(line for line in (done.stdout + done.stderr).splitlines() if UNIT in line)


def test_systemd_takes_the_unit(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPOSE_ENGINES", f"/{ODD}")
    text = Service(Shelf.of("pose")).text()
    assert judged(text, tmp_path) == ""
    assert "soon" in judged(text.replace("RestartSec=3", "RestartSec=soon"), tmp_path)


@pytest.mark.parametrize("folder", ["a b%n é", "a$b"])
def test_systemd_finds_the_python(
    folder: str, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / folder / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    text = Service(Shelf.of("pose")).text()
    assert judged(text, tmp_path) == ""
    python.unlink()
    assert "is not executable" in judged(text, tmp_path)  # so it looked there


@pytest.mark.parametrize(("folder", "escaped"), [("a'b", "a'b"), ('a"b', 'a\\"b'), ("a\\b", "a\\\\b")])
def test_what_systemd_does_not_start_is_refused(
    folder: str, escaped: str, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / folder / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    text = Service(Shelf.of("pose")).text().replace(sys.executable, f"{tmp_path}/{escaped}/python")
    assert "special characters" in judged(text, tmp_path)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(EdgeposeError, match="systemd starts no program of such a path"):
        Service(Shelf.of("pose")).text()


def test_a_path_with_a_line_break_is_refused(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/a\nExecStartPre=/bin/false")
    with pytest.raises(EdgeposeError, match="cannot stand in a unit file"):
        Service(Shelf.of("pose")).text()


def test_a_unit_is_loaded_when_it_is_new(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    service = Service(Shelf.of("pose"))
    service.install()
    loaded = board.folder / "systemd" / UNIT
    assert loaded.read_text() == service.text()
    loaded.write_text("as it was")
    service.install()
    assert loaded.read_text() == "as it was"  # the same file is not loaded again
    assert caplog.text == ""


def test_a_stream_outlives_its_login_or_it_is_said(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    service = Service(Shelf.of("pose"))
    lingers = board.folder / "systemd" / "linger"
    (board.folder / "systemd" / "strict").touch()
    service.install()
    assert "sudo loginctl enable-linger" in caplog.text
    caplog.clear()
    lingers.write_text("yes")  # as somebody with the right did
    service.install()
    lingers.unlink()
    (board.folder / "systemd" / "strict").unlink()
    service.install()
    assert lingers.read_text() == "yes\n"
    assert caplog.text == ""


def test_what_systemctl_refuses_is_told(board: Board) -> None:
    with pytest.raises(HardwareError, match=r"restart edgepose-pose.service` failed: .* not found"):
        Service(Shelf.of("pose")).restart()


def test_without_systemd_nothing_is_deployed(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    require_systemd()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingLibrary, match="in a container run `edgepose stream` itself"):
        require_systemd()


def test_the_last_words_are_the_streams_own_sentence(board: Board) -> None:
    service = Service(Shelf.of("pose"))
    log = board.folder / "systemd" / f"{UNIT}.log"
    for text, words in (
        ("", ""),
        ("@9\nedgepose: of the one before\n", ""),
        ("@9\n@12\none\nedgepose: no camera; plug it in\nmain process exited\n", "no camera; plug it in"),
        ("@12\none\nSegmentation fault\n", "Segmentation fault"),
    ):
        log.write_text(text)
        assert service.last_words(10.0) == words


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--source", "walk.mp4"), "--source walk.mp4: a service works in no folder"),
        ((*options(8554), "--refine", "/b"), "--refine /b after --: give it before, and it is brought"),
        ((*options(8554), "--budget-ms", "9"), "--budget-ms 9.0: there is nothing to refine with"),
        ((*options(8554), "--poses", "out.jsonl"), "--poses out.jsonl: a service works"),
        (("--source", "/walk.mp4", "--once"), "--once after --: a service has no end"),
        ((*options(8554), "--duration", "5"), "--duration after --: a service has no end"),
        ((*options(8554), "--bundle", "b"), "--bundle after --: the bundle is the one that is deployed"),
        ((*options(8554), "--bundle", "BUNDLE"), "--bundle after --: the bundle is the one that is deployed"),
        ((*options(8554), "--user", "a:b"), "EDGEPOSE_STREAM_USER=NAME:PASSWORD instead"),
        (options(0), "nobody would find port 0"),
        (("--source", "synthetic:", "--rtsp", "0.0.0.0:8554/pose"), "can be reached by others"),
        (("--source", "ftp://x"), "this kind of address is not read"),
    ],
)
def test_options_that_a_service_cannot_have(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(EdgeposeError) as refusal:
        Streaming.of(words, None)
    assert sentence in str(refusal.value)


@pytest.mark.parametrize("words", [(), ("--source",), (*options(1), "--fsp", "3"), (*options(1), "more")])
def test_options_that_are_none_of_the_stream(words: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        Streaming.of(words, None)


def test_what_the_options_say() -> None:
    told = Streaming.of((*options(8554), "--poses", "-", "--refine-policy", "auto"), "viewer:secret", True)
    assert (told.endpoint.port, told.endpoint.mount, told.device, told.precision) == (
        8554,
        "/pose",
        "auto",
        "int8",
    )
    assert told.endpoint.login is not None
    assert told.endpoint.login.password == "secret"
    far = Streaming.of(("--source", "v4l2:/dev/video0", "--rtsp", "0.0.0.0:8554/pose"), "viewer:secret")
    assert far.endpoint.host == "0.0.0.0"
    chosen = Streaming.of((*options(8554), "--device", "cpu", "--precision", "fp32"), None)
    assert (chosen.device, chosen.precision) == ("cpu", "fp32")
