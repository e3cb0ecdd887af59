"""`edgepose export`: PyTorch to a bundle of ONNX graphs, or anybody's ONNX file seen with TensorRT's eyes."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import torch
import yaml

from edgepose.calibration.dataset import open_dataset
from edgepose.compression.artefact import open_compressed
from edgepose.compression.graph import load_onnx
from edgepose.compression.source_model import load_model
from edgepose.export.assemble import Parts, assemble
from edgepose.export.execution import outputs_of
from edgepose.export.lint import NEWEST_OPSET, RULES, errors, lint
from edgepose.export.simplify import simplify
from edgepose.export.specs import family_of, spec_of
from edgepose.export.trace import trace
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.golden import Difference, difference, largest
from edgepose.runtime.poses import F32
from edgepose.runtime.preprocess import U8, normalise
from edgepose.runtime.spec import Spec

GOLDEN_FRAMES = "synthetic:count=4,seed=20260101,size={width}x{height}"
TRACE_LIMIT = Difference(score=1e-4, keypoint_px=0.01, confidence=1e-4)  # ONNX against PyTorch, both float32


@click.command()
@click.argument("model", required=False)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Bundle to write: a folder, or a file ending in .edgepose."
)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Weights to export instead of the shipped ones."
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Of the model's builder, such as head=dense; may be given several times.",
)
@click.option(
    "--compressed",
    type=click.Path(path_type=Path),
    help="Folder of `edgepose compress`: adds the INT8 views.",
)
@click.option(
    "--lint", "linted", type=click.Path(path_type=Path), help="Only check this ONNX file for TensorRT."
)
@click.option(
    "--trt", type=click.Choice(list(NEWEST_OPSET)), default="10.3", show_default=True, help="For --lint."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def export(
    model: str | None,
    out: Path | None,
    weights: Path | None,
    options: tuple[str, ...],
    compressed: Path | None,
    linted: Path | None,
    trt: str,
    as_json: bool,
) -> None:
    """Export MODEL (such as qrpose_tiny) as a bundle, or --lint an ONNX file.

    Every view is linted, run and compared before the bundle gets its name; a file that TensorRT would refuse
    fails the export, exit code 1.
    """
    if linted is not None:
        if model is not None or out is not None:
            raise click.UsageError("--lint checks a file that exists; leave out MODEL and --out")
        _lint(linted, trt, as_json)
        return
    if model is None or out is None:
        raise click.UsageError("give MODEL and --out, or --lint FILE")
    if compressed is not None and (weights is not None or options):
        raise click.UsageError("--compressed has its graph already; leave out --weights and --option")
    if compressed is not None:
        parts = _compressed_parts(model, compressed)
    else:
        parts = _fp32_parts(model, weights, dict(map(_option, options)))
    _report(assemble(parts, out), as_json)


def _option(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value in YAML."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--option {text!r}: write NAME=VALUE, such as head=dense")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise click.UsageError(f"--option {text!r}: its value is no valid YAML") from error


def _fp32_parts(name: str, weights: Path | None, options: dict[str, Any]) -> Parts:
    family_of(name)  # refuse before anything is loaded
    model, origin = load_model(name, weights, options)
    spec = spec_of(name, cast(Any, model).config.size)
    frames = _frames(spec)
    images = [normalise(frame, spec) for frame in frames]
    traced = trace(model, spec)
    _require_same_as_torch(model, [outputs_of(traced, [image])[0] for image in images], images, spec)
    graph, simplified = simplify(traced, images)
    made = _provenance(origin, ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime"), simplified)
    return Parts(spec, {"pose": graph}, {}, frames, made)


def _compressed_parts(name: str, folder: Path) -> Parts:
    found = open_compressed(folder)
    if found.spec.model != name:
        raise EdgeposeError(f"{folder}: holds a {found.spec.model}, not a {name}")
    source = found.provenance
    origin = {key: value for key, value in source.items() if key in ("weights", "weights_sha256", "options")}
    made = _provenance(origin, ("onnx", "onnxruntime"), source["simplified"])
    made["versions"] = source["versions"] | found.versions | made["versions"]
    made["calibration_sha256"] = found.calibration["sha256"]
    made["calibration_images"] = found.calibration["images"]
    made["settings"], made["float"] = found.settings, found.plan
    fp32 = {name: found.fp32(name) for name in found.spec.graphs}
    quantized = {name: found.quantized(name) for name in found.spec.graphs}
    return Parts(found.spec, fp32, quantized, found.frames(), made, found.manifest())


def _frames(spec: Spec) -> U8:
    pictures = open_dataset(GOLDEN_FRAMES.format(width=spec.width, height=spec.height))
    return np.stack([pictures[index].image for index in range(len(pictures))])


def _require_same_as_torch(
    model: torch.nn.Module, answers: list[dict[str, F32]], images: list[F32], spec: Spec
) -> None:
    with torch.no_grad():
        expected = [{k: v.numpy() for k, v in model(torch.from_numpy(image)).items()} for image in images]
    pairs = zip(expected, answers, strict=True)
    apart = largest([difference(wanted, actual, spec.score_threshold) for wanted, actual in pairs])
    if not apart.within(TRACE_LIMIT):
        raise GateFailed(
            f"{spec.model}: the ONNX graph is not the PyTorch model ({apart}); nothing was written"
        )


def _provenance(weights: dict[str, Any], libraries: tuple[str, ...], simplified: str) -> dict[str, Any]:
    return {
        **weights,
        "versions": {name: version(name) for name in ("edgepose", *libraries)},
        "command": " ".join(["edgepose", *sys.argv[1:]]),
        "simplified": simplified,
    }


def _report(bundle: Bundle, as_json: bool) -> None:
    sizes = {name: (bundle.folder / name).stat().st_size for name in bundle.files}
    if as_json:
        print(
            json.dumps(
                {"bundle": str(bundle.path), "files": sizes, "provenance": bundle.provenance}, indent=1
            )
        )
        return
    for name, size in sizes.items():
        print(f"{name:28} {size / 1e6:8.3f} MB")
    print(f"written to {bundle.path}")


def _lint(path: Path, trt: str, as_json: bool) -> None:
    findings = lint(load_onnx(path), trt)
    broken = errors(findings)
    if as_json:
        found = [finding.to_dict() for finding in findings]
        print(json.dumps({"file": str(path), "trt": trt, "errors": len(broken), "findings": found}, indent=1))
    else:
        rules = {rule.number: rule for rule in RULES}
        for finding in findings:
            rule = rules[finding.rule]
            print(f"{finding.severity:5} {finding.rule} {finding.where}: {finding.what} [{rule.source}]")
    if broken:
        raise GateFailed(
            f"{path}: TensorRT {trt} would refuse it: {len(broken)} errors, rules {_numbers(broken)}"
        )
    if not as_json:
        print(f"{path}: nothing that TensorRT {trt} is known to refuse")


def _numbers(findings: list[Any]) -> str:
    return ", ".join(sorted({finding.rule for finding in findings}))
