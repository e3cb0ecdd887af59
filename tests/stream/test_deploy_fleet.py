"""A deployment on several boards: the real Ansible, a real SSH server, and the boards' own verb."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from deploy_standins import Board, golden, options
from stream_standins import free_port

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import HardwareError
from edgepose.runtime.stream.client import read_rtsp

pytest.importorskip("gi", reason="GStreamer's Python bindings come from the distribution (python3-gi)")
pytest.importorskip("ansible", reason="ansible-core is of edgepose[workstation]")


@pytest.fixture
def make(still_bundle: Path, tmp_path: Path) -> Callable[..., Bundle]:
    """Bundles that differ by a note."""
    return lambda note, moved_px=0: golden(still_bundle, tmp_path / f"{note}.edgepose", note, moved_px)


@pytest.fixture
def boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Board]]:
    """Three of them on this machine, and a home where their incoming bundles lie."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EDGEPOSE_STREAM_USER", raising=False)
    found = [Board(tmp_path / name) for name in ("hall", "door", "yard")]
    for board in found:
        (board.folder / "systemd").mkdir(parents=True)
    yield found
    for board in found:
        board.end()


def inventory(path: Path, boards: list[Board], each: dict[str, list[str]]) -> Path:
    """Of boards that Ansible reaches without SSH, with the stream's options for each."""
    hosts = {
        board.folder.name: {
            "ansible_connection": "local",
            "edgepose_command": str(board.command()),
            "edgepose_name": "pose",
            "edgepose_options": each[board.folder.name],
        }
        for board in boards
    }
    path.write_text(json.dumps({"all": {"hosts": hosts}}))
    return path


def run(*words: object, **environment: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, JSON and stderr of the verb."""
    command = [sys.executable, "-m", "edgepose.runtime.cli", "deploy", "--json", *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment, timeout=200
    )
    return done.returncode, json.loads(done.stdout or "[]"), done.stderr


def test_waves_stop_at_the_first_board_that_keeps_what_it_had(
    boards: list[Board], make: Callable[..., Bundle], still_refiner: Path, tmp_path: Path
) -> None:
    ports = [free_port() for _ in boards]
    each = {board.folder.name: options(port) for board, port in zip(boards, ports, strict=True)}
    where = inventory(tmp_path / "boards.json", boards, each)
    first, second = make("one"), golden(still_refiner, tmp_path / "second.edgepose")
    for bundle, name in ((first, "first"), (second, "second")):
        shutil.copytree(bundle.folder, tmp_path / name)
    pair = (tmp_path / "first", "--refine", tmp_path / "second")
    code, told, err = run(*pair, "--inventory", where, "--wave", 3, EDGEPOSE_STREAM_USER="a:b c'd")
    assert (code, [each["state"] for each in told]) == (0, ["streams"] * 3), err
    for board, port, result in zip(boards, ports, told, strict=True):
        assert board.linked("live") == result["told"]["release"]
        assert result["told"]["url"] == f"rtsp://127.0.0.1:{port}/pose"
        assert Bundle.open(board.shelf / "live" / "bundle").files == first.files
        assert Bundle.open(board.shelf / "live" / "refine").files == second.files
        assert read_rtsp(f"rtsp://a:b%20c%27d@127.0.0.1:{port}/pose", 2)

    before = [board.linked("live") for board in boards]
    each["door"] = ["--source", str(tmp_path / "no.mp4"), "--rtsp", f":{ports[1]}/pose"]
    inventory(where, boards, each)
    two = make("two")
    shutil.copytree(two.folder, tmp_path / "unpacked")
    code, told, err = run(tmp_path / "unpacked", "--inventory", where, "--wave", 2)
    assert [each["state"] for each in told] == ["streams", "kept", "not tried"]
    assert code == told[1]["exit_code"] == 4
    assert "door: pose: " in err
    assert "no.mp4: no such video file" in err
    assert err.strip().endswith(
        f"{before[1]}, which was live before, streams again; not tried after that: yard"
    )
    assert boards[0].linked("before") == before[0] != boards[0].linked("live")
    assert not (boards[0].shelf / "live" / "refine").exists()  # not said again with the stream's options
    assert [board.linked("live") for board in boards[1:]] == before[1:]

    code, told, err = run("--back", "--inventory", where, "--board", "hall")
    assert (code, [each["board"] for each in told]) == (0, ["hall"]), err
    assert boards[0].linked("live") == before[0]

    code, told, err = run(make("wrong", moved_px=9).path, "--inventory", where, "--board", "yard")
    assert (code, told[0]["state"], told[0]["exit_code"]) == (1, "kept", 1)
    assert "yard: still: ONNX Runtime here does not reproduce the golden vectors" in err


def answers(port: int) -> bool:
    words = ["ssh-keyscan", "-p", str(port), "127.0.0.1"]
    return bool(subprocess.run(words, capture_output=True, check=False).stdout)


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """A real one on the loopback for this user; its port, and what makes our ssh know it."""
    server = shutil.which("sshd", path="/usr/sbin:/usr/bin") or pytest.skip(
        "sshd (openssh-server) is not here"
    )
    folder.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPidFile none\n"
    )
    (folder / "ssh_config").write_text(f"IdentityFile {folder}/user\nUserKnownHostsFile {folder}/known\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where root's server wants an empty folder
    words = [server, "-D", "-E", folder / "log", "-f", folder / "sshd_config"]
    process = subprocess.Popen(words)
    try:
        end_s = time.monotonic() + 10
        while not answers(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end_s
        yield port, {"ANSIBLE_SSH_COMMON_ARGS": f"-F {folder}/ssh_config"}
    finally:
        process.terminate()
        process.wait()


def test_a_board_by_ssh(boards: list[Board], make: Callable[..., Bundle], tmp_path: Path) -> None:
    board, port = boards[0], free_port()
    with ssh_server(tmp_path / "ssh") as (at, known):
        reached = ("--board", f"{getpass.getuser()}@127.0.0.1:{at}", "--command", board.command())
        vouched = (tmp_path / "ssh" / "known").read_text()
        (tmp_path / "ssh" / "known").write_text("")
        code, told, err = run(make("one").path, *reached, **known)
        assert (code, told[0]["state"]) == (4, "unreachable")
        assert "Host key verification failed" in err
        (tmp_path / "ssh" / "known").write_text(vouched)
        secret = {"EDGEPOSE_STREAM_USER": "viewer:secret"}  # SSH takes no variables along by itself
        code, told, err = run(make("one").path, *reached, "--", *options(port), **known, **secret)
        assert (code, err) == (0, "")
        assert [(each["board"], each["state"]) for each in told] == [(reached[1], "streams")]
        url = f"rtsp://viewer:secret@127.0.0.1:{port}/pose"
        assert read_rtsp(url, 2)
        with pytest.raises(HardwareError, match="Unauthorized"):
            read_rtsp(told[0]["told"]["url"], 1)
        code, told, err = run(make("two").path, *reached, **known)  # options stay
        assert (code, told[0]["told"]["before"]) == (0, board.linked("before"))
        code, told, err = run(make("two").path, *reached[:3], board.folder / "no-edgepose", **known)
        assert (code, told[0]["state"]) == (2, "kept")
        assert f"edgepose does not run there ({board.folder}/no-edgepose --version: " in err
        assert "or say by --command where it is" in err
        interrupted(board, make("three"), [*reached, "--", *options(port, "--fps", "1")], known)
        assert read_rtsp(url, 2)  # the login has stayed


def interrupted(board: Board, bundle: Bundle, words: list[object], known: dict[str, str]) -> None:
    """Ctrl-C here while the board watches its release: it comes to its end there all the same."""
    command = [sys.executable, "-m", "edgepose.runtime.cli", "deploy", str(bundle.path), *map(str, words)]
    environment = os.environ | known
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    before = board.linked("live")
    await_(lambda: board.linked("trial") is not None)
    os.killpg(process.pid, signal.SIGINT)
    assert b"Traceback" not in process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert board.linked("trial") == before
    await_(lambda: board.linked("trial") is None)
    assert board.linked("live") != before == board.linked("before")


def await_(done: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end_s
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--board", "127.0.0.1:1"), 4, "connect to host 127.0.0.1 port 1: Connection refused"),
        (("--board", "a@b:99999"), 2, "--board 'a@b:99999': give [USER@]HOST[:PORT]"),
        (("--board", "a b"), 2, "--board 'a b': give [USER@]HOST[:PORT]"),
        (("--board", "-oProxyCommand=x"), 2, "give [USER@]HOST[:PORT]"),
        (("--board", "-oProxyCommand=x@b"), 2, "give [USER@]HOST[:PORT]"),
        (("--inventory", "/no/such"), 2, "--inventory /no/such: no such file"),
        (("--inventory", "{nobody}"), 2, "Ansible finds no boards there"),
        (("--inventory", "{boards}", "--board", "cellar"), 2, "Could not match supplied host pattern"),
        (("--board", "x", "--", "--source", "ftp://x"), 2, "this kind of address is not read"),
        (("--board", "x", "--", "--sorce", "x"), 2, "No such option '--sorce'"),
    ],
)
def test_boards_that_are_not_there(
    words: tuple[str, ...],
    code: int,
    sentence: str,
    boards: list[Board],
    make: Callable[..., Bundle],
    tmp_path: Path,
) -> None:
    (tmp_path / "nobody.ini").write_text("[cameras]\n")
    where = inventory(tmp_path / "boards.json", boards, {board.folder.name: [] for board in boards})
    given = [word.format(nobody=tmp_path / "nobody.ini", boards=where) for word in words]
    found, _, err = run(make("one").path, *given)
    assert found == code, err
    assert sentence in err
    assert "Traceback" not in err
