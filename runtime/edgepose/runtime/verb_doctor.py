"""`edgepose doctor`: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from edgepose.runtime.examination import Finding, examine

MARKS = {"ok": "[green]ok[/]", "missing": "[red]missing[/]", "absent": "[dim]not here[/]"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine can do and what to install for the rest.

    "missing" can be installed on this machine; "not here" is hardware or a board's own software.
    """
    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
        return
    console = Console(file=sys.stdout)
    console.print(_table(findings))
    for remedy in dict.fromkeys(f.remedy for f in findings if f.status == "missing"):
        whats = ", ".join(f.what for f in findings if f.status == "missing" and f.remedy == remedy)
        console.print(f"\nTo get {whats}:\n  {remedy}", markup=False, soft_wrap=True)


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(4):
        table.add_column(overflow="fold")
    purpose = ""
    for finding in findings:
        heading = finding.purpose if finding.purpose != purpose else ""
        purpose = finding.purpose
        table.add_row(heading, finding.what, MARKS[finding.status], finding.detail, end_section=False)
    return table
