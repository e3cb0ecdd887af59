"""`edgepose compress`: NNCF post-training INT8 of a FP32 bundle, calibrated on an audited set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgepose.calibration.boxes import Labels, open_detector, read_detections
from edgepose.calibration.calibration_set import CalibrationSet, audit, load_calibration_set, require_useful
from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.evaluation import TRUTH, Shown, require_skeleton, told
from edgepose.calibration.ledger import Gates
from edgepose.compression.artefact import CROPS, TORCH, Source, write
from edgepose.compression.auto import Asked, Islands, Keep, float_islands
from edgepose.compression.blame import Point
from edgepose.compression.execution import INPUT, feeds_of, outputs_of
from edgepose.compression.graph import DEQUANTIZE, WEIGHTED, Array, Graph, load_onnx
from edgepose.compression.limit import matched_limit
from edgepose.compression.plan import require_matches
from edgepose.compression.quantize import NOTHING, Quantized, quantize
from edgepose.compression.shown import people_shown, pictures_shown, require_finder
from edgepose.compression.source_model import load_bundled_model
from edgepose.compression.steps import SUFFIXES, open_steps, run_steps
from edgepose.compression.torch_quantize import quantize_torch, save_quantized_torch
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.drafts import draft_folder
from edgepose.runtime.flags import FiniteRange, given
from edgepose.runtime.preprocess import U8, normalise
from edgepose.runtime.progress import track
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.twostage import QUALITY

OF_RECIPES, OF_AUTO = {"bundle", "out", "as_json"}, {"max_ap_loss", "max_drift", "min_height"}
NAMED = 4  # layers that stay float for the same reason; all are in the plan
KEPT_FRAMES = 4  # calibration pictures that travel on as golden inputs


@click.command()
@click.argument("bundle", metavar="BUNDLE|RECIPE.yaml", type=click.Path(path_type=Path))
@click.option("--calibration", type=click.Path(path_type=Path), help="From `edgepose calibrate`.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder to write; it must not exist, except that of the same recipe's run, which then goes on.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Weights the bundle was exported from, if not the shipped ones.",
)
@click.option(
    "--detector",
    type=click.Path(path_type=Path),
    help="For networks of one person at a time: the bundle of a single-stage one that finds the people.",
)
@click.option(
    "--boxes",
    type=click.Path(path_type=Path),
    help="Or a file of COCO-format detections in the calibration pictures.",
)
@click.option(
    "--keep-float",
    "keep_float",
    multiple=True,
    metavar="PATTERN",
    help="Layers to stay float: a name, or a part of the path to it, * for anything; may be given again.",
)
@click.option(
    "--auto",
    metavar="DATA",
    help="Leave as few layers float as it takes for the gates to hold on these pictures (a few dozen), "
    "synthetic:… or COCO files, none of them of the calibration set.",
)
@click.option(
    "--max-ap-loss",
    type=FiniteRange(0, 100),
    default=1.0,
    show_default=True,
    help="Gate of --auto: points of AP that may be lost.",
)
@click.option(
    "--max-drift",
    type=FiniteRange(0),
    default=1.0,
    show_default=True,
    help="Gate of --auto: median drift, pixels of the input.",
)
@click.option(
    "--min-height",
    type=FiniteRange(0),
    default=0.0,
    show_default=True,
    help="Of --auto: leave out people lower than this, in pixels.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def compress(
    bundle: Path,
    calibration: Path | None,
    out: Path,
    weights: Path | None,
    detector: Path | None,
    boxes: Path | None,
    keep_float: tuple[str, ...],
    auto: str | None,
    max_ap_loss: float,
    max_drift: float,
    min_height: float,
    as_json: bool,
) -> None:
    """Quantize the graphs of the FP32 BUNDLE to INT8 for TensorRT and ONNX Runtime.

    Scales come from every picture of the calibration set, or from every person that a detector finds in it.
    What would cost accuracy or speed in INT8 stays float, each node with its reason; with --auto also what
    blame finds (edgepose verify --blame), whose answers are kept in OUT.blame so that a killed run goes on.
    Next: edgepose export MODEL --compressed OUT --out BUNDLE.

    With a RECIPE of steps: prune, fine-tune, quantize and train in INT8, each step measured and stopping at
    its gate; the other options are the recipe's. A run in the same OUT goes on where it was.
    """
    _require_of_use(bundle.suffix in SUFFIXES)
    if bundle.suffix in SUFFIXES:
        run_steps(open_steps(bundle), out, as_json)
        return
    if calibration is None:
        raise click.UsageError("Missing option '--calibration'.")
    if detector is not None and boxes is not None:
        raise click.UsageError("give --detector or --boxes, not both")
    opened, pictures = Bundle.open(bundle), load_calibration_set(calibration)
    require_finder(opened.spec, detector is not None or boxes is not None)
    require_useful(pictures)
    require_matches((load_onnx(opened.graph(name, "fp32")) for name in opened.spec.graphs), keep_float)
    gates = Gates(max_ap_loss / 100, max_drift)
    asked = None if auto is None else Asked(_shown(auto, opened.spec, calibration), gates, min_height)
    model = load_bundled_model(opened, weights)
    frames, crops = _frames(opened, pictures, detector, boxes)
    source = _source(opened, pictures, frames[:KEPT_FRAMES], crops)
    known: list[dict[str, Array]] = [{INPUT: normalise(frame, opened.spec)} for frame in frames]
    keep = dict.fromkeys(keep_float, "--keep-float")
    with draft_folder(out) as draft:
        found = _quantized(source, known, keep, asked, out.with_name(f"{out.name}.blame"))
        source = replace(source, spec=found.spec)
        if len(source.graphs) == 1:  # NNCF's torch backend follows one module
            images = [one[INPUT] for one in known]
            kept = {**found.keep.get(opened.spec.graphs[0], NOTHING), **keep}
            save_quantized_torch(draft / TORCH, quantize_torch(model, images, opened.spec.family, kept))
        write(
            draft,
            source,
            found.quantized,
            {name: version(name) for name in ("edgepose", "nncf", "onnx", "torch")},
        )
    _report(out, found.quantized, found.point, as_json)


def _require_of_use(recipe: bool) -> None:
    """Refuse options that would do nothing: most beside a recipe of steps, gates without --auto."""
    asked = given()
    if recipe and asked - OF_RECIPES:
        raise click.UsageError("a recipe of steps says all itself; give --out and --json alone")
    if "auto" not in asked and asked & OF_AUTO:
        raise click.UsageError("--max-ap-loss, --max-drift and --min-height are for --auto; give it, too")


def _frames(
    opened: Bundle, pictures: CalibrationSet, detector: Path | None, boxes: Path | None
) -> tuple[list[U8], dict[str, Any]]:
    """What the network is shown (height, width, 3) BGR, and of crops what is to be remembered."""
    spec = opened.spec
    source = detector or boxes
    if source is None:
        return pictures_shown(pictures, spec), {}
    if source == boxes:
        crops = people_shown(pictures, spec, read_detections(source, spec.score_threshold))
    else:
        with open_detector(source) as finder:
            crops = people_shown(pictures, spec, finder)
    return crops, dict(zip(CROPS, (len(crops), source.name), strict=True))


def _source(opened: Bundle, pictures: CalibrationSet, frames: list[U8], crops: dict[str, Any]) -> Source:
    graphs = {name: opened.graph(name, "fp32") for name in opened.spec.graphs}
    manifest = pictures.manifest.to_dict()
    return Source(opened.spec, opened.provenance, graphs, manifest, pictures.sha256, frames, crops)


def _shown(data: str, spec: Spec, calibration: Path) -> Shown:
    """The pictures that decide what stays float. Raises GateFailed when one of them is calibrated on."""
    dataset = open_dataset(data)
    require_skeleton(dataset, spec)
    audit(calibration, dataset)
    return Shown(dataset) if spec.resize != "crop" else told(dataset, Labels(), TRUTH)


def _quantized(
    source: Source,
    known: list[dict[str, Array]],
    keep: Mapping[str, str],
    asked: Asked | None,
    folder: Path,
) -> Islands:
    """Quantized once, or until what is asked for holds."""
    if asked is None:
        return Islands({}, None, *_quantize(source, known, keep, {}))
    return float_islands(asked, source.graphs, partial(_quantize, source, known, keep), folder)


def _quantize(
    source: Source, frames: list[dict[str, Array]], keep: Mapping[str, str], more: Keep
) -> tuple[dict[str, Quantized], Spec]:
    """Each graph, calibrated on what is known of each frame, INT8 outputs included; and the spec of both.

    `keep` is of every graph, `more` of one each.
    """
    known, quantized = [dict(one) for one in frames], dict[str, Quantized]()
    for name, path in track(source.graphs.items(), "Quantizing", len(source.graphs)):
        model = load_onnx(path)
        feeds = [feeds_of(model, one) for one in known]
        quantized[name] = quantize(model, feeds, source.spec.family, {**more.get(name, NOTHING), **keep})
        if len(quantized) < len(source.graphs):
            for one, outputs in zip(known, outputs_of(quantized[name].model, feeds), strict=True):
                one |= outputs
    return quantized, _with_limit(source, known)


def _with_limit(source: Source, known: list[dict[str, Array]]) -> Spec:
    """The spec with the quality below which the quantized network looks again."""
    spec = source.spec
    if spec.refine_below is None:
        return spec
    model = load_onnx(source.graphs[spec.graphs[0]])
    before = outputs_of(model, [feeds_of(model, one) for one in known], [QUALITY])
    qualities = (np.concatenate([one[QUALITY] for one in ones]) for ones in (before, known))
    return replace(spec, refine_below_int8=matched_limit(spec.refine_below, *qualities))


def _report(out: Path, quantized: Mapping[str, Quantized], point: Point | None, as_json: bool) -> None:
    graphs = {name: _counts(result) for name, result in quantized.items()}
    if as_json:
        plans = {name: result.plan for name, result in quantized.items()}
        auto = {} if point is None else {"auto": point.to_dict()}
        print(json.dumps({"out": str(out), "graphs": graphs, "float": plans, **auto}, indent=1))
        return
    for name, counts in graphs.items():
        print(
            f"{name}: {counts['int8']} of {counts['weighted']} weighted layers in INT8, "
            f"{counts['parameters']} % of the weights"
        )
        reasons: dict[str, list[str]] = {}
        for layer in counts["float_layers"]:
            why = quantized[name].plan.get(layer, "NNCF found no place for it")
            reasons.setdefault(why, []).append(layer)
        for why, layers in reasons.items():
            more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
            print(f"  float: {', '.join(layers[:NAMED])}{more}: {why}")
    if point is not None:
        print(f"the gates hold with {point.floats} layers float for their sake: {point.row.score.ap:.3f} AP")
    print(f"written to {out}")


def _counts(result: Quantized) -> dict[str, Any]:
    graph = Graph(result.model)
    sizes, int8 = {}, set()  # of the weights by layer; layers in INT8
    for node in graph.nodes:
        if node.op_type in WEIGHTED:
            maker = graph.producers.get(node.input[1])
            paired = maker is not None and maker.op_type == DEQUANTIZE
            weight = graph.constants.get(maker.input[0] if maker is not None and paired else node.input[1])
            if weight is not None:  # a product of two activations has none
                sizes[node.name] = int(np.prod(weight.dims))
                int8 |= {node.name} if paired else set()
    small = sum(size for name, size in sizes.items() if name in int8)
    return {
        "weighted": len(sizes),
        "int8": len(int8),
        "parameters": round(100 * small / max(1, sum(sizes.values())), 1),
        "float_layers": [name for name in sizes if name not in int8],
    }
