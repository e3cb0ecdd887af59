"""The claims of the QR-Pose paper, tried on synthetic people: train with and without each idea, then compare.

    python -m edgepose.training.claims --out build/claims

Trains every arm with `edgepose train` (what is finished is not trained again), scores the validation
pictures, and leaves claims.json, claims.md and claims.png in the folder.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import click
import torch
from torch import Tensor

from edgepose.calibration.dataset import Dataset, open_dataset
from edgepose.calibration.quality import Quality, assess, rho_difference
from edgepose.calibration.score import Interval, Score, bootstrap_difference, evaluate
from edgepose.runtime.cli import guarded
from edgepose.runtime.drafts import write_json
from edgepose.runtime.errors import EdgeposeError, require
from edgepose.runtime.progress import track
from edgepose.training.data import spec_of
from edgepose.training.evaluation import poses_in
from edgepose.training.families.qrpose import QrPoseRecipe
from edgepose.training.loop import CHECKPOINT, WEIGHTS
from edgepose.training.models import build, load_published
from edgepose.training.models.qrpose.network import Heads, QrPose, Read
from edgepose.training.recipe import open_recipe
from edgepose.training.run import RESULT

BASE = "qrpose_claims"
# What each arm changes in the base recipe. The last two are without KQE; the second of them has as many
# parameters as the network with it, in wider joint features.
ARMS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "cir": {},
    "gauss": {"loss": {"target": "gauss"}},
    "no_kqe": {"network": {"kqe": False}},
    "no_kqe_wide": {"network": {"kqe": False, "joint_channels": 20}},
}
MIN_HEIGHT_PX = 24.0
Scorer = Literal["pqe", "plain"]


class PlainScore(QrPose):
    """The same network and poses, ranked by S0, the score that does not see the pose: PQE off."""

    def heads(self, instance: Tensor, joints: Tensor, coarse: Tensor, read: Read) -> Heads:
        """All pointwise layers, with S0's logits in place of S's."""
        return super().heads(instance, joints, coarse, read)._replace(logits=self.score0(instance))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trained arm, its poses ranked by one of its two scores."""

    arm: str
    seed: int
    scorer: Scorer
    parameters: int
    score: Score
    quality: Quality


@dataclass(frozen=True, slots=True)
class Claim:
    """Something the paper says, as a difference between two outcomes of one seed; above 0 is for it."""

    text: str
    better: tuple[str, Scorer]
    worse: tuple[str, Scorer]
    difference: Callable[[Outcome, Outcome], Interval]  # 95 % over the pictures


def rho(better: Outcome, worse: Outcome) -> Interval:
    """Spearman's rank correlation of score and OKS."""
    return rho_difference(better.quality, worse.quality)


def ap(better: Outcome, worse: Outcome) -> Interval:
    """Average precision."""
    return bootstrap_difference(better.score, worse.score)


CLAIMS = (
    Claim("CIR ranks poses better than a Gaussian (rho)", ("cir", "pqe"), ("gauss", "pqe"), rho),
    Claim("so it does without PQE (rho)", ("cir", "plain"), ("gauss", "plain"), rho),
    Claim("PQE ranks poses better under CIR (rho)", ("cir", "pqe"), ("cir", "plain"), rho),
    Claim("PQE helps without KQE too (rho)", ("no_kqe", "pqe"), ("no_kqe", "plain"), rho),
    Claim("CIR finds people better than a Gaussian (AP)", ("cir", "pqe"), ("gauss", "pqe"), ap),
    Claim("PQE finds people better under CIR (AP)", ("cir", "pqe"), ("cir", "plain"), ap),
    Claim("KQE makes poses more precise (AP)", ("cir", "pqe"), ("no_kqe", "pqe"), ap),
    Claim("more than as many parameters elsewhere do (AP)", ("cir", "pqe"), ("no_kqe_wide", "pqe"), ap),
)


def verdict(intervals: Sequence[Interval]) -> str:
    """What the intervals of all seeds say together."""
    if all(interval.low > 0 for interval in intervals):
        return "supported"
    if all(interval.high < 0 for interval in intervals):
        return "contradicted"
    return "not resolved"


def recipe_of(base: QrPoseRecipe, arm: str, seed: int) -> QrPoseRecipe:
    """The base recipe with the arm's changes."""
    changes = {name: getattr(base, name).model_copy(update=dict(new)) for name, new in ARMS[arm].items()}
    return base.model_copy(update={**changes, "seed": seed})


def train(recipe: QrPoseRecipe, folder: Path) -> Path:
    """The run's weights, trained by `edgepose train` unless they are there.

    Raises EdgeposeError with the training's own words when it fails.
    """
    if not (folder / RESULT).is_file():
        plan = folder.with_suffix(".yaml")
        plan.parent.mkdir(parents=True, exist_ok=True)
        recipe.save(plan)
        command = [sys.executable, "-m", "edgepose.runtime.cli", "train", str(plan), "--out", str(folder)]
        resume = ["--resume"] if (folder / CHECKPOINT).is_file() else []
        done = subprocess.run([*command, *resume], capture_output=True, text=True, check=False)
        if done.returncode:
            raise EdgeposeError(f"{folder}: training failed: {done.stderr.strip().splitlines()[-1]}")
    return folder / WEIGHTS


def outcomes_of(recipe: QrPoseRecipe, arm: str, weights: Path) -> Iterator[Outcome]:
    """Both scores of a trained arm on the recipe's validation pictures, PQE's first."""
    dataset = open_dataset(str(recipe.data.validation))
    options = recipe.network.model_dump(exclude_none=True)
    whole = cast(QrPose, build(recipe.model, size=(recipe.size, recipe.size), ensemble=False, **options))
    scorers: dict[Scorer, QrPose] = {"pqe": whole, "plain": PlainScore(whole.config)}
    parameters = sum(parameter.numel() for parameter in whole.parameters())
    for scorer, model in scorers.items():
        load_published(model, weights)
        score, quality = _measured(model, dataset, recipe, f"{arm}, seed {recipe.seed}, {scorer}")
        yield Outcome(arm, recipe.seed, scorer, parameters, score, quality)


def _measured(model: QrPose, dataset: Dataset, recipe: QrPoseRecipe, title: str) -> tuple[Score, Quality]:
    spec, model = spec_of(recipe), model.eval()
    samples = [dataset[index] for index in track(range(len(dataset)), title)]
    poses = [poses_in(model, sample.image, spec) for sample in samples]
    truth = [sample.people for sample in samples]
    return (
        evaluate(truth, poses, dataset.skeleton, MIN_HEIGHT_PX),
        assess(truth, poses, dataset.skeleton, MIN_HEIGHT_PX),
    )


def judged(outcomes: Sequence[Outcome]) -> list[tuple[Claim, list[Interval], str]]:
    """Every claim with its interval for each seed, and the verdict."""
    by_key = {(o.arm, o.scorer, o.seed): o for o in outcomes}
    seeds = sorted({outcome.seed for outcome in outcomes})
    result = []
    for claim in CLAIMS:
        keys = [((*claim.better, seed), (*claim.worse, seed)) for seed in seeds]
        intervals = [_interval(claim, by_key[better], by_key[worse]) for better, worse in keys]
        result.append((claim, intervals, verdict(intervals)))
    return result


def _interval(claim: Claim, better: Outcome, worse: Outcome) -> Interval:
    try:
        return claim.difference(better, worse)
    except ValueError:  # too few poses are near anybody: everything is possible
        return Interval(-1.0, 1.0)


def table(outcomes: Sequence[Outcome], claims: Sequence[tuple[Claim, list[Interval], str]]) -> str:
    """Markdown: what was measured, then what it says."""
    lines = [
        "| arm | score | seed | parameters | Spearman | Kendall | MAE | AP | AP75 | AP oracle | gap |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        figures = (o.quality.rho, o.quality.tau, o.quality.mae, o.score.ap, o.score.ap75)
        cells = " | ".join(f"{value or 0:.3f}" for value in (*figures, o.quality.ap_oracle, o.quality.ap_gap))
        lines.append(f"| {o.arm} | {o.scorer} | {o.seed} | {o.parameters} | {cells} |")
    lines += ["", "| claim | 95 % interval of the difference, by seed | verdict |", "|---|---|---|"]
    for claim, intervals, said in claims:
        shown = "; ".join(f"{interval.low:+.3f} .. {interval.high:+.3f}" for interval in intervals)
        lines.append(f"| {claim.text} | {shown} | {said} |")
    return "\n".join(lines) + "\n"


def plot(outcomes: Sequence[Outcome], path: Path) -> None:
    """Rank correlation of every arm and seed, and the reliability of CIR's and the Gaussian's scores."""
    figure = require("matplotlib.figure").Figure(figsize=(10, 3.8), dpi=130, layout="constrained")
    ranks, curve = figure.subplots(1, 2)
    arms = list(ARMS)
    for scorer, colour, shift in (("pqe", "#1f77b4", -0.12), ("plain", "#d9822b", 0.12)):
        chosen = [o for o in outcomes if o.scorer == scorer]
        places = [arms.index(o.arm) + shift for o in chosen]
        label = "S (with PQE)" if scorer == "pqe" else "S0 (without)"
        ranks.plot(places, [o.quality.rho for o in chosen], "o", color=colour, label=label)
    ranks.set_xticks(range(len(arms)), arms)
    ranks.set_ylabel("Spearman of score and OKS")
    ranks.legend(frameon=False)
    curve.plot([0, 1], [0, 1], color="#9db8cf", linewidth=1)
    for arm, colour in (("cir", "#1f77b4"), ("gauss", "#d9822b")):
        for o in (o for o in outcomes if o.arm == arm and o.scorer == "pqe"):
            bins = o.quality.bins
            label = f"{arm}, seed {o.seed}"
            curve.plot([b.predicted for b in bins], [b.actual for b in bins], "o-", color=colour, label=label)
    curve.set_xlabel("score")
    curve.set_ylabel("OKS reached")
    curve.legend(frameon=False)
    for axes in (ranks, curve):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs and results.")
@click.option("--recipe", default=BASE, show_default=True, help="What the arms are changes of.")
@click.option("--seeds", type=click.IntRange(1, 10), default=2, show_default=True, help="How many.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Runs at the same time.")
def main(out: Path, recipe: str, seeds: int, jobs: int) -> None:
    """Train all arms, score them and say which claims hold."""
    base = open_recipe(recipe)
    if not isinstance(base, QrPoseRecipe):
        raise EdgeposeError(
            f"{recipe}: trains {base.model}; the claims are QR-Pose's, name one of its recipes"
        )
    runs = [(arm, recipe_of(base, arm, seed)) for seed in range(seeds) for arm in ARMS]
    with ThreadPoolExecutor(jobs) as pool:
        folders = [out / f"{arm}-{plan.seed}" for arm, plan in runs]
        weights = list(pool.map(train, (plan for _, plan in runs), folders))
    # As in training: on a busy machine threads that wait for each other took 14 times the CPU.
    if base.threads:
        torch.set_num_threads(base.threads)
    outcomes = [
        o for (arm, plan), file in zip(runs, weights, strict=True) for o in outcomes_of(plan, arm, file)
    ]
    claims = judged(outcomes)
    text = table(outcomes, claims)
    (out / "claims.md").write_text(text, encoding="utf-8")
    write_json(out / "claims.json", _facts(outcomes, claims))
    plot(outcomes, out / "claims.png")
    click.echo(text)


def _facts(
    outcomes: Sequence[Outcome], claims: Sequence[tuple[Claim, list[Interval], str]]
) -> dict[str, Any]:
    arms = [
        {
            "arm": o.arm,
            "seed": o.seed,
            "scorer": o.scorer,
            "parameters": o.parameters,
            "score": o.score.to_dict(),
            "quality": o.quality.to_dict(),
        }
        for o in outcomes
    ]
    said = [{"claim": c.text, "intervals": [list(i) for i in found], "verdict": v} for c, found, v in claims]
    return {"arms": arms, "claims": said}


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(standalone_mode=False)))
