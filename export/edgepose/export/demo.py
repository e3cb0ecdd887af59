"""The whole chain as the commands a user would type, each run for real, and what came out of them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgepose.calibration.coco import read_coco
from edgepose.calibration.ledger import Ledger
from edgepose.calibration.sample import Person
from edgepose.calibration.synthetic import write_video
from edgepose.export.dial import Curve
from edgepose.export.streamcheck import StreamScore, score_stream
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.child import command_of, run_verb
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import Poses
from edgepose.runtime.stream.client import ReceivedFrame, read_rtsp
from edgepose.runtime.stream.lines import people_of
from edgepose.training.models import has_weights

MARKER = ".edgepose-demo"
EVALUATION_SEED, CALIBRATION_SEED, VIDEO_SEED = 7, 11, 3
VIDEO_SIZE, VIDEO_FPS, VIDEO_SECONDS = (640, 480), 25, 12


@dataclass(frozen=True, slots=True)
class Plan:
    """How large the demo is, and where it goes."""

    out: Path
    model: str = "qrpose_tiny"
    pictures: int = 160  # evaluated
    calibration: int = 96  # pictures the quantizer sees
    received: int = 150  # frames the RTSP client reads back
    cameras: tuple[str, ...] = ("nv12", "h264:23")  # behind which INT8 is scored, too
    min_height_px: int = 48  # people lower than this are neither asked for nor counted
    refiner: str = "sharpose_tiny_128x96"  # looks again at the people, where its weights ship
    refined: int = 40  # pictures that it is measured on

    @property
    def evaluation(self) -> str:
        """The held-out pictures; no other step sees them."""
        return held_out(self.pictures)


def held_out(count: int) -> str:
    """The first pictures of those that are evaluated."""
    return f"synthetic:count={count},seed={EVALUATION_SEED}"


@dataclass(frozen=True, slots=True)
class Streamed:
    """What the real RTSP client got, and the server's own count."""

    frames: list[ReceivedFrame]
    lines: list[dict[str, Any]]  # the poses file, one object a frame
    score: StreamScore
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything the report shows."""

    plan: Plan
    commands: tuple[str, ...]
    calibration: dict[str, Any]
    bundle: Bundle
    ledger: Ledger
    curve: Curve | None  # of refining the people with a second network
    streamed: Streamed


class Commands:
    """Runs `edgepose VERB …` as a user would and remembers the lines."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.lines: list[str] = []
        self._announce = announce

    def line(self, *arguments: object) -> str:
        """Say and remember a command."""
        line = " ".join(["edgepose", *map(str, arguments)])
        self.lines.append(line)
        self._announce(line)
        return line

    def run(self, *arguments: object, may_fail: bool = False) -> str:
        """Its standard output. Raises the error of its exit code, except by a gate that may fail."""
        self.line(*(argument for argument in arguments if argument != "--json"))
        return run_verb(*arguments, may_fail=may_fail)


def clean(out: Path) -> None:
    """Remove what an earlier demo left in `out`; anything else there is refused."""
    if out.exists():
        if not (out / MARKER).is_file() and any(out.iterdir()):
            raise EdgeposeError(f"{out}: holds other things than a demo; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).touch()


def run(plan: Plan, announce: Callable[[str], None]) -> Outcome:
    """Run the chain into `plan.out`. A failed accuracy gate does not stop it: the ledger says so."""
    clean(plan.out)
    commands = Commands(announce)
    calibration = _compress_and_export(plan, commands)
    bundle = plan.out / "bundle"
    measured = ["--data", plan.evaluation, "--min-height", plan.min_height_px]
    measured += ["--compressed", plan.out / "compressed"]
    measured += [word for camera in plan.cameras for word in ("--camera", camera)]
    text = commands.run("verify", bundle, *measured, "--json", may_fail=True)
    ledger = Ledger.from_dict(json.loads(text), f"{bundle}/ledger.json")
    curve = _refine(plan, commands) if has_weights(plan.refiner) else None
    streamed = _stream(plan, commands)
    return Outcome(plan, tuple(commands.lines), calibration, Bundle.open(bundle), ledger, curve, streamed)


def _refine(plan: Plan, commands: Commands) -> Curve:
    refiner = plan.out / "refiner"
    commands.run("export", plan.refiner, "--out", refiner)
    data = ("--data", held_out(plan.refined), "--min-height", plan.min_height_px)
    text = commands.run("dial", plan.out / "bundle", refiner, *data, "--json")
    return Curve.from_dict(json.loads(text))


def _compress_and_export(plan: Plan, commands: Commands) -> dict[str, Any]:
    out, model = plan.out, plan.model
    data = f"synthetic:count={10 * plan.calibration},seed={CALIBRATION_SEED}"
    chosen = ("--data", data, "--exclude", plan.evaluation, "--count", plan.calibration)
    text = commands.run("calibrate", *chosen, "--out", out / "calibration", "--json")
    commands.run("export", model, "--out", out / "fp32")
    commands.run("compress", out / "fp32", "--calibration", out / "calibration", "--out", out / "compressed")
    commands.run("export", model, "--compressed", out / "compressed", "--out", out / "bundle")
    calibration: dict[str, Any] = json.loads(text)
    return calibration


def _stream(plan: Plan, commands: Commands) -> Streamed:
    video, truth = _film(plan)
    poses = plan.out / "poses.jsonl"
    # Port 0: any free one, so that a stream of the user's on 8554 is no reason to fail.
    where = ("--source", video, "--bundle", plan.out / "bundle", "--rtsp", ":0/pose", "--poses", poses)
    with _served(commands, where) as server:
        frames = read_rtsp(server.url, plan.received, timeout_s=60)
    lines = [json.loads(line) for line in poses.read_text(encoding="utf-8").splitlines()]
    score = score_stream(
        _paired(frames), truth, VIDEO_SIZE[1], Bundle.open(plan.out / "bundle").spec.joints()
    )
    return Streamed(frames, lines, score, server.summary)


def _film(plan: Plan) -> tuple[Path, Callable[[int], tuple[Person, ...]]]:
    """Write the video of walking people; returns it and the people of each frame."""
    folder = plan.out / "film"
    write_video(folder, VIDEO_SECONDS, VIDEO_SEED, VIDEO_SIZE, VIDEO_FPS)
    images = read_coco(folder / "truth.json").images
    video = next(path for path in folder.iterdir() if path.name.startswith("video."))
    return video, lambda index: images[index % len(images)].people


@dataclass(slots=True)
class _Server:
    """A stream in its own process."""

    process: subprocess.Popen[str]
    url: str = ""
    summary: dict[str, Any] = field(default_factory=dict)

    def wait_until_it_serves(self) -> None:
        """Read what it says until it names its address."""
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            if match := re.search(r"rtsp://\S+", line):
                self.url = match[0]
                return
        raise EdgeposeError(
            f"the demo stops: `edgepose stream` ended before it served: {''.join(said).strip()}"
        )

    def stop(self) -> None:
        """SIGTERM, as an operator would; the summary then says how long that took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        output, said = self.process.communicate(timeout=10)
        if self.process.returncode != 0:
            raise EdgeposeError(f"the demo stops: `edgepose stream` failed: {said.strip()}")
        self.summary = {**json.loads(output), "stop_s": round(time.monotonic() - started, 2)}


@contextmanager
def _served(commands: Commands, where: Sequence[object]) -> Iterator[_Server]:
    """The stream serves while the block lasts."""
    commands.line("stream", *where)
    command = command_of("stream", *where, "--json")
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with process:  # waited for, whatever happens
        try:
            server = _Server(process)
            server.wait_until_it_serves()
            yield server
            server.stop()
        finally:
            process.kill()


def _paired(frames: Sequence[ReceivedFrame]) -> list[tuple[int, Poses]]:
    """(source frame, poses) of the received frames that came with the poses of their own source frame."""
    told = [frame.poses for frame in frames if frame.poses and frame.poses.get("people") is not None]
    return [(line["frame"], people_of(line)) for line in told if line.get("frame") is not None]
