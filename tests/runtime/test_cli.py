"""The command line: exit codes, one-sentence errors, nothing but results on stdout."""

import errno
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import pytest

from edgepose.runtime import cli
from edgepose.runtime.drafts import write_json
from edgepose.runtime.errors import EdgeposeError, GateFailed, HardwareError, MissingLibrary, require


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GateFailed("AP fell"), 1),
        (EdgeposeError("no such file"), 2),
        (MissingLibrary("no torch"), 3),
        (HardwareError("no camera"), 4),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device", "out.json"), 2),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2),
        (OSError(errno.EACCES, "Permission denied", "out.json"), 2),
        (OSError(errno.EPERM, "Operation not permitted", Path("out.json")), 2),
        (OSError(errno.EROFS, "Read-only file system", "out.json"), 2),
        (ModuleNotFoundError("No module named 'onnx.x'", name="onnx.x"), 3),
        (click.UsageError("no such option"), 2),
    ],
)
def test_errors_become_one_sentence_and_their_exit_code(error, code, capsys) -> None:
    def verb() -> None:
        raise error

    assert cli.guarded(verb) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.strip()


def test_a_full_disk_is_told_as_that_before_anything_is_written(tmp_path, capsys, monkeypatch) -> None:
    def full(prefix: str, dir: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", f"{dir}/{prefix}x")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)
    assert cli.guarded(lambda: write_json(tmp_path / "out.json", {})) == 2
    said = "the disk is full; free some space and run it again"
    assert capsys.readouterr().err == f"edgepose: {tmp_path / 'out.json'}: {said}\n"


@pytest.mark.parametrize(
    ("out", "named", "reason"),
    [
        ("file/out.json", "file/out.json", "File exists"),
        ("file/below/out.json", "file/below/out.json", "Not a directory"),
        ("folder", "folder", "Is a directory"),
        ("n" * 300, "n" * 300, "File name too long"),
        ("/proc/out.json", "/proc/out.json", "No such file or directory"),
    ],
)
def test_a_wrong_path_is_one_sentence_that_names_it(out, named, reason, tmp_path, capsys) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert cli.guarded(lambda: write_json(tmp_path / out, {})) == 2
    sentence = f"{reason}; give another path or the right to use it\n"
    assert capsys.readouterr().err == f"edgepose: {tmp_path / named}: {sentence}"


WRITING = """
import sys, time
from pathlib import Path
import click
from edgepose.runtime import cli
from edgepose.runtime.drafts import draft_folder

@click.command()
@click.argument("out")
def write(out):
    with draft_folder(Path(out)) as draft:
        (draft / "half").touch()
        time.sleep(60)

cli.VERBS["write"] = cli.Verb("__main__:write", "")
cli.main()
"""


def test_sigterm_leaves_nothing_half_written(tmp_path) -> None:
    command = [sys.executable, "-c", WRITING, "write", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.rglob("half")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip() == "edgepose: interrupted; nothing half-written was left behind"
    assert not list(tmp_path.iterdir())


LEAVING = """
import atexit, sys, threading, time
import click
from edgepose.runtime import cli

atexit.register(print, "Python took itself apart")

@click.command()
@click.argument("daemons", type=int)
def leave(daemons):
    for _ in range(daemons):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    atexit.register(print, "tidied up")
    print("done")
    raise cli.EdgeposeError("so it ends")

cli.VERBS["leave"] = cli.Verb("__main__:leave", "")
cli.main()
"""


@pytest.mark.parametrize("daemons", [0, 1])
def test_a_thread_that_a_verb_leaves_behind_never_comes_back_into_a_python_that_ends(daemons: int) -> None:
    """Back from C++ it would end the process by SIGABRT: what is left to do is done, and no more."""
    command = [sys.executable, "-c", LEAVING, "leave", str(daemons)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (2, "edgepose: so it ends\n")
    last = [] if daemons else ["Python took itself apart"]
    assert done.stdout.splitlines() == ["done", "tidied up", *last]


@pytest.mark.parametrize(
    "bug",
    [
        ZeroDivisionError(),
        OSError(errno.EACCES, "Permission denied"),
        OSError(errno.EIO, "Input/output error", "out.json"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "ours.json"),
        ModuleNotFoundError("No module named 'edgepose.runtime.verbs'", name="edgepose.runtime.verbs"),
        ModuleNotFoundError("no name"),
        ImportError("cannot import name 'Graph' from 'onnx'", name="onnx"),
    ],
)
def test_a_bug_keeps_its_traceback(bug: Exception) -> None:
    def verb() -> None:
        raise bug

    with pytest.raises(type(bug)) as raised:
        cli.guarded(verb)
    assert raised.value is bug


def test_unknown_verb_is_a_user_error(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["edgepose", "strem"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "strem" in capsys.readouterr().err


def test_missing_library_names_the_command_that_installs_it(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nncf", None)
    with pytest.raises(MissingLibrary, match=r"pip install 'edgepose\[workstation\]'"):
        require("nncf")


def test_doctor_reports_as_json(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["edgepose", "doctor", "--json"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    findings = json.loads(capsys.readouterr().out)
    whats = {finding["what"]: finding["status"] for finding in findings}
    assert whats["Python"] == "ok"
    assert whats["onnxruntime"] == "ok"


def test_doctor_says_how_to_get_what_is_missing(monkeypatch, capsys) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "nncf" else find(name, *a)
    )
    monkeypatch.setattr("sys.argv", ["edgepose", "doctor"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "To get nncf:\n  pip install 'edgepose[workstation]'" in capsys.readouterr().out
