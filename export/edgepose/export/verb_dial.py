"""`edgepose dial`: accuracy against time when one network refines the people that another one finds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console

from edgepose.calibration.dataset import Dataset, open_dataset
from edgepose.calibration.evaluation import require_unseen
from edgepose.export.dial import Curve, measure, precision_of, settings, table
from edgepose.export.gauging import gauged, reached, with_gauge
from edgepose.export.plots import accuracy_against_time
from edgepose.export.verification import torch_environment
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.drafts import draft_file
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.flags import FiniteRange
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.pair import open_pair, require_pair


@click.command(short_help="Measure accuracy against time of one bundle refining another's people.")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option(
    "--data",
    default="synthetic:count=300,seed=7",
    show_default=True,
    help="Evaluation pictures: synthetic:… or COCO files.",
)
@click.option(
    "--gauge",
    "gauge_data",
    metavar="DATA",
    help="First measure on these labelled pictures what SECOND's poses reach, and keep it in its bundle.",
)
@click.option(
    "--budget-ms",
    "budgets_ms",
    type=FiniteRange(0, min_open=True),
    multiple=True,
    help="A budget to try, as of `edgepose stream`; may be given again.  [default: three, by measurement]",
)
@click.option(
    "--min-height",
    type=FiniteRange(0),
    default=0.0,
    show_default=True,
    help="Leave out people lower than this, in pixels.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of every network."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the curve into this PNG file.")
@click.option("--json", "as_json", is_flag=True, help="Print the curve as JSON.")
def dial(
    first: Path,
    second: Path,
    data: str,
    gauge_data: str | None,
    budgets_ms: tuple[float, ...],
    min_height: float,
    threads: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Let SECOND refine the people that FIRST finds, under every policy and budget, and score what comes out.

    All settings see every picture in turns, so their times can be compared. INT8 if both bundles have it.
    """
    found, refiner = Bundle.open(first), Bundle.open(second)
    require_pair(found, refiner)
    dataset, spec, precision = _pictures(data, found.spec), found.spec, precision_of(found, refiner)
    for bundle in (found, refiner):
        require_unseen(dataset, bundle)
    if gauge_data is not None:
        labelled = _pictures(gauge_data, spec)
        _require_others(labelled, dataset)
        with open_pair(found, refiner, precision, threads) as pair:
            seen = reached(pair, labelled, spec.score_threshold)
        facts = {
            "first": spec.model,
            "precision": precision,
            "data": labelled.source,
            "people": len(seen.first),
        }
        refiner = with_gauge(refiner, gauged(seen), facts)
    with open_pair(found, refiner, precision, threads) as pair:
        dials = settings(pair, dataset, spec.score_threshold, budgets_ms)
        points = measure(pair, dataset, dials, min_height)
    about = {"first": spec.model, "second": refiner.spec.model, "precision": precision}
    curve = Curve(
        tuple(points), {**about, "data": dataset.source, **torch_environment(), "threads": str(threads)}
    )
    if plot is not None:
        with draft_file(plot) as temporary:
            temporary.write_bytes(accuracy_against_time(curve))
    if as_json:
        print(json.dumps(curve.to_dict(), indent=1))
    else:
        Console(file=sys.stdout, width=100).print(table(curve))


def _pictures(data: str, spec: Spec) -> Dataset:
    dataset = open_dataset(data)
    if dataset.skeleton != spec.joints():
        raise EdgeposeError(f"{data}: its joints are {dataset.skeleton.name}, the bundles' {spec.skeleton}")
    return dataset


def _require_others(gauged: Dataset, evaluated: Dataset) -> None:
    """Raises GateFailed when the two share a picture."""
    known = {evaluated.fingerprint(index) for index in range(len(evaluated))}
    for index in range(len(gauged)):
        if gauged.fingerprint(index) in known:
            raise GateFailed(
                f"--gauge {gauged.source}: its picture {index} is evaluated, too; gauge on others"
            )
