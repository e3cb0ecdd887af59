"""`edgepose compress`: NNCF post-training INT8 of a FP32 bundle, calibrated on an audited set."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgepose.calibration.calibration_set import CalibrationSet, load_calibration_set
from edgepose.compression.artefact import TORCH, Source, write
from edgepose.compression.graph import DEQUANTIZE, WEIGHTED, Graph, load_onnx
from edgepose.compression.quantize import Quantized, quantize
from edgepose.compression.source_model import load_bundled_model
from edgepose.compression.torch_quantize import quantize_torch, save_quantized_torch
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.drafts import draft_folder
from edgepose.runtime.poses import F32
from edgepose.runtime.preprocess import letterbox, pad_colour, prepare
from edgepose.runtime.progress import track

KEPT_FRAMES = 4  # calibration pictures that travel on as golden inputs


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--calibration", required=True, type=click.Path(path_type=Path), help="From `edgepose calibrate`."
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder to write; it must not exist."
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Weights the bundle was exported from, if not the shipped ones.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def compress(bundle: Path, calibration: Path, out: Path, weights: Path | None, as_json: bool) -> None:
    """Quantize the graphs of the FP32 BUNDLE to INT8 for TensorRT and ONNX Runtime.

    Scales come from every picture of the calibration set. What would cost accuracy or speed in INT8 stays
    float, each node with its reason. Next: edgepose export MODEL --compressed OUT --out BUNDLE.
    """
    opened, pictures = Bundle.open(bundle), load_calibration_set(calibration)
    source = _source(opened, pictures)
    model = load_bundled_model(opened, weights)
    images = [prepare(f, opened.spec)[0] for f in track(pictures.images(), "Reading pictures", len(pictures))]
    with draft_folder(out) as draft:
        quantized = _quantize(source, images)
        save_quantized_torch(draft / TORCH, quantize_torch(model, images, opened.spec.family))
        write(
            draft, source, quantized, {name: version(name) for name in ("edgepose", "nncf", "onnx", "torch")}
        )
    _report(out, quantized, as_json)


def _source(opened: Bundle, pictures: CalibrationSet) -> Source:
    spec = opened.spec
    shown = zip(pictures.images(), range(KEPT_FRAMES), strict=False)
    frames = [letterbox(frame, spec.width, spec.height, pad_colour(spec))[0] for frame, _ in shown]
    graphs = {name: opened.graph(name, "fp32") for name in spec.graphs}
    return Source(spec, opened.provenance, graphs, pictures.manifest.to_dict(), pictures.sha256, frames)


def _quantize(source: Source, images: list[F32]) -> dict[str, Quantized]:
    names = track(source.graphs, "Quantizing", len(source.graphs))
    return {name: quantize(load_onnx(source.graphs[name]), images, source.spec.family) for name in names}


def _report(out: Path, quantized: dict[str, Quantized], as_json: bool) -> None:
    graphs = {name: _counts(result) for name, result in quantized.items()}
    if as_json:
        plans = {name: result.plan for name, result in quantized.items()}
        print(json.dumps({"out": str(out), "graphs": graphs, "float": plans}, indent=1))
        return
    for name, counts in graphs.items():
        print(
            f"{name}: {counts['int8']} of {counts['weighted']} weighted layers in INT8, "
            f"{counts['parameters']} % of the weights"
        )
        for layer in counts["float_layers"]:
            print(f"  {layer} stays float: {quantized[name].plan.get(layer, 'NNCF found no place for it')}")
    print(f"written to {out}")


def _counts(result: Quantized) -> dict[str, Any]:
    graph = Graph(result.model)
    layers = [node for node in graph.nodes if node.op_type in WEIGHTED]
    int8 = [n for n in layers if (maker := graph.producers.get(n.input[1])) and maker.op_type == DEQUANTIZE]
    weights = {n.name: graph.constants[graph.producers[n.input[1]].input[0]] for n in int8}
    small = sum(int(np.prod(tensor.dims)) for tensor in weights.values())
    large = sum(
        int(np.prod(graph.constants[n.input[1]].dims)) for n in layers if n.input[1] in graph.constants
    )
    return {
        "weighted": len(layers),
        "int8": len(int8),
        "parameters": round(100 * small / max(1, small + large), 1),
        "float_layers": [node.name for node in layers if node.name not in weights],
    }
