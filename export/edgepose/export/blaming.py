"""Blame for a bundle: its graphs, the pictures it was calibrated on, and what is kept in a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from edgepose.calibration.evaluation import Shown
from edgepose.calibration.ledger import Gates
from edgepose.calibration.measure import environment
from edgepose.compression.answers import Answers
from edgepose.compression.blame import Blame, Judge, advice, blame, points_table, table
from edgepose.compression.graph import load_onnx
from edgepose.compression.groups import switches_of
from edgepose.export.cpu_kernels import as_calibrated
from edgepose.export.plots import frontier
from edgepose.runtime.backend import CPU_VIEWS
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.drafts import draft_file, write_json

SHOWN_LAYERS = 20  # of a ranking; all are in blame.json


def blame_bundle(
    bundle: Bundle, judge: tuple[Shown, Gates, float, int], folder: Path, as_json: bool
) -> Blame:
    """Rank the bundle's INT8 layers on what is `shown`, print that, and leave it in the `folder`.

    `judge`: what is shown, the gates, the least height of people in pixels, CPU threads.
    """
    shown, gates, min_height, threads = judge
    fp32, int8 = (
        {graph: load_onnx(bundle.graph(graph, CPU_VIEWS[precision])) for graph in bundle.spec.graphs}
        for precision in ("fp32", "int8")
    )
    int8 = {graph: as_calibrated(model) for graph, model in int8.items()}
    switches = switches_of(fp32, int8, (bundle.spec.width, bundle.spec.height))
    answers = Answers(folder / "answers", switches, shown, bundle.spec, threads)
    found = blame(Judge(answers, gates, min_height))
    about = {"bundle": str(bundle.path), "evaluation": shown.pictures.source, **environment()}
    _keep(found, about, folder)
    if as_json:
        print(json.dumps({**about, **found.to_dict()}, indent=1))
    else:
        _print(found)
    return found


def _keep(found: Blame, about: dict[str, Any], folder: Path) -> None:
    write_json(folder / "blame.json", {**about, **found.to_dict()})
    with draft_file(folder / "frontier.png") as temporary:
        temporary.write_bytes(frontier(found))


def _print(found: Blame) -> None:
    console = Console(file=sys.stdout, width=110)  # names of two graphs on one line
    console.print(table(found, SHOWN_LAYERS))
    console.print(points_table(found))
    console.print(advice(found), soft_wrap=True, markup=False)
