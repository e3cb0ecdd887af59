"""`edgepose verify`: score every artefact of a bundle against FP32, and fail when a gate fails."""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from edgepose.calibration import onboard
from edgepose.calibration.boxes import Finder, Labels, open_detector, read_detections
from edgepose.calibration.dataset import Dataset, open_dataset
from edgepose.calibration.evaluation import TRUTH, Shown, require_skeleton, require_unseen, told
from edgepose.calibration.ledger import Gates, Ledger, joints_table, looks_table, quality_table, table
from edgepose.calibration.measure import held_against, ledger_in, with_ledger
from edgepose.runtime.bundle import ZIP_SUFFIX, Bundle
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.flags import FiniteRange, given
from edgepose.runtime.spec import Spec
from edgepose.runtime.stream.camera_path import CameraPath
from edgepose.runtime.trt.build import Settings as EngineSettings
from edgepose.runtime.trt.cache import default_root
from edgepose.runtime.trt.cuda import LIBRARIES
from edgepose.runtime.trt.engines import Options, batches_for

log = logging.getLogger(__name__)
OF_TORCH, OF_ENGINES = {"weights", "compressed"}, {"cuda", "engines"}
ELSEWHERE = {"on_board", "folder", "cameras"} | OF_TORCH  # what --against leaves no room for


@dataclass(frozen=True, slots=True)
class Usual:
    """On what artefacts are measured where nothing else is said."""

    data: str = "synthetic:count=300,seed=7"
    boxes: str | None = None  # None: the labels, where any are needed
    min_height_px: float = 0.0

    @classmethod
    def of(cls, bundle: Bundle) -> Usual:
        """As the bundle's ledger was, so that a board's rows can stand beside the others."""
        ledger = ledger_in(bundle)
        if ledger is None:
            return cls()
        data = ledger.data.get("evaluation", cls().data)
        return cls(data, ledger.data.get("boxes"), ledger.baseline.score.min_height_px)


def _gate(name: str, default: float | None, text: str, most: float | None = 100) -> Callable[..., Any]:
    kind = FiniteRange(0, most)
    return click.option(name, type=kind, default=default, show_default=True, help=f"Gate: {text}.")


GATES = (
    _gate("--max-ap-loss", 1.0, "points of AP that may be lost to FP32"),
    _gate("--max-drift", 1.0, "median keypoint drift, pixels of the input", most=None),
    _gate("--max-duplicates", 1.0, "more duplicates than FP32 has, in % of the people", most=None),
    _gate("--min-region-overlap", 90.0, "% of the regions seen sharp that must be FP32's", most=None),
    _gate("--max-refined-shift", 5.0, "points that the share of people looked at again may be off FP32's"),
    _gate("--min-ap", None, "points of AP that the FP32 model itself must reach"),
    _gate("--max-camera-loss", 5.0, "points of AP that may be lost to FP32 behind a --camera"),
)


def gated(command: Callable[..., None]) -> Callable[..., None]:
    """A verb's function that takes `gates`, with the options that make them up."""

    @functools.wraps(command)
    def with_gates(
        max_ap_loss: float,
        max_drift: float,
        max_duplicates: float,
        min_region_overlap: float,
        max_refined_shift: float,
        min_ap: float | None,
        max_camera_loss: float,
        **others: Any,
    ) -> None:
        gates = Gates(
            max_ap_loss / 100,
            max_drift,
            None if min_ap is None else min_ap / 100,
            max_duplicates / 100,
            min_region_overlap / 100,
            max_refined_shift / 100,
            max_camera_loss / 100,
        )
        command(gates=gates, **others)

    result: Callable[..., None] = with_gates
    for option in reversed(GATES):
        result = option(result)
    return result


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--on-board",
    is_flag=True,
    help="Prove the TensorRT engines of this board on the golden pictures, score them beside ONNX Runtime, "
    "and append their rows to the ledger. Needs no torch.",
)
@click.option(
    "--data",
    help="Evaluation pictures: synthetic:… or COCO files.  "
    f"[default: {Usual().data}; with --on-board those of the bundle's ledger]",
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
    "--against",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Instead of torch: another bundle, such as the deployed one; its FP32 graph is the baseline. "
    "The ledger in BUNDLE stays as it is.",
)
@click.option(
    "--camera",
    "cameras",
    multiple=True,
    metavar="PATH",
    help="Add a row: the best artefact, shown the pictures as a camera delivers them. nv12: a sensor on the "
    "board; mjpeg:85: one on USB, of this quality, 1 to 100; h264:28: one on the network, of this quantizer, "
    "1 to 50, finest first. Can be given several times.",
)
@click.option(
    "--min-height",
    type=FiniteRange(0),
    help="Leave out people lower than this, in pixels.  [default: 0; with --on-board as the bundle's ledger]",
)
@click.option(
    "--boxes",
    metavar="truth|FILE|BUNDLE",
    help="For networks of one person at a time: the labels, COCO-format detections, or the bundle of a "
    "network that finds people.  [default: truth; with --on-board as the bundle's ledger]",
)
@click.option(
    "--blame",
    "folder",
    type=click.Path(path_type=Path),
    help="Instead: which layers' INT8 costs how much. Into this folder; a killed run goes on where it was.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of every artefact."
)
@click.option(
    "--cuda", type=click.Choice(list(LIBRARIES)), default="pycuda", show_default=True, help="With --on-board."
)
@click.option(
    "--engines", type=click.Path(path_type=Path), help="With --on-board: the folder of the engines."
)
@click.option("--per-joint", is_flag=True, help="Also print the OKS of every joint.")
@click.option("--json", "as_json", is_flag=True, help="Print the ledger as JSON.")
@gated
def verify(
    bundle: Path,
    on_board: bool,
    data: str | None,
    weights: Path | None,
    compressed: Path | None,
    against: Path | None,
    cameras: Sequence[str],
    min_height: float | None,
    boxes: str | None,
    folder: Path | None,
    threads: int,
    cuda: str,
    engines: Path | None,
    per_joint: bool,
    as_json: bool,
    gates: Gates,
) -> None:
    """Score every artefact of BUNDLE with one evaluator; write its ledger.json; exit 1 when a gate fails.

    Every picture is shown to all artefacts in turns, so their times can be compared. AP and AR are against
    the labels, drift is against torch FP32; with --on-board against ONNX FP32. An engine that fails gives way
    to the next safer one, and it is that one which `edgepose stream` runs from then on. With --against two
    bundles are compared, such as a pruned network and the one it was, and the gates say what it may cost.

    With --blame each layer is INT8 by itself, and all but it are; a few dozen pictures will do. The layers
    are ranked by what they cost, and as many of the worst are to stay float as the gates ask for.
    """
    _require_of_use(on_board)
    opened = Bundle.open(bundle)
    usual = Usual.of(opened) if on_board else Usual()
    least_px = usual.min_height_px if min_height is None else min_height
    dataset = open_dataset(data or usual.data)
    require_skeleton(dataset, opened.spec)
    require_unseen(dataset, opened)
    paths = tuple(map(CameraPath.parse, cameras))
    shown = _shown(dataset, opened.spec, boxes or usual.boxes, threads)
    if folder is not None:
        from edgepose.export.blaming import blame_bundle

        found = blame_bundle(opened, (shown, gates, least_px, threads), folder, as_json)
        _require_passed(found.frontier[0].failures)
        return
    if on_board:
        made = EngineSettings(batches_for(opened.spec))
        options = Options(made, cuda, engines or default_root())
        settings = onboard.Settings(options, gates, least_px, threads, paths)
        _on_board(opened, shown, settings, as_json, per_joint)
        return
    if against is not None:
        ledger = held_against(opened, Bundle.open(against), shown, gates, least_px, threads)
    else:
        ledger = _against_torch(opened, (weights, compressed), shown, gates, least_px, threads, paths)
    # First what was measured: the bundle may be where nothing can be written.
    _show(ledger, opened.spec, as_json, per_joint)
    if against is None:
        with_ledger(opened, ledger)
    _require_passed(ledger.verdict())


def _against_torch(
    bundle: Bundle,
    files: tuple[Path | None, Path | None],
    shown: Shown,
    gates: Gates,
    min_height: float,
    threads: int,
    cameras: Sequence[CameraPath],
) -> Ledger:
    """`verification.against_torch`, which needs torch; `files`: weights, and what `compress` wrote."""
    from edgepose.export.verification import Sources, against_torch
    from edgepose.training.models import shipped_weights

    sources = Sources(bundle, files[0] or shipped_weights(bundle.spec.model), files[1], threads)
    return against_torch(sources, shown, gates, min_height, cameras)


def _require_of_use(on_board: bool) -> None:
    """Refuse options that would do nothing, or contradict each other."""
    asked = given()
    if "folder" in asked and asked & {"per_joint", "cameras"}:
        raise click.UsageError("--blame ranks layers alone: leave out --per-joint and --camera")
    if "against" in asked and asked & ELSEWHERE:
        raise click.UsageError(
            "--against compares two bundles: leave out --on-board, --blame, --camera, --weights and "
            "--compressed"
        )
    if on_board and "folder" in asked:
        raise click.UsageError("--blame looks at the INT8 file, --on-board at engines: give one of them")
    if on_board and asked & OF_TORCH:
        raise EdgeposeError("--on-board needs no torch: leave out --weights and --compressed")
    if not on_board and asked & OF_ENGINES:
        raise click.UsageError("--cuda and --engines are for --on-board; give it, too")


def _on_board(
    bundle: Bundle, shown: Shown, settings: onboard.Settings, as_json: bool, per_joint: bool
) -> None:
    found = onboard.verified(bundle, shown, settings)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        print(", ".join(f"{name} {value}" for name, value in found.board.items()))
        _print(found.ledger, bundle.spec, per_joint)
        for line in onboard.lines(found):
            print(line)
    before = ledger_in(bundle)
    if before is None:
        with_ledger(bundle, found.ledger)
    elif others := onboard.differences(before, found.ledger):
        log.warning(
            "%s: its ledger is over %s, so this board's rows are shown only; leave out --data, --boxes and "
            "--min-height to measure as it was",
            bundle.path,
            ", ".join(others),
        )
    else:
        with_ledger(bundle, before.appended(found.ledger.rows))
    _require_passed(found.failures())


def _show(ledger: Ledger, spec: Spec, as_json: bool, per_joint: bool) -> None:
    if as_json:
        print(json.dumps(ledger.to_dict(), indent=1))
    else:
        _print(ledger, spec, per_joint)


def _print(ledger: Ledger, spec: Spec, per_joint: bool) -> None:
    console = Console(file=sys.stdout, width=100)  # narrower, in a pipe, figures would be cut
    console.print(table(ledger))
    console.print(quality_table(ledger))
    if ledger.baseline.looks is not None:
        console.print(looks_table(ledger))
    if per_joint:
        console.print(joints_table(ledger, spec.joints().joints))


def _require_passed(failures: Sequence[str]) -> None:
    if failures:
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
