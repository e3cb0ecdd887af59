"""The claims of the QR-Pose paper, tried on synthetic people: train with and without each idea, then compare.

    python -m edgepose.export.claims --out build/claims

Everything is done by the verbs, whose commands can be repeated by hand: `train` for every arm, `export` for
every score of it, `verify --against` for every claim and seed. What is finished is not done again. Leaves
claims.json, claims.md and claims.png in the folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click

from edgepose.calibration.ledger import Ledger, Row
from edgepose.calibration.score import Interval
from edgepose.runtime.cli import guarded
from edgepose.runtime.drafts import read_json, write_json
from edgepose.runtime.errors import EdgeposeError, require
from edgepose.training.families.qrpose import QrPoseRecipe
from edgepose.training.loop import CHECKPOINT, WEIGHTS
from edgepose.training.models.qrpose.network import Ranking
from edgepose.training.recipe import open_recipe
from edgepose.training.run import RESULT

BASE = "qrpose_claims"
# What each arm changes in the base recipe. The last two are without KQE; the second of them has as many
# parameters as the network with it, in wider joint features.
ARMS: Mapping[str, Mapping[str, Any]] = {
    "kqe": {},
    "no_kqe": {"kqe": False},
    "no_kqe_wide": {"kqe": False, "joint_channels": 20},
}
MIN_HEIGHT_PX = 24.0
PASSED, GATE_FAILED = 0, 1  # exit codes


@dataclass(frozen=True, slots=True)
class Scored:
    """A trained arm whose poses are chosen and ranked by one of its four scores."""

    arm: str
    ranking: Ranking


@dataclass(frozen=True, slots=True)
class Claim:
    """Something the paper says, as a difference between two of one seed; above 0 is for it."""

    text: str
    better: Scored
    worse: Scored
    figure: Callable[[Row], Interval | None]  # 95 % over the pictures


def rho(row: Row) -> Interval | None:
    """Spearman's rank correlation of score and OKS."""
    return row.rho_difference


def tau(row: Row) -> Interval | None:
    """Kendall's tau-b of the same."""
    return row.tau_difference


def ap(row: Row) -> Interval | None:
    """Average precision."""
    return row.difference


OURS = Scored("kqe", "cir_pqe")
CLAIMS = (
    Claim("CIR ranks poses better than a Gaussian (ρ)", OURS, Scored("kqe", "gauss_pqe"), rho),
    Claim("CIR ranks poses better than a Gaussian (τ)", OURS, Scored("kqe", "gauss_pqe"), tau),
    Claim("CIR does so without PQE (ρ)", Scored("kqe", "cir"), Scored("kqe", "gauss"), rho),
    Claim("CIR does so without KQE (ρ)", Scored("no_kqe", "cir_pqe"), Scored("no_kqe", "gauss_pqe"), rho),
    Claim("PQE ranks poses better under CIR (ρ)", OURS, Scored("kqe", "cir"), rho),
    Claim("PQE ranks poses better under CIR (τ)", OURS, Scored("kqe", "cir"), tau),
    Claim("PQE does so under a Gaussian (ρ)", Scored("kqe", "gauss_pqe"), Scored("kqe", "gauss"), rho),
    Claim("PQE does so without KQE (ρ)", Scored("no_kqe", "cir_pqe"), Scored("no_kqe", "cir"), rho),
    Claim("CIR finds people better than a Gaussian (AP)", OURS, Scored("kqe", "gauss_pqe"), ap),
    Claim("PQE finds people better under CIR (AP)", OURS, Scored("kqe", "cir"), ap),
    Claim("KQE makes poses more precise (AP)", OURS, Scored("no_kqe", "cir_pqe"), ap),
    Claim("more than as many parameters elsewhere do (AP)", OURS, Scored("no_kqe_wide", "cir_pqe"), ap),
)


def verdict(intervals: Sequence[Interval]) -> str:
    """What the intervals of all seeds say together."""
    if all(interval.low > 0 for interval in intervals):
        return "supported"
    if all(interval.high < 0 for interval in intervals):
        return "contradicted"
    return "not resolved"


def recipe_of(base: QrPoseRecipe, arm: str, seed: int) -> QrPoseRecipe:
    """The base recipe with the arm's changes and the four scores of every arm."""
    network = base.network.model_copy(update={"rivals": True, **ARMS[arm]})
    return base.model_copy(update={"network": network, "seed": seed})


def run(verb: str, *arguments: object, accepted: Sequence[int] = (PASSED,)) -> str:
    """What a verb prints. Raises EdgeposeError with its own last words when its exit code is another."""
    command = [sys.executable, "-m", "edgepose.runtime.cli", verb, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in accepted:
        raise EdgeposeError(f"edgepose {verb} {arguments[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


@dataclass(frozen=True, slots=True)
class Trial:
    """One seed of every arm, in a folder."""

    base: QrPoseRecipe
    seed: int
    folder: Path

    def train(self, arm: str) -> Path:
        """The arm's weights, trained unless they are there."""
        folder = self.folder / arm
        if not (folder / RESULT).is_file():
            plan = folder.with_suffix(".yaml")
            plan.parent.mkdir(parents=True, exist_ok=True)
            recipe_of(self.base, arm, self.seed).save(plan)
            resume = ["--resume"] if (folder / CHECKPOINT).is_file() else []
            run("train", plan, "--out", folder, *resume)
        return folder / WEIGHTS

    def export(self, scored: Scored) -> Path:
        """The bundle of an arm's network, with peaks of this score at all pixels, each with its own pose."""
        bundle = self.folder / f"{scored.arm}-{scored.ranking}"
        if not bundle.is_dir():
            network = recipe_of(self.base, scored.arm, self.seed).network.model_dump(exclude_none=True)
            options = {
                **network,
                "size": [self.base.size] * 2,
                "head": "dense",
                "ensemble": False,
                "ranked_by": scored.ranking,
            }
            named = (f"--option={name}={json.dumps(value)}" for name, value in options.items())
            weights = self.folder / scored.arm / WEIGHTS
            run("export", self.base.model, "--weights", weights, "--out", bundle, *named)
        return bundle

    def compare(self, better: Scored, worse: Scored) -> Ledger:
        """The one held against the other on the recipe's validation pictures: the worse is the baseline."""
        names = [f"{each.arm}-{each.ranking}" for each in (better, worse)]
        file = self.folder / f"{names[0]}-against-{names[1]}.json"
        if not file.is_file():
            shown = ["--data", self.base.data.validation, "--min-height", MIN_HEIGHT_PX, "--json"]
            bundles = [self.folder / names[0], "--against", self.folder / names[1]]
            # Claims are no gates: poses may move as far as they like.
            found = run("verify", *bundles, *shown, accepted=(PASSED, GATE_FAILED))
            write_json(file, json.loads(found))
        return Ledger.from_dict(read_json(file, "a ledger"), str(file))


Pair = tuple[Scored, Scored]  # better, worse


def pairs_of(claims: Iterable[Claim]) -> list[Pair]:
    """What is to be compared, each once."""
    return list(dict.fromkeys((claim.better, claim.worse) for claim in claims))


def judged(ledgers: Sequence[Mapping[Pair, Ledger]]) -> list[tuple[Claim, list[Interval], str]]:
    """Every claim with its interval for each seed, and the verdict. The ledgers are of a seed each."""
    result = []
    for claim in CLAIMS:
        rows = [of_seed[claim.better, claim.worse].rows[1] for of_seed in ledgers]
        # Too few poses near anybody: everything is possible.
        intervals = [claim.figure(row) or Interval(-1.0, 1.0) for row in rows]
        result.append((claim, intervals, verdict(intervals)))
    return result


def measured(ledgers: Sequence[Mapping[Pair, Ledger]]) -> list[tuple[Scored, int, Row]]:
    """What was compared, each once, with its seed."""
    rows: dict[tuple[Scored, int], Row] = {}
    for seed, of_seed in enumerate(ledgers):
        for pair, ledger in of_seed.items():
            worse, better = ledger.rows
            rows |= {(pair[0], seed): better, (pair[1], seed): worse}
    ordered = sorted(rows, key=lambda key: (list(ARMS).index(key[0].arm), key[0].ranking, key[1]))
    return [(*key, rows[key]) for key in ordered]


def table(
    rows: Sequence[tuple[Scored, int, Row]], claims: Sequence[tuple[Claim, list[Interval], str]]
) -> str:
    """Markdown: what was measured, then what it says."""
    lines = [
        "| arm | score | seed | Spearman | Kendall | MAE | AP | AP75 | AP oracle | gap |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for scored, seed, row in rows:
        score, quality = row.score, row.quality
        worth = (None,) * 3 if quality is None else (quality.rho, quality.tau, quality.mae)
        best = (None,) * 2 if quality is None else (quality.ap_oracle, quality.ap_gap)
        figures = (*worth, score.ap, score.ap75, *best)
        cells = " | ".join("" if value is None else f"{value:.3f}" for value in figures)
        lines.append(f"| {scored.arm} | {scored.ranking} | {seed} | {cells} |")
    lines += ["", "| claim | 95 % interval of the difference, by seed | verdict |", "|---|---|---|"]
    for claim, intervals, said in claims:
        shown = "; ".join(f"{interval.low:+.3f} .. {interval.high:+.3f}" for interval in intervals)
        lines.append(f"| {claim.text} | {shown} | {said} |")
    return "\n".join(lines) + "\n"


COLOURS: Mapping[Ranking, str] = {
    "cir_pqe": "#1f77b4",
    "cir": "#8ec1e6",
    "gauss_pqe": "#d9822b",
    "gauss": "#f0c08a",
}


def plot(rows: Sequence[tuple[Scored, int, Row]], path: Path) -> None:
    """Rank correlation of every arm, score and seed, and the reliability of CIR's and the Gaussian's."""
    figure = require("matplotlib.figure").Figure(figsize=(10, 3.8), dpi=130, layout="constrained")
    ranks, curve = figure.subplots(1, 2)
    arms = list(ARMS)
    for place, (ranking, colour) in enumerate(COLOURS.items()):
        chosen = [(s.arm, r.quality) for s, _, r in rows if s.ranking == ranking and r.quality is not None]
        places = [arms.index(arm) + 0.12 * (place - 1.5) for arm, _ in chosen]
        ranks.plot(places, [quality.rho for _, quality in chosen], "o", color=colour, label=ranking)
    ranks.set_xticks(range(len(arms)), arms)
    ranks.set_xlim(-0.5, len(arms) - 0.5)
    ranks.set_ylabel("Spearman of score and OKS")
    curve.plot([0, 1], [0, 1], color="#9db8cf", linewidth=1)
    for scored, seed, row in rows:
        if scored.arm == OURS.arm and scored.ranking.endswith("_pqe") and row.quality is not None:
            bins, style = row.quality.bins, "o-" if seed == 0 else "o--"
            xy = [b.predicted for b in bins], [b.actual for b in bins]
            curve.plot(*xy, style, color=COLOURS[scored.ranking], label=f"{scored.ranking}, seed {seed}")
    curve.set_xlabel("score")
    curve.set_ylabel("OKS reached")
    for axes in (ranks, curve):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs and results.")
@click.option("--recipe", default=BASE, show_default=True, help="What the arms are changes of.")
@click.option("--seeds", type=click.IntRange(1, 10), default=2, show_default=True, help="How many.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Verbs at the same time.")
def main(out: Path, recipe: str, seeds: int, jobs: int) -> None:
    """Train all arms, score them and say which claims hold."""
    base = open_recipe(recipe)
    if not isinstance(base, QrPoseRecipe):
        raise EdgeposeError(
            f"{recipe}: trains {base.model}; the claims are QR-Pose's, name one of its recipes"
        )
    ledgers = tried([Trial(base, seed, out / f"seed-{seed}") for seed in range(seeds)], jobs)
    rows, claims = measured(ledgers), judged(ledgers)
    text = table(rows, claims)
    (out / "claims.md").write_text(text, encoding="utf-8")
    write_json(out / "claims.json", _facts(rows, claims))
    plot(rows, out / "claims.png")
    click.echo(text)


def tried(trials: Sequence[Trial], jobs: int) -> list[dict[Pair, Ledger]]:
    """All that the claims compare, by trial; `jobs` verbs at the same time."""
    pairs = pairs_of(CLAIMS)
    scored = list(dict.fromkeys(each for pair in pairs for each in pair))
    arms = [arm for arm in ARMS if any(each.arm == arm for each in scored)]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda job: job[0].train(job[1]), product(trials, arms)))
        list(pool.map(lambda job: job[0].export(job[1]), product(trials, scored)))
        ledgers = list(pool.map(lambda job: job[0].compare(*job[1]), product(trials, pairs)))
    found = [ledgers[start : start + len(pairs)] for start in range(0, len(ledgers), len(pairs))]
    return [dict(zip(pairs, of_seed, strict=True)) for of_seed in found]


def _facts(
    rows: Sequence[tuple[Scored, int, Row]], claims: Sequence[tuple[Claim, list[Interval], str]]
) -> dict[str, Any]:
    scores = [
        {
            "arm": scored.arm,
            "ranking": scored.ranking,
            "seed": seed,
            "score": row.score.to_dict(),
            "quality": row.quality and row.quality.to_dict(),
        }
        for scored, seed, row in rows
    ]
    said = [{"claim": c.text, "intervals": [list(i) for i in found], "verdict": v} for c, found, v in claims]
    return {"scores": scores, "claims": said}


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(standalone_mode=False)))
