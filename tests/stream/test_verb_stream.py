"""`edgepose stream` as a user runs it: a process, its streams, its signals and its exit codes."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stream_standins import numbered

from edgepose.runtime.bundle import Bundle, publish
from edgepose.runtime.skeleton import COCO17, SKELETONS
from edgepose.runtime.spec import Spec
from edgepose.runtime.stream.client import read_rtsp
from edgepose.runtime.stream.lines import people_of

pytest.importorskip("gi", reason="GStreamer's Python bindings come from the distribution (python3-gi)")

ROOT = Path(__file__).parents[2]
VERB = [
    sys.executable,
    "-c",
    "import sys; from edgepose.runtime.cli import guarded; from edgepose.runtime.verb_stream import stream; "
    "sys.exit(guarded(lambda: stream.main(prog_name='edgepose stream', standalone_mode=False)))",
]
STAGES = ("training", "compression", "export", "calibration", "runtime")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / stage) for stage in STAGES)}


def run(*arguments: str | Path, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    command = [*VERB, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, env=ENVIRONMENT, check=False
    )


@pytest.fixture(scope="module")
def movie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("movie") / "walk.mkv", 30)


def film(path: Path, frames: int) -> Path:
    if shutil.which("ffmpeg") is None:
        pytest.skip("ffmpeg is not installed")
    raw = b"".join(numbered(index).tobytes() for index in range(frames))
    kind = ("-f", "rawvideo", "-pix_fmt", "bgr24", "-s", "320x240", "-r", "25", "-i", "-")
    subprocess.run(["ffmpeg", "-v", "error", *kind, str(path)], input=raw, check=True, timeout=60)
    return path


@contextlib.contextmanager
def serving(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The verb while it serves, and the address from its start line."""
    command = [*VERB, *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            found = re.search(r"ffplay (rtsp://\S+)", line)
            assert found, line + process.stderr.read()
            yield process, found[1]
        finally:
            process.kill()
            if not process.stderr.closed:  # what a failing test is asked first
                print(process.stderr.read())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_within_3_s_while_somebody_watches(
    movie: Path, still_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    poses = tmp_path / "poses.jsonl"
    arguments = ("--source", movie, "--bundle", still_bundle, "--rtsp", ":0/pose", "--poses", poses, "--json")
    with serving(*arguments) as (process, url):
        frames = read_rtsp(url, 10)
        process.send_signal(number)
        start_s = time.monotonic()
        out, err = process.communicate(timeout=10)
        took_s = time.monotonic() - start_s
    assert process.returncode == 0, err
    assert took_s < 3
    summary = json.loads(out)
    lines = [json.loads(line) for line in poses.read_text().splitlines()]
    assert len(lines) == summary["frames_estimated"] >= 10
    assert summary["clients"] == 1
    joints = np.arange(17)
    # The network sees (40 + 2 k, 20 + 4 k) of 128 pixels; the picture is 320 x 240: times 2.5.
    expected = (np.stack([40 + 2 * joints, 20 + 4 * joints], 1) + 0.5) * 2.5 - 0.5
    for message in [*lines, *(frame.poses for frame in frames)]:
        assert message is not None
        people = people_of(message)
        assert people.scores.tolist() == pytest.approx([0.9])
        np.testing.assert_allclose(people.keypoints[0], expected, atol=0.06)


def streamed(movie: Path, *arguments: str | Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The pose lines and the summary of the whole movie."""
    done = run("--source", movie, "--rtsp", ":0/pose", "--once", "--json", "--poses", "-", *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], json.loads(done.stderr.splitlines()[-1])


def test_a_second_network_refines_the_people(movie: Path, still_bundle: Path, still_refiner: Path) -> None:
    lines, summary = streamed(movie, "--bundle", still_bundle, "--refine", still_refiner)
    # The first network's joints span 80 x 160 of 320 x 240 pixels about (139.5, 129.5). 8 % of the longer
    # side on each side make a box of 105.6 x 185.6; three to four, and a quarter more, a crop of 174 x 232.
    joints = np.arange(17)
    places = np.stack([6 + joints % 12, 8 + joints], 1)
    expected = [140.75, 130.75] + (places - [11.5, 15.5]) * [174 / 23, 232 / 31]
    for line in lines:
        assert line["v"] == 1
        (person,) = line["people"]
        assert (person["stage"], person["score"]) == ("fine", 0.95)
        np.testing.assert_allclose(people_of(line).keypoints[0], expected, atol=0.06)
        assert people_of(line).stages.tolist() == [2]
    done = summary["refined"]
    assert done["people"] == done["looked"] == done["again"] == summary["frames_estimated"] == len(lines)
    assert done["broken"] == 0
    assert 0 < done["p50_ms"] <= done["p95_ms"]


@pytest.fixture(scope="module")
def plain(movie: Path, still_bundle: Path) -> list[dict[str, Any]]:
    """The lines without a second network."""
    return streamed(movie, "--bundle", still_bundle)[0]


@pytest.mark.parametrize("dial", ["never", "no time"])
def test_without_refining_the_lines_are_the_first_networks(
    movie: Path, still_bundle: Path, still_refiner: Path, plain: list[dict[str, Any]], dial: str
) -> None:
    flags = ("--refine-policy", "never") if dial == "never" else ("--budget-ms", "0.001")
    lines, summary = streamed(movie, "--bundle", still_bundle, "--refine", still_refiner, *flags)
    told = {} if dial == "never" else {"stage": "first"}
    assert [line["people"] for line in lines] == [[plain[0]["people"][0] | told]] * len(lines)
    people = 0 if dial == "never" else len(lines)
    assert (summary["refined"]["people"], summary["refined"]["looked"]) == (people, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--budget-ms", "20"), "--budget-ms 20.0: there is nothing to refine with; add --refine BUNDLE"),
        (("--refine-policy", "always"), "--refine-policy always: there is nothing to refine with"),
        (("--refine", "{bundle}"), "still does not look at people one by one, and twice"),
        (("--refine", "nowhere"), "nowhere: no such bundle"),
        (("--refine", "{refiner}", "--bundle", "{refiner}"), "cannot find people by itself"),
        (("--refine", "{other}"), "its joints are"),
    ],
)
def test_a_mistake_about_the_second_network_is_one_sentence(
    movie: Path,
    still_bundle: Path,
    still_refiner: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    from click.testing import CliRunner

    from edgepose.runtime.errors import EdgeposeError
    from edgepose.runtime.verb_stream import stream

    monkeypatch.setitem(SKELETONS, "head", replace(COCO17, name="head"))
    (tmp_path / "content").mkdir()
    other = Spec("sharpose", "other", 96, 128, skeleton="head", graphs=("coarse", "fine"), resize="crop")
    paths = {
        "bundle": still_bundle,
        "refiner": still_refiner,
        "other": publish(tmp_path / "content", tmp_path / "other.edgepose", other, {}).path,
    }
    given = ["--source", str(movie), "--bundle", str(still_bundle), "--rtsp", ":0/pose", "--duration", "0.1"]
    filled = [argument.format(**paths) for argument in arguments]
    result = CliRunner().invoke(stream, given + filled, standalone_mode=False)
    assert isinstance(result.exception, EdgeposeError)
    assert said in str(result.exception)


def test_a_refiner_without_the_precision_says_which_it_has(
    movie: Path, still_bundle: Path, still_refiner: Path, tmp_path: Path
) -> None:
    refiner = Bundle.open(still_refiner)
    content = tmp_path / "content"
    content.mkdir()
    for name in ("coarse.fp32.onnx", "fine.fp32.onnx"):
        shutil.copy(refiner.folder / name, content / name)
    half = publish(content, tmp_path / "half.edgepose", refiner.spec, {}).path
    done = run("--source", movie, "--bundle", still_bundle, "--rtsp", ":0/pose", "--refine", half)
    assert done.returncode == 2
    assert "has no coarse.int8.ort.onnx; it has coarse.fp32.onnx, fine.fp32.onnx" in done.stderr
    assert "Traceback" not in done.stderr


def test_poses_go_to_stdout_as_json_lines_and_the_summary_to_stderr(movie: Path, still_bundle: Path) -> None:
    done = run(
        *("--source", movie, "--bundle", still_bundle, "--rtsp", ":0/pose", "--poses", "-", "--once"),
        *("--precision", "fp32", "--overlay", "none", "--size", "160x120", "--threshold", "0.95"),
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["frame"] == 29
    assert {(line["w"], line["h"], len(line["people"])) for line in lines} == {(160, 120, 0)}  # the threshold
    assert "clients served: 0" in done.stderr.splitlines()[-1]


def test_a_reader_of_the_lines_that_has_seen_enough_ends_it(movie: Path, still_bundle: Path) -> None:
    command = [*VERB, "--source", str(movie), "--bundle", str(still_bundle), "--rtsp", ":0/p", "--poses", "-"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["v"] == 1
        process.stdout.close()
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_nobody_has_to_read_what_it_says(movie: Path, still_bundle: Path, tmp_path: Path) -> None:
    """Neither its start line nor its summary: it streams on, and ends well."""
    poses, (reader, writer) = tmp_path / "poses.jsonl", os.pipe()
    os.close(reader)
    flags = ("--source", movie, "--bundle", still_bundle, "--rtsp", ":0/p", "--once", "--poses", poses)
    command = [*VERB, *map(str, flags)]
    done = subprocess.run(command, stdout=writer, stderr=writer, env=ENVIRONMENT, timeout=60, check=False)
    os.close(writer)
    assert json.loads(poses.read_text().splitlines()[-1])["frame"] == 29
    assert done.returncode == 0


def test_duration_ends_it(movie: Path, still_bundle: Path) -> None:
    done = run("--source", movie, "--bundle", still_bundle, "--rtsp", ":0/pose", "--duration", "0.7")
    assert done.returncode == 0, done.stderr
    assert re.search(r"frames: \d+ in, \d+ estimated", done.stdout)


def synthetic_is_there() -> bool:
    try:
        return hasattr(importlib.import_module("edgepose.calibration.synthetic"), "video")
    except ImportError:
        return False


@pytest.mark.skipif(not synthetic_is_there(), reason="the generator of people is not in this installation")
def test_synthetic_people_are_streamed(still_bundle: Path) -> None:
    source = "synthetic:seed=3,size=320x240,fps=10"
    with serving("--source", source, "--bundle", still_bundle, "--rtsp", ":0/pose") as (_, url):
        frames = read_rtsp(url, 5)
    assert {frame.image.shape for frame in frames} == {(240, 320, 3)}
    indices = [frame.poses["frame"] for frame in frames if frame.poses]
    assert indices == sorted(set(indices))
    assert len(indices) == 5


def test_a_board_without_the_generator_says_so(still_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from edgepose.runtime.errors import MissingLibrary
    from edgepose.runtime.verb_stream import stream

    monkeypatch.setitem(sys.modules, "edgepose.calibration.synthetic", None)
    result = CliRunner().invoke(stream, ["--source", "synthetic:", "--bundle", str(still_bundle)])
    assert isinstance(result.exception, MissingLibrary)
    assert "generator of people is not in this installation" in str(result.exception)


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"--source": "nowhere.mp4"}, 2, "nowhere.mp4: no such video file"),
        ({"--source": str(Path(__file__))}, 2, "no picture in it"),
        ({"--source": "v4l2:/dev/video99"}, 4, "/dev/video99: no such camera"),
        ({"--source": "rtsp://127.0.0.1:9/x"}, 4, "rtsp://127.0.0.1:9/x: no picture from it"),
        ({"--bundle": "nowhere.edgepose"}, 2, "nowhere.edgepose: no such bundle"),
        ({"--bundle": str(Path(__file__))}, 2, "not an edgepose bundle"),
        ({"--rtsp": "0.0.0.0:8554/pose"}, 2, "add --user"),
        ({"--rtsp": "here"}, 2, "HOST"),
        ({"--size": "641x480"}, 2, "even"),
        ({"--poses": "/nowhere/poses.jsonl"}, 2, "/nowhere/poses.jsonl: cannot be written"),
        ({"--user": "me"}, 2, "NAME:PASSWORD"),
        ({"--overlay": "all"}, 2, "overlay"),
        ({"--source": "synthetic:", "--once": ""}, 2, "--once: only a file has an end"),
    ],
)
def test_a_mistake_is_one_sentence_and_an_exit_code(
    movie: Path, still_bundle: Path, changed: dict[str, str], code: int, said: str
) -> None:
    values = {"--source": str(movie), "--bundle": str(still_bundle), "--rtsp": ":0/pose", **changed}
    done = run(*(part for item in values.items() for part in item if part))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_port_in_use_is_named(movie: Path, still_bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("--source", movie, "--bundle", still_bundle, "--rtsp", f":{port}/pose")
    assert done.returncode == 4
    assert f"port {port} on 127.0.0.1 cannot be used (Address already in use)" in done.stderr


def test_a_bundle_without_the_precision_says_which_it_has(movie: Path, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.mkdir()
    (content / "pose.fp32.onnx").write_bytes(b"never read")
    bundle = publish(content, tmp_path / "half.edgepose", Spec("qrpose", "half", 128, 128), {}).path
    done = run("--source", movie, "--bundle", bundle, "--rtsp", ":0/pose")
    assert done.returncode == 2
    assert "has no pose.int8.ort.onnx; it has pose.fp32.onnx" in done.stderr
    done = run("--source", movie, "--bundle", bundle, "--rtsp", ":0/pose", "--precision", "fp32")
    assert done.returncode == 2
    assert "cannot load it" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_ends_it_with_a_sentence(movie: Path, still_bundle: Path) -> None:
    done = run("--source", movie, "--bundle", still_bundle, "--rtsp", ":0/pose", "--poses", "/dev/full")
    assert done.returncode == 2
    assert "/dev/full: the disk is full" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_is_full_at_the_last_line_is_said_too(still_bundle: Path, tmp_path: Path) -> None:
    """Nothing is written after it that could fail."""
    still = film(tmp_path / "still.mkv", 1)
    flags = ("--rtsp", ":0/pose", "--once", "--poses", "/dev/full")
    done = run("--source", still, "--bundle", still_bundle, *flags)
    assert done.returncode == 2, done.stderr
    assert "/dev/full: the disk is full" in done.stderr


def test_without_gstreamer_everything_imports_and_the_verb_says_what_to_install(still_bundle: Path) -> None:
    """A bare board: gi cannot be imported, nor anything of the workstation."""
    code = (
        "import sys, importlib, pkgutil\n"
        "for name in ('gi', 'torch', 'nncf', 'onnx', 'pydantic', 'yaml'): sys.modules[name] = None\n"
        "import edgepose.runtime.stream as package\n"
        "names = [m.name for m in pkgutil.iter_modules(package.__path__)]\n"
        "for name in names: importlib.import_module(f'edgepose.runtime.stream.{name}')\n"
        "from edgepose.runtime.cli import guarded\n"
        "from edgepose.runtime.verb_stream import stream\n"
        "print(len(names))\n"
        "sys.exit(guarded(lambda: stream.main(sys.argv[1:], standalone_mode=False)))\n"
    )
    arguments = ["--source", "v4l2:/dev/null", "--bundle", str(still_bundle), "--rtsp", ":0/pose"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "apt-get install python3-gi" in done.stderr
    assert int(done.stdout) >= 15


def test_the_start_line_names_this_machine_and_no_password(movie: Path, still_bundle: Path) -> None:
    arguments = (
        "--source",
        movie,
        "--bundle",
        still_bundle,
        "--rtsp",
        "0.0.0.0:0/pose",
        "--user",
        "me:secret",
    )
    with serving(*arguments) as (_, url):
        host, port = re.fullmatch(r"rtsp://NAME:PASSWORD@(.+):(\d+)/pose", url).groups()  # type: ignore[union-attr]
        assert host == socket.gethostname()
        assert len(read_rtsp(f"rtsp://me:secret@127.0.0.1:{port}/pose", 2)) == 2
