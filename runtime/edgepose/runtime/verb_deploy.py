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
from edgepose.runtime.topdown.pair import require_first


@click.command(short_help="Take a bundle live on boards: proven there, or taken back.")
@click.argument("bundle_path", metavar="[BUNDLE]", required=False)
@click.argument("options", metavar="[-- STREAM OPTIONS]", nargs=-1)
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
    (exit code 1 or 4). Without STREAM OPTIONS those of the live release hold. A login for viewers comes from
    EDGEPOSE_STREAM_USER, and stays until that names another, or is empty.
    """
    _require_one_way(is_here, back, bundle_path, options)
    shelf = Shelf.of(name or "pose")
    bundle = Bundle.open(bundle_path) if bundle_path else None
    login = os.environ.get(LOGIN)
    if bundle is not None:
        require_first(bundle)
    if options:
        Streaming.of(options, login or None)  # a mistake in them is said before any board is asked
    if is_here:
        require_systemd()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a connection that breaks ends no deployment half way
        wish = here.Wish(options, login)
        done = here.deployed(shelf, bundle, wish, patience) if bundle else here.back(shelf, patience)
        say(json.dumps(done.to_dict()) if as_json else done.sentence(), err=False)
        return
    order = fleet.Order(bundle, tuple(options) or None, name, command, login, patience)
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
            (told.get("proof") or {}).get("runs", ""),
            "" if late is None else f"{late:.0f}",
        )
    return rows


def _require_one_way(is_here: bool, back: bool, bundle: str | None, options: Sequence[str]) -> None:
    """Refuse options that contradict each other, or miss what they need."""
    asked = given()
    if is_here == bool(asked & {"boards", "inventory"}):
        raise click.UsageError("give either --here or the boards: --board or --inventory")
    if is_here and asked & {"wave", "command"}:
        raise click.UsageError("--wave and --command are for boards: leave them out with --here")
    if back == bool(bundle) or (back and options):
        raise click.UsageError("give either a BUNDLE, with the options of its stream, or --back")
