"""`edgepose verify`: score every artefact of a bundle against FP32, and fail when a gate fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console

from edgepose.calibration.boxes import Finder, Labels, open_detector, read_detections
from edgepose.calibration.calibration_set import Manifest, require_apart
from edgepose.calibration.dataset import Dataset, open_dataset
from edgepose.calibration.evaluation import TRUTH, Shown, require_skeleton, told
from edgepose.calibration.ledger import Gates, joints_table, looks_table, quality_table, table
from edgepose.compression.answers import Answers
from edgepose.compression.artefact import MANIFEST
from edgepose.compression.blame import Judge, advice, blame, points_table
from edgepose.compression.blame import table as blame_table
from edgepose.compression.graph import load_onnx
from edgepose.compression.groups import switches_of
from edgepose.export.plots import frontier
from edgepose.export.verification import Sources, artefacts, environment, ledger_of, run_all, with_ledger
from edgepose.runtime.backend import CPU_VIEWS
from edgepose.runtime.bundle import ZIP_SUFFIX, Bundle
from edgepose.runtime.drafts import draft_file, write_json
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.spec import Spec
from edgepose.training import models

SHOWN_LAYERS = 20  # of a ranking; all are in blame.json
DEFAULT_DATA = "synthetic:count=300,seed=7"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data", default=DEFAULT_DATA, show_default=True, help="Evaluation pictures: synthetic:… or COCO files."
)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="FP32 torch weights.  [default: the shipped ones]"
)
@click.option(
    "--compressed",
    type=click.Path(path_type=Path),
    help="What `compress` wrote: adds the quantized torch row.",
)
@click.option(
    "--min-height", default=0.0, show_default=True, help="Leave out people lower than this, in pixels."
)
@click.option(
    "--max-ap-loss", default=1.0, show_default=True, help="Gate: points of AP that may be lost to FP32."
)
@click.option(
    "--max-drift", default=1.0, show_default=True, help="Gate: median keypoint drift, pixels of the input."
)
@click.option(
    "--max-duplicates",
    default=1.0,
    show_default=True,
    help="Gate: more duplicates than FP32 has, in % of the people.",
)
@click.option(
    "--boxes",
    metavar="truth|FILE|BUNDLE",
    help="For networks of one person at a time: the labels, COCO-format detections, or the bundle of a "
    "network that finds people.  [default: truth]",
)
@click.option(
    "--min-region-overlap",
    default=90.0,
    show_default=True,
    help="Gate: % of the regions seen sharp that must be FP32's.",
)
@click.option(
    "--max-refined-shift",
    default=5.0,
    show_default=True,
    help="Gate: points that the share of people looked at again may differ from FP32's.",
)
@click.option(
    "--blame",
    "folder",
    type=click.Path(path_type=Path),
    help="Instead: which layers' INT8 costs how much. Into this folder; a killed run goes on where it was.",
)
@click.option("--min-ap", type=float, help="Gate: points of AP that the FP32 model itself must reach.")
@click.option("--threads", default=1, show_default=True, help="CPU threads of every artefact.")
@click.option("--per-joint", is_flag=True, help="Also print the OKS of every joint.")
@click.option("--json", "as_json", is_flag=True, help="Print the ledger as JSON.")
def verify(
    bundle: Path,
    data: str,
    weights: Path | None,
    compressed: Path | None,
    min_height: float,
    max_ap_loss: float,
    max_drift: float,
    max_duplicates: float,
    boxes: str | None,
    min_region_overlap: float,
    max_refined_shift: float,
    folder: Path | None,
    min_ap: float | None,
    threads: int,
    per_joint: bool,
    as_json: bool,
) -> None:
    """Score every artefact of BUNDLE with one evaluator; write its ledger.json; exit 1 when a gate fails.

    Every picture is shown to all artefacts in turns, so their times can be compared. AP and AR are against
    the labels, drift is against torch FP32.

    With --blame each layer is INT8 by itself, and all but it are; a few dozen pictures will do. The layers
    are ranked by what they cost, and as many of the worst are to stay float as the gates ask for.
    """
    opened = Bundle.open(bundle)
    dataset = open_dataset(data)
    require_skeleton(dataset, opened.spec)
    least = None if min_ap is None else min_ap / 100
    gates = Gates(
        max_ap_loss / 100,
        max_drift,
        least,
        max_duplicates / 100,
        min_region_overlap / 100,
        max_refined_shift / 100,
    )
    if folder is not None:
        _blame(
            opened,
            _shown(dataset, opened.spec, boxes, threads),
            folder,
            (gates, min_height, threads),
            as_json,
        )
        return
    sources = Sources(opened, weights or models.shipped_weights(opened.spec.model), compressed, threads)
    shown = _shown(dataset, opened.spec, boxes, threads)
    with artefacts(sources) as found:
        ledger = ledger_of(run_all(found, shown), shown, opened.spec, gates, min_height)
    with_ledger(opened, ledger)
    if as_json:
        print(json.dumps(ledger.to_dict(), indent=1))
    else:
        console = Console(file=sys.stdout, width=100)  # narrower, in a pipe, figures would be cut
        console.print(table(ledger))
        console.print(quality_table(ledger))
        if ledger.baseline.looks is not None:
            console.print(looks_table(ledger))
        if per_joint:
            console.print(joints_table(ledger, opened.spec.joints().joints))
    if failures := ledger.verdict():
        raise GateFailed("a gate failed: " + "; ".join(failures))


def _blame(bundle: Bundle, shown: Shown, folder: Path, how: tuple[Gates, float, int], as_json: bool) -> None:
    """Rank the INT8 layers; raises GateFailed when the gates ask for float ones."""
    gates, min_height, threads = how
    fp32, int8 = (
        {graph: load_onnx(bundle.graph(graph, CPU_VIEWS[precision])) for graph in bundle.spec.graphs}
        for precision in ("fp32", "int8")
    )
    manifest = bundle.read(MANIFEST, "the calibration manifest")
    require_apart(Manifest.from_dict(manifest, bundle.path / MANIFEST), shown.pictures)
    switches = switches_of(fp32, int8, (bundle.spec.width, bundle.spec.height))
    answers = Answers(folder / "answers", switches, shown, bundle.spec, threads)
    found = blame(Judge(answers, gates, min_height))
    about = {"bundle": str(bundle.path), "evaluation": shown.pictures.source, **environment()}
    write_json(folder / "blame.json", {**about, **found.to_dict()})
    with draft_file(folder / "frontier.png") as temporary:
        temporary.write_bytes(frontier(found))
    if as_json:
        print(json.dumps({**about, **found.to_dict()}, indent=1))
    else:
        console = Console(file=sys.stdout, width=100)
        console.print(blame_table(found, SHOWN_LAYERS))
        console.print(points_table(found))
        console.print(advice(found), soft_wrap=True, markup=False)
    if failures := found.frontier[0].failures:
        raise GateFailed("a gate failed: " + "; ".join(failures))


def _shown(dataset: Dataset, spec: Spec, boxes: str | None, threads: int) -> Shown:
    """The pictures, with their people where the network has to be told of them."""
    if spec.resize != "crop":
        if boxes is not None:
            raise EdgeposeError(f"{spec.model} is shown whole pictures: leave out --boxes")
        return Shown(dataset)
    source = boxes or TRUTH
    with _finder(source, threads) as finder:
        return told(dataset, finder, source if source == TRUTH else Path(source).name)


@contextmanager
def _finder(source: str, threads: int) -> Iterator[Finder]:
    path = Path(source)
    if source == TRUTH:
        yield Labels()
    elif path.is_dir() or path.suffix == ZIP_SUFFIX:
        with open_detector(path, threads) as detector:
            yield detector
    else:
        yield read_detections(path)
