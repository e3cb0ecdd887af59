"""`edgepose demo`: the whole chain on this machine, with a report."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from edgepose.calibration.calibration_set import FEWEST
from edgepose.calibration.ledger import quality_table, table
from edgepose.export import demo as chain
from edgepose.export import dial
from edgepose.export.report import failures, stream_sentence, watch_lines, write_report
from edgepose.runtime.errors import GateFailed


@click.command()
@click.option(
    "--out",
    default=Path("build/demo"),
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for everything the demo makes.",
)
@click.option(
    "--pictures",
    type=click.IntRange(1),
    default=160,
    show_default=True,
    help="Held-out pictures every artefact is scored on.",
)
@click.option(
    "--calibration",
    type=click.IntRange(FEWEST),
    default=96,
    show_default=True,
    help="Pictures the quantizer sees.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def demo(out: Path, pictures: int, calibration: int, as_json: bool) -> None:
    """Run the whole chain: calibrate, compress, export, verify, stream, read the stream back, report.

    Every step is a command you can type yourself; they are printed as they run.
    """
    start = time.monotonic()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    plan = chain.Plan(out, pictures=pictures, calibration=calibration)
    outcome = chain.run(plan, lambda line: console.print(f"[bold]$[/] {line}"))
    report = out / "report.html"
    write_report(report, outcome)
    failed = failures(outcome)
    if as_json:
        print(json.dumps(_figures(outcome, failed, str(report)), indent=1))
    else:
        _summary(outcome, report, time.monotonic() - start)
    if failed:
        raise GateFailed("a gate failed: " + "; ".join(failed))


def _figures(outcome: chain.Outcome, failed: list[str], report: str) -> dict[str, Any]:
    score = outcome.streamed.score
    return {
        "passed": not failed,
        "failures": failed,
        "report": report,
        "bundle": str(outcome.bundle.path),
        "ledger": outcome.ledger.to_dict(),
        "refining": outcome.curve and outcome.curve.to_dict(),
        "stream": {
            "frames": score.frames,
            "people": score.people,
            "found": score.found,
            "server": outcome.streamed.summary,
        },
    }


def _summary(outcome: chain.Outcome, report: Path, seconds: float) -> None:
    console = Console(width=100, highlight=False)
    console.print(table(outcome.ledger))
    console.print(quality_table(outcome.ledger))
    if outcome.curve is not None:
        console.print(dial.table(outcome.curve))
    console.print(stream_sentence(outcome.streamed))
    server = outcome.streamed.summary
    console.print(
        f"Stream: {server['fps']:.1f} frames/s with {server['encoder']}, capture to poses "
        f"{server['pose_latency_p50_ms']:.0f} ms (median) and {server['pose_latency_p95_ms']:.0f} ms (95 %), "
        f"stopped {server['stop_s']} s after SIGTERM."
    )
    console.print(
        f"\nThe chain took {seconds:.0f} s. Report: {report}\nBundle: {outcome.bundle.path}\n\nWatch it live:"
    )
    for line in watch_lines(outcome):
        console.print(f"  {line}", soft_wrap=True)
