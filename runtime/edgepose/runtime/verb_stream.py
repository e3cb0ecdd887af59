"""`edgepose stream`: a camera or video in, its poses on RTSP and as JSON lines out."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import click

from edgepose.runtime.backend import BEST, DEVICES, open_backend
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError, MissingLibrary
from edgepose.runtime.estimator import Estimator
from edgepose.runtime.flags import FiniteRange
from edgepose.runtime.poses import Poses
from edgepose.runtime.preprocess import U8
from edgepose.runtime.signals import handled
from edgepose.runtime.stream import capture
from edgepose.runtime.stream.counters import Refinements
from edgepose.runtime.stream.grammar import (
    FASTEST,
    Endpoint,
    File,
    SourceSpec,
    Synthetic,
    parse_endpoint,
    parse_login,
    parse_size,
    parse_source,
)
from edgepose.runtime.stream.outlet import STDOUT, outlet_of, say
from edgepose.runtime.stream.session import OVERLAYS, Input, Settings, Stream
from edgepose.runtime.stream.source import Feeder
from edgepose.runtime.topdown.cascade import POLICIES, Cascade, Dial
from edgepose.runtime.topdown.pair import open_pair, require_first, require_pair
from edgepose.runtime.trt.precision import LADDER

# Python hands the GIL over every 5 ms by default; each hop of a frame between threads may wait that long.
_SWITCH_S = 0.001


@click.command(short_help="Serve the poses of a camera or video over RTSP.")
@click.option(
    "--source",
    "source_text",
    required=True,
    metavar="SRC",
    help="`synthetic:seed=1,size=640x480,fps=25`, a video file, `v4l2:/dev/video0` or `rtsp://HOST/PATH`.",
)
@click.option("--bundle", "bundle_path", required=True, metavar="BUNDLE", help="Folder or .edgepose file.")
@click.option(
    "--rtsp",
    "rtsp_text",
    default=":8554/pose",
    show_default=True,
    metavar="[HOST]:PORT/MOUNT",
    help="Where to serve. Without HOST only this machine; another HOST needs --user. PORT 0: a free one.",
)
@click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="gpu: a TensorRT engine, built if there is none; auto: an engine if `edgepose build` made one here; "
    "cpu: ONNX Runtime.",
)
@click.option(
    "--precision",
    type=click.Choice(LADDER),
    help="fp16 is for engines.  [default: int8; of engines what `edgepose build` found best]",
)
@click.option(
    "--overlay",
    type=click.Choice(OVERLAYS),
    default="sync",
    show_default=True,
    help="sync: each frame waits for its poses; latest: video never waits, the newest are drawn; none.",
)
@click.option("--poses", "poses_target", metavar="FILE|-", help="JSON lines of all poses; `-` is stdout.")
@click.option(
    "--refine",
    "refine_path",
    metavar="BUNDLE",
    help="A two-stage network (SHaRPose) that looks again at the people of --bundle, worst poses first.",
)
@click.option(
    "--refine-policy",
    type=click.Choice(POLICIES),
    help="always: twice at everybody shown; auto: as often as their expected OKS asks for; never.  [auto]",
)
@click.option(
    "--budget-ms",
    type=FiniteRange(0, min_open=True),
    metavar="MS",
    help="From frame to poses, both networks together; what is left of it is spent on refining.",
)
@click.option("--fps", type=click.IntRange(1, FASTEST), help="At most so many frames per second.")
@click.option("--size", "size_text", metavar="WxH", help="Size of the stream; the source's by default.")
@click.option(
    "--threshold",
    type=FiniteRange(0, 1),
    help="Least expected OKS: 0.5 keeps poses expected to reach OKS 0.5. The bundle's by default.",
)
@click.option(
    "--user",
    "user_text",
    metavar="NAME:PASSWORD",
    envvar="EDGEPOSE_STREAM_USER",
    show_envvar=True,
    help="Viewers must give this; on the command line others on this machine can read it.",
)
@click.option("--once", is_flag=True, help="Stop at the end of a file instead of beginning again.")
@click.option("--duration", type=FiniteRange(0, min_open=True), metavar="S", help="Stop after S seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print the final summary as JSON.")
def stream(
    source_text: str,
    bundle_path: str,
    rtsp_text: str,
    device: str,
    precision: str | None,
    overlay: str,
    poses_target: str | None,
    refine_path: str | None,
    refine_policy: str | None,
    budget_ms: float | None,
    fps: int | None,
    size_text: str | None,
    threshold: float | None,
    user_text: str | None,
    once: bool,
    duration: float | None,
    as_json: bool,
) -> None:
    """Serve the poses of a camera or video over RTSP until SIGTERM, Ctrl-C or --duration ends it (exit 0).

    A lost camera is tried again while viewers stay. The poses travel in the same RTSP session as KLV data
    with the RTP timestamp of their picture. One line on stdout sums up at the end (on stderr with --poses -).
    """
    spec = parse_source(source_text)
    endpoint = parse_endpoint(rtsp_text, parse_login(user_text) if user_text else None)
    size = parse_size(size_text) if size_text else None
    source = _input(spec, size, once)
    bundle = Bundle.open(bundle_path)
    require_first(bundle)
    least = bundle.spec.score_threshold if threshold is None else threshold
    settings = Settings(endpoint, overlay, size, fps, least, bundle.spec.joints())
    require_refiner(refine_path, refine_policy, budget_ms)
    refining = _refining(bundle, refine_path, _dial(refine_policy, budget_ms, least))
    with contextlib.ExitStack() as stack:
        outlet = stack.enter_context(outlet_of(poses_target))
        on_line = outlet.put if outlet else _nowhere
        means = _Means(precision or BEST, device)
        running = Stream(settings, source, lambda: _estimator(bundle, means, refining), on_line)
        stack.enter_context(handled(lambda *_: running.request_stop()))
        stack.enter_context(_quick_switches())
        _run(running, endpoint, duration)
    done = refining.done.figures() if refining else None
    summary = replace(running.summary(outlet.dropped if outlet else 0), refined=done)
    text = json.dumps(summary.as_dict()) if as_json else summary.sentence()
    say(text, err=poses_target == STDOUT)


def _run(running: Stream, endpoint: Endpoint, duration: float | None) -> None:
    # A reader of `--poses -` that has seen enough (`| head`) is a way to end it.
    with contextlib.suppress(BrokenPipeError), running:
        if not running.is_done:
            say(f"serving; look at it with: ffplay {_viewer_url(running.url, endpoint)}", err=True)
        running.wait(duration)


def _viewer_url(url: str, endpoint: Endpoint) -> str:
    for everywhere in ("0.0.0.0", "[::]"):
        url = url.replace(f"//{everywhere}:", f"//{socket.gethostname()}:", 1)
    return url.replace("//", "//NAME:PASSWORD@", 1) if endpoint.login else url


def _input(spec: SourceSpec, size: tuple[int, int] | None, once: bool) -> Input:
    if once and not isinstance(spec, File):
        raise EdgeposeError("--once: only a file has an end; give --duration")
    if isinstance(spec, Synthetic):
        frame, name = _synthetic(spec), f"synthetic:seed={spec.seed}"
        return Input(name, lambda: Feeder(name, frame, spec.fps))
    capture.check_there(spec)
    is_hardware = not isinstance(spec, File)
    patience = capture.PATIENCE[type(spec)]
    return Input(capture.name_of(spec), lambda: capture.Capture(spec, size), patience, is_hardware, once)


def _synthetic(spec: Synthetic) -> Callable[[int], U8]:
    # By name at run time: the generator belongs to the stage `calibration`, which may import this one and
    # is no part of what a board needs. A static import would turn the direction of the stages round.
    try:
        generator: Any = importlib.import_module("edgepose.calibration.synthetic")
    except ImportError as error:
        raise MissingLibrary(
            f"--source synthetic: the generator of people is not in this installation ({error}); "
            "install it: pip install 'edgepose[workstation]', or give a file, v4l2: or rtsp:// source"
        ) from error
    video = generator.video(spec.seed, spec.size, spec.fps)

    def frame(index: int) -> U8:
        image: U8 = video.frame(index).image
        return image

    return frame


@dataclass(frozen=True, slots=True)
class _Means:
    """What the networks are to run in, and on."""

    precision: str
    device: str


@dataclass(frozen=True, slots=True)
class _Refining:
    """The second network, and what it has done."""

    bundle: Bundle
    dial: Dial
    done: Refinements


def require_refiner(refine_path: str | None, policy: str | None, budget_ms: float | None) -> None:
    """Raises EdgeposeError for settings of a second network that is not there."""
    for flag, value in (("--refine-policy", policy), ("--budget-ms", budget_ms)):
        if value is not None and refine_path is None:
            raise EdgeposeError(f"{flag} {value}: there is nothing to refine with; add --refine BUNDLE")


def _dial(policy: str | None, budget_ms: float | None, least: float) -> Dial:
    budget_s = float("inf") if budget_ms is None else budget_ms / 1000
    return Dial(policy or "auto", budget_s, least)


def _refining(first: Bundle, path: str | None, dial: Dial) -> _Refining | None:
    if path is None:
        return None
    second = Bundle.open(path)
    require_pair(first, second)
    return _Refining(second, dial, Refinements())


@contextlib.contextmanager
def _estimator(bundle: Bundle, means: _Means, refining: _Refining | None) -> Iterator[Callable[[U8], Poses]]:
    threads = max(1, (os.cpu_count() or 1) - 1)  # one core stays for capture, encoder and server
    if refining is None:
        with open_backend(bundle, means.precision, threads=threads, device=means.device) as backend:
            yield Estimator(backend, bundle.spec)
        return
    with open_pair(bundle, refining.bundle, means.precision, threads, means.device) as pair:
        cascade = Cascade(pair, refining.dial)

        def estimate(frame: U8) -> Poses:
            refined = cascade(frame)
            refining.done.add(refined)
            return refined.poses

        yield estimate


def _nowhere(_line: str) -> None:
    """Nobody asked for lines."""


@contextlib.contextmanager
def _quick_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
