"""`edgepose deploy`: a bundle onto boards, each of which proves it and streams it, or keeps what it had."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.deploy import fleet, here
from edgepose.runtime.deploy.service import require_systemd
from edgepose.runtime.deploy.shelf import Shelf
from edgepose.runtime.deploy.streaming import LOGIN, Streaming
from edgepose.runtime.flags import FiniteRange, given
from edgepose.runtime.stream.outlet import say
from edgepose.runtime.topdown.pair import require_first, require_pair


@click.command(short_help="Take a bundle live on boards: proven there, or taken back.")
@click.argument("bundle_path", metavar="[BUNDLE]", required=False)
@click.argument("options", metavar="[-- STREAM OPTIONS]", nargs=-1)
@click.option(
    "--refine",
    "second_path",
    metavar="SECOND",
    help="A second bundle (SHaRPose), which looks again at the people of BUNDLE: kept and proven with it.",
)
@click.option("--here", "is_here", is_flag=True, help="On this machine.")
@click.option(
    "--board",
    "boards",
    multiple=True,
    metavar="[USER@]HOST[:PORT]",
    help="On this board, by SSH; may be repeated. With --inventory a host or group of it.",
)
@click.option("--inventory", type=click.Path(path_type=Path), help="Boards in a file as Ansible reads it.")
@click.option(
    "--wave",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="So many boards at once; the next ones only when all of these stream.",
)
@click.option(
    "--command",
    metavar="PATH",
    help="edgepose on the boards, such as /opt/edgepose/bin/edgepose.  [default: edgepose]",
)
@click.option("--name", help="Which stream of a board.  [default: pose]")
@click.option("--back", is_flag=True, help="Instead of a BUNDLE: what was live before.")
@click.option(
    "--patience",
    type=FiniteRange(0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="S",
    help="A release that shows no poses for so long after its start is taken back.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as JSON.")
def deploy(
    bundle_path: str | None,
    options: Sequence[str],
    second_path: str | None,
    is_here: bool,
    boards: Sequence[str],
    inventory: Path | None,
    wave: int,
    command: str | None,
    name: str | None,
    back: bool,
    patience: float,
    as_json: bool,
) -> None:
    """Take BUNDLE live on boards as a service of systemd that runs `edgepose stream` with STREAM OPTIONS.

    A board keeps the bundle beside the one that is live, builds and proves its engines (`edgepose build`,
    `edgepose verify --on-board`; without a GPU ONNX Runtime on the golden pictures), starts it, and watches
    it stream. If any of this fails, what was live before is live again, and no further board is touched
    (exit code 1 or 4). Without STREAM OPTIONS those of the live release hold, and so does its SECOND. A login
    for viewers comes from EDGEPOSE_STREAM_USER, and stays until that names another, or is empty.
    """
    _require_one_way(is_here, back, bundle_path, bool(options or second_path))
    shelf = Shelf.of(name or "pose")
    bundle, second = (Bundle.open(path) if path else None for path in (bundle_path, second_path))
    login = os.environ.get(LOGIN)
    if bundle is not None:
        require_first(bundle)
        if second is not None:
            require_pair(bundle, second)
    if options:  # a mistake in them is said before any board is asked
        Streaming.of(options, login or None, second is not None)
    if is_here:
        require_systemd()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a connection that breaks ends no deployment half way
        wish = here.Wish(options, login, second)
        done = here.deployed(shelf, bundle, wish, patience) if bundle else here.back(shelf, patience)
        say(json.dumps(done.to_dict()) if as_json else done.sentence(), err=False)
        return
    order = fleet.Order(bundle, second, tuple(options) or None, name, command, login, patience)
    results = fleet.deployed(order, fleet.Boards(tuple(boards), inventory, wave))
    if as_json:
        say(json.dumps([result.to_dict() for result in results]), err=False)
    else:
        Console(file=sys.stdout, width=100).print(_table(results))
    fleet.require_streaming(results)


def _table(results: Sequence[fleet.Result]) -> Table:
    rows = Table("board", "", "release", "before", "runs on", "late ms", box=box.SIMPLE_HEAD)
    for result in results:
        told, late = result.told, result.told.get("watched", {}).get("latency_p50_ms")
        rows.add_row(
            *(result.board, result.state, told.get("release") or "", told.get("before") or ""),
            here.runs_on(told["proof"]) if told.get("proof") else "",
            "" if late is None else f"{late:.0f}",
        )
    return rows


def _require_one_way(is_here: bool, back: bool, bundle: str | None, has_more: bool) -> None:
    """Refuse options that contradict each other, or miss what they need."""
    asked = given()
    if is_here == bool(asked & {"boards", "inventory"}):
        raise click.UsageError("give either --here or the boards: --board or --inventory")
    if is_here and asked & {"wave", "command"}:
        raise click.UsageError("--wave and --command are for boards: leave them out with --here")
    if back == bool(bundle) or (back and has_more):
        raise click.UsageError(
            "give either a BUNDLE, with what refines it and the options of its stream, or --back"
        )
