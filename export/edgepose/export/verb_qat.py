"""`edgepose qat`: a quantized network learns on, so that it loses less."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgepose.compression.artefact import open_compressed
from edgepose.compression.qat import BEST, best_form, learn, short
from edgepose.compression.source_model import load_model
from edgepose.export.learnt import write_learnt
from edgepose.runtime.drafts import draft_folder
from edgepose.runtime.errors import EdgeposeError
from edgepose.training.recipe import open_recipe

COMPRESSED = "compressed"


@click.command(short_help="Train a quantized network on.")
@click.argument("compressed", type=click.Path(path_type=Path))
@click.option("--recipe", required=True, help="The network's own: a file, or a shipped recipe's name.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the run and its result."
)
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True, help="Of training.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Weights the bundle was exported from, if not the shipped ones.",
)
@click.option("--resume", is_flag=True, help="Continue the run that is in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def qat(
    compressed: Path, recipe: str, out: Path, steps: int, weights: Path | None, resume: bool, as_json: bool
) -> None:
    """Train on what `edgepose compress` wrote into COMPRESSED: weights and scales, at 1/20 of RECIPE's rate.

    BatchNorm is folded already, and the float network is the teacher. The moving average is scored before,
    and five times on the way, on the pictures of the calibration set, which `edgepose verify` refuses; the
    best one is written to OUT/compressed, for `edgepose export --compressed`.
    """
    found = open_compressed(compressed)
    model, origin = load_model(found.spec.model, weights, found.provenance.get("options"))
    if origin["weights_sha256"] != found.provenance.get("weights_sha256"):
        raise EdgeposeError(f"{origin['weights']}: not the weights of {compressed}; name them with --weights")
    target = out / COMPRESSED
    if target.exists():
        raise EdgeposeError(f"{target}: exists already; choose another --out")
    judged = learn(found, model, short(open_recipe(recipe), steps, weights), out, resume)
    if judged is None:
        return
    with draft_folder(target) as draft:
        write_learnt(draft, found, model, best_form(found, model, out), {"qat_steps": steps})
    if as_json:
        click.echo(json.dumps({"out": str(target), "ap": judged}))
        return
    for step, ap in judged.items():
        click.echo(f"AP {ap:.3f} after {step} steps" if step != "0" else f"AP {ap:.3f} as it was")
    click.echo(f"written to {target}, the best of them ({out / BEST})")
