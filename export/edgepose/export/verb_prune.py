"""`edgepose prune`: channels out of a network until it is so much faster on ONNX Runtime, as measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgepose.compression.source_model import load_model
from edgepose.export.pruning import Request, prune_to
from edgepose.runtime.drafts import draft_folder, require_new, write_json
from edgepose.runtime.flags import FiniteRange
from edgepose.training.checkpoint import save_tensors
from edgepose.training.loop import WEIGHTS
from edgepose.training.models import check_name, shipped_weights
from edgepose.training.models.widths import to_metadata

REPORT = "prune.json"


@click.command()
@click.argument("model")
@click.option("--weights", type=click.Path(path_type=Path), help="Weights to prune, if not the shipped ones.")
@click.option(
    "--data", required=True, help="Labelled pictures that tell what matters: synthetic:… or COCO files."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder to write; it must not exist."
)
@click.option(
    "--speed", type=FiniteRange(1, min_open=True), default=1.6, show_default=True, help="Times as fast."
)
@click.option(
    "--least",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    default=0.25,
    show_default=True,
    help="Share of each layer's channels, or heads, that stays.",
)
@click.option(
    "--importance",
    type=click.Choice(["taylor", "magnitude"]),
    default="taylor",
    show_default=True,
    help="By the loss's first-order change, or by the size of the weights.",
)
@click.option("--batches", type=click.IntRange(1), default=30, show_default=True, help="Of 4, for taylor.")
@click.option("--rounds", type=click.IntRange(3), default=60, show_default=True, help="Timed runs of each.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def prune(
    model: str,
    weights: Path | None,
    data: str,
    out: Path,
    speed: float,
    least: float,
    importance: str,
    batches: int,
    rounds: int,
    as_json: bool,
) -> None:
    """Leave channels, hidden units and attention heads out of MODEL (such as qrpose_tiny).

    Those leave that the loss misses least for the time they take on this machine. The weights that stay are
    written with the widths of their layers; every other verb takes them with --weights. They have to be
    trained again: edgepose train RECIPE with `initial:` these and `teacher:` the old ones. Exit code 1 when
    the speed is not reached.
    """
    check_name(model)
    require_new(out)
    path = weights or shipped_weights(model)
    network, origin = load_model(model, path)
    found, report = prune_to(Request(model, data, importance, batches, speed, least, rounds), network)
    widths = dict(origin.get("widths", {})) | dict(found.widths)
    with draft_folder(out) as draft:
        metadata = {"edgepose.model": model, "edgepose.pruned_from": origin["weights_sha256"]}
        save_tensors(draft / WEIGHTS, found.state, metadata | to_metadata(widths))
        load_model(model, draft / WEIGHTS)  # what was written can be read
        write_json(draft / REPORT, {"pruned_from": origin["weights_sha256"], **report})
    _show(report, out, as_json)


def _show(report: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"out": str(out), **report}, indent=1))
        return
    for what in ("parameters", "multiply_adds"):
        before, after = report[what]
        click.echo(f"{what.replace('_', '-'):14} {before:>13,} -> {after:>13,}  ({after / before:.2f} times)")
    for group, (before, after) in report["units"].items():
        if after < before:
            click.echo(f"  {group}: {after} of {before}")
    time = report["timing"]
    click.echo(
        f"on ONNX Runtime's CPU, one thread, in turns: {1 / time['ratio']:.2f} times as fast "
        f"({1 / time['high']:.2f} to {1 / time['low']:.2f} in the middle half of the rounds)"
    )
    click.echo(f"written to {out}")
