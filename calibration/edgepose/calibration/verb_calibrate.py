"""`edgepose calibrate`: choose the pictures a quantizer sees, or audit a set that exists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.table import Table

from edgepose.calibration.calibration_set import (
    EMPTY,
    SCALES,
    CalibrationSet,
    Exclusion,
    Stratum,
    audit,
    load_calibration_set,
    make_calibration_set,
)
from edgepose.calibration.dataset import open_dataset
from edgepose.runtime.flags import given

SOURCES = (
    "synthetic:count=…,seed=…,size=…, a COCO keypoint .json, or a folder with annotations.json and images/."
)

OF_AUDIT = {"existing", "exclude", "as_json"}
KINDS = tuple(f"{seen} {near}" for seen in ("whole", "partial", "hidden") for near in ("alone", "together"))
LEGEND = (
    "Chosen / in the data. Scale: height against the picture's, from 0.15 small, 0.3 medium, 0.6 large. "
    "Whole: all joints seen, partial: half or more. Together: another person's box covers a tenth or more."
)


@click.command()
@click.option("--data", help=f"Where the pictures come from: {SOURCES}")
@click.option(
    "--exclude", required=True, help="The evaluation data; the set may not share a picture with it."
)
@click.option("--count", default=300, show_default=True, help="How many pictures to choose.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Decides among pictures that serve equally well.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write: images/ and manifest.json.")
@click.option(
    "--audit", "existing", type=click.Path(path_type=Path), help="Check this set instead of making one."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def calibrate(
    data: str | None,
    exclude: str,
    count: int,
    seed: int,
    out: Path | None,
    existing: Path | None,
    as_json: bool,
) -> None:
    """Choose and write a calibration set, or audit one.

    People of every scale, visibility and crowding that the data has are covered, rare ones first. Every
    picture is hashed, and none may be in the evaluation data: a set that shares one is refused, exit code 1.
    """
    if existing is not None:
        if given() - OF_AUDIT:
            raise click.UsageError(
                "--audit checks a set that exists; leave out --data, --out, --count and --seed"
            )
        exclusion = audit(existing, open_dataset(exclude))
        found = load_calibration_set(existing)
    else:
        if data is None or out is None:
            raise click.UsageError("give --data and --out to make a set, or --audit to check one")
        found = make_calibration_set(open_dataset(data), open_dataset(exclude), count, out, seed)
        exclusion = found.manifest.exclusion
    print(_json(found, exclusion)) if as_json else _show(found, exclusion)


def _json(found: CalibrationSet, exclusion: Exclusion) -> str:
    values = found.manifest.to_dict()
    summary = {
        "folder": str(found.folder),
        "sha256": found.sha256,
        "images": len(found),
        "people": sum(entry.people for entry in found.manifest.images),
        "source": values["source"],
        "coverage": values["coverage"],
        "exclusion": {name: getattr(exclusion, name) for name in exclusion.__slots__},
    }
    return json.dumps(summary, indent=1)


def _show(found: CalibrationSet, exclusion: Exclusion) -> None:
    console = Console(width=100, highlight=False)
    console.print(_coverage_table(found.manifest.coverage))
    people = sum(entry.people for entry in found.manifest.images)
    lines = [
        f"{found.folder}: {len(found)} pictures, {people} people, manifest sha256 {found.sha256[:12]}…",
        f"Apart from {exclusion.source}: {exclusion.compared} pictures compared, 0 shared.",
    ]
    if exclusion.near_duplicates:
        lines.append(f"Warning: {exclusion.near_duplicates} pictures look like one of the evaluation data.")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _coverage_table(coverage: Mapping[str, Stratum]) -> Table:
    """Scales downwards, visibility and crowding across; each cell `chosen / in the data`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.caption, table.caption_style, table.caption_justify = LEGEND, "dim", "left"
    table.add_column("pictures with people")
    for kind in KINDS:
        table.add_column(kind.replace(" ", "\n"), justify="right")
    for scale, _ in SCALES:
        table.add_row(scale, *(_cell(coverage.get(f"{scale} {kind}")) for kind in KINDS))
    table.add_row(EMPTY, _cell(coverage.get(EMPTY)))
    return table


def _cell(counts: Stratum | None) -> str:
    return "–" if counts is None else f"{counts.chosen} / {counts.source}"
