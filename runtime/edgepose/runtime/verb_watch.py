"""`edgepose watch`: read a stream of ours as any consumer would, and say how it is."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import cv2

from edgepose.runtime.drafts import draft_file, require_new
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.flags import FiniteRange
from edgepose.runtime.signals import handled
from edgepose.runtime.stream.client import ReceivedFrame, watch_rtsp
from edgepose.runtime.stream.counters import Watched
from edgepose.runtime.stream.grammar import Network, parse_source
from edgepose.runtime.stream.outlet import STDOUT, outlet_of, say

_TOLD_EVERY_NS = 1_000_000_000


@click.command(short_help="Read a stream: poses, pictures, how late they come.")
@click.argument("url", metavar="rtsp://HOST:PORT/MOUNT")
@click.option("--poses", "target", metavar="FILE|-", help="JSON lines of all poses; `-` is stdout.")
@click.option(
    "--save", "folder", type=click.Path(path_type=Path), help="Every picture as PNG into this new folder."
)
@click.option("--frames", type=click.IntRange(1), help="Stop after so many pictures.")
@click.option("--duration", type=FiniteRange(0, min_open=True), metavar="S", help="Stop after S seconds.")
@click.option(
    "--patience",
    type=FiniteRange(0, min_open=True),
    default=20.0,
    show_default=True,
    metavar="S",
    help="A stream that gives no picture for so long is broken: exit code 4.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the final summary as JSON.")
def watch(
    url: str,
    target: str | None,
    folder: Path | None,
    frames: int | None,
    duration: float | None,
    patience: float,
    as_json: bool,
) -> None:
    """Read an `edgepose stream` until SIGTERM, Ctrl-C, --frames or --duration ends it (exit 0).

    Pictures and poses belong together by their RTP timestamps. A line of --poses is the stream's own with
    `received_ns` (UTC) added; latencies are from capture to here, as true as both machines' clocks. A stream
    with a password: rtsp://NAME:PASSWORD@HOST:PORT/MOUNT.
    """
    if not isinstance(parse_source(url), Network):
        raise EdgeposeError(f"{url!r} is no stream; give rtsp://HOST:PORT/MOUNT")
    if folder is not None:
        require_new(folder, "--save")
    watched = Watched()
    with contextlib.ExitStack() as stack:
        outlet = stack.enter_context(outlet_of(target))
        stopped: list[int] = []
        stack.enter_context(handled(lambda number, _: stopped.append(number)))
        end_s = math.inf if duration is None else time.monotonic() + duration
        coming = watch_rtsp(url, patience, stop=lambda: bool(stopped) or time.monotonic() > end_s)
        stack.enter_context(contextlib.closing(coming))
        stack.enter_context(contextlib.suppress(BrokenPipeError))  # `--poses - | head` is a way to end it
        for frame in told(itertools.islice(coming, frames), watched):
            if outlet is not None and frame.poses is not None:
                outlet.put(json.dumps(frame.poses | {"received_ns": frame.received_ns}))
            if folder is not None:
                save(frame, folder / f"{watched.pictures:06d}.png")
    say(json.dumps(watched.as_dict()) if as_json else watched.sentence(), err=target == STDOUT)


def told(coming: Iterable[ReceivedFrame], watched: Watched) -> Iterator[ReceivedFrame]:
    """The same, counted; on a terminal with a line that says how it goes."""
    next_ns = 0
    for frame in coming:
        watched.add(frame.received_ns, frame.poses)
        if sys.stderr.isatty() and frame.received_ns >= next_ns:
            next_ns = frame.received_ns + _TOLD_EVERY_NS
            click.echo(f"\r\x1b[K{watched.sentence()}", nl=False, err=True)
        yield frame
    if next_ns:
        click.echo("\r\x1b[K", nl=False, err=True)


def save(frame: ReceivedFrame, path: Path) -> None:
    """The picture as PNG, of which a kill leaves no half."""
    with draft_file(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", frame.image)[1].tobytes())
