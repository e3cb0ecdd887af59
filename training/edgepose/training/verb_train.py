"""`edgepose train`: a recipe in, weights out."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgepose.runtime.errors import require


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Continue the run that is in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def train(recipe: str, out: Path, resume: bool, as_json: bool) -> None:
    """Train a model by RECIPE, a YAML file or the name of a shipped recipe (qrpose_tiny, sharpose_smoke).

    Leaves in --out: weights.safetensors (the moving average: what to export), checkpoint.safetensors,
    recipe.yaml with every key resolved, tensorboard/ and result.json. Ctrl-C saves a checkpoint, and
    --resume goes on from the last one.
    """
    for library in ("torch", "pydantic", "yaml", "safetensors"):
        require(library)
    from edgepose.training.recipe import open_recipe
    from edgepose.training.run import train_and_score

    figures = train_and_score(open_recipe(recipe), out, resume)
    if figures is None:
        return
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo(f"{figures['model']}: {figures['steps']} steps in {figures['seconds']:.0f} s")
    if figures["score"]:
        score = figures["score"]
        click.echo(
            f"AP {score['ap']:.3f} on {score['people']} people of {score['min_height_px']:.0f} px or more"
        )
    click.echo(f"weights: {figures['weights']}")
