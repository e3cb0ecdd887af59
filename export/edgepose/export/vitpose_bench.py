"""SHaRPose's time against that of a ViTPose-B of the same input, on ONNX Runtime's CPU.

    python -m edgepose.export.vitpose_bench sharpose_base_384x288 sharpose_base_256x192 --out build/vitpose

A model is a bundle, or a name: then it is exported with random weights, as ViTPose-B is. Both run in turns,
in one process, through the same backend. Leaves vitpose.json in the folder. Needs `edgepose[bench]`.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table
from safetensors.torch import save_file
from torch import Tensor, nn

from edgepose.export.verification import torch_environment
from edgepose.runtime.backend import Backend, open_backend
from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend
from edgepose.runtime.bench import Timing, alternate
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.cli import guarded
from edgepose.runtime.drafts import write_json
from edgepose.runtime.errors import EdgeposeError, require
from edgepose.runtime.poses import F32
from edgepose.runtime.skeleton import COCO17
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.twostage import GRAPHS, TwoStage
from edgepose.training.models import BUILDERS, build

VITPOSE = "ViTPose-B"
OPSET = 18
PERSONS = 8  # of the larger batch
CLOCK = time.thread_time


# What is asked of the ratio to ViTPose-B's time, by model and by whom it looks at twice.
TARGETS = {("sharpose_base_384x288", "everybody"): 0.75, ("sharpose_base_256x192", "half of them"): 0.72}


@dataclass(frozen=True, slots=True)
class Case:
    """Something timed, held against something else."""

    model: str
    what: str
    against: str
    ms: float  # medians
    against_ms: float
    ratio: float  # median over the rounds, and between what the middle half of them lies
    low: float
    high: float
    target: float | None = None  # the ratio asked for, at most

    @classmethod
    def of(cls, model: str, what: str, timings: Sequence[Timing], share: float = 1.0) -> Case:
        """The second of two timings against the first one, `share` of it counting."""
        first, second = timings
        ratios = (share * ratio for ratio in (second.ratio, second.low, second.high))
        return cls(model, what, first.name, share * second.p50_ms, first.p50_ms, *ratios)


class _Heatmaps(nn.Module):
    """A ViTPose whose answer is a tensor, with an input named like ours."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        heatmaps: Tensor = self.network(images).heatmaps
        return heatmaps


def vitpose(size: tuple[int, int]) -> nn.Module:
    """ViTPose-B (90 M parameters, classic decoder) of random weights for crops of `size` (width, height)."""
    transformers = require("transformers")
    backbone = transformers.VitPoseBackboneConfig(image_size=list(size[::-1]))  # its defaults are ViT-B
    joints = len(COCO17)
    config = transformers.VitPoseConfig(backbone_config=backbone, num_labels=joints, use_simple_decoder=False)
    network: nn.Module = transformers.VitPoseForPoseEstimation(config)
    return _Heatmaps(network).eval()


def export_vitpose(size: tuple[int, int], path: Path) -> None:
    """Its ONNX graph, of `images` (batch, 3, height, width)."""
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of every library that is not there
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's and transformers' deprecations
        program = torch.onnx.export(
            vitpose(size),
            (torch.zeros(2, 3, size[1], size[0]),),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["heatmaps"],
            dynamic_shapes=(batch,),
            verbose=False,
        )
    assert program is not None
    program.save(str(path))


def bundle_of(model: str, folder: Path) -> Bundle:
    """The bundle `model`, or that of a model of this name with random weights, exported into `folder`."""
    if model not in BUILDERS:
        return Bundle.open(model)
    weights = folder / f"{model}.safetensors"
    torch.manual_seed(0)
    # Untrained biases are all 0; the exporter would make one of the equal ones, and names would clash.
    state = {
        name: value + 0.02 * torch.randn_like(value) for name, value in build(model).state_dict().items()
    }
    save_file(state, weights)
    verb = [sys.executable, "-m", "edgepose.runtime.cli", "export", model, "--weights", str(weights)]
    done = subprocess.run([*verb, "--out", str(folder / model)], text=True, capture_output=True, check=False)
    if done.returncode:
        raise EdgeposeError(f"{model}: export failed: {done.stderr.strip().splitlines()[-1]}")
    return Bundle.open(folder / model)


def cases_of(bundle: Bundle, folder: Path, rounds: int) -> Iterator[Case]:
    """All that is timed of one bundle, in one thread."""
    spec = bundle.spec
    size, graph = (spec.width, spec.height), folder / f"vitpose_{spec.height}x{spec.width}.onnx"
    export_vitpose(size, graph)
    with ExitStack() as stack:
        rival = stack.enter_context(OnnxRuntimeBackend(graph, 1))
        ours = [stack.enter_context(open_backend(bundle, "fp32", name, 1)) for name in GRAPHS]
        for count in (2, PERSONS):
            crops = _crops(count, size)
            for share, whom in ((1.0, "everybody"), (0.5, "half of them")):
                pair: dict[str, Callable[[], object]] = {
                    f"{VITPOSE}, {count} persons": partial(rival.run, {"images": crops}),
                    "ours": _look(ours, spec, crops, share),
                }
                timings = alternate(pair, rounds, CLOCK)
                case = Case.of(spec.model, f"{count} persons, {whom} looked at twice", timings)
                yield replace(case, target=TARGETS.get((spec.model, whom)))
        one, many = (_look(ours, spec, _crops(count, size), 1.0) for count in (1, PERSONS))
        timings = alternate({"1 person": one, "many": many}, rounds, CLOCK)
        yield replace(Case.of(spec.model, f"a person of {PERSONS}", timings, 1 / PERSONS), target=1.0)


def _crops(count: int, size: tuple[int, int]) -> F32:
    return np.random.default_rng(0).standard_normal((count, 3, size[1], size[0]), np.float32)


def _look(graphs: Sequence[Backend], spec: Spec, crops: F32, share: float) -> Callable[[], object]:
    """Both looks at the crops, the second one at that `share` of them whose quality is the lowest."""
    coarse, fine = graphs
    quality = np.sort(TwoStage(coarse, fine, spec, 0.0).glance(crops).quality)
    wanted = round(share * len(crops))
    limit = float("inf") if wanted == len(crops) else float(quality[wanted])
    network = TwoStage(coarse, fine, spec, limit)
    assert network.look(crops).refined.sum() == wanted, "two crops are of the same quality"
    return partial(network.look, crops)


def table(cases: Sequence[Case]) -> Table:
    """One line per case."""
    result = Table(Column("ours", overflow="fold"), "held against", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("ms", "its ms", "ratio", "middle half", "asked for"):
        result.add_column(name, justify="right", no_wrap=True)
    for case in cases:
        figures = (f"{case.ms:.0f}", f"{case.against_ms:.0f}", f"{case.ratio:.3f}")
        asked = ""
        if case.target is not None:
            asked = f"≤ {case.target:g} " + ("[green]✓[/]" if case.ratio <= case.target else "[red]✗[/]")
        what = f"{case.model}: {case.what}"
        result.add_row(what, case.against, *figures, f"{case.low:.3f} … {case.high:.3f}", asked)
    return result


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of graphs and results.")
@click.option("--rounds", type=click.IntRange(3), default=15, show_default=True, help="Runs of each case.")
def main(models: tuple[str, ...], out: Path, rounds: int) -> None:
    """Time MODELS, bundles or names, against ViTPose-B, in the CPU time of one thread."""
    require("transformers")
    out.mkdir(parents=True, exist_ok=True)
    cases = [case for model in models for case in cases_of(bundle_of(model, out), out, rounds)]
    versions = {name: version(name) for name in ("transformers", "onnxruntime")}
    facts = {
        "rounds": rounds,
        "environment": torch_environment() | versions,
        "cases": [asdict(case) for case in cases],
    }
    write_json(out / "vitpose.json", facts)
    Console(width=110).print(table(cases))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(standalone_mode=False)))
