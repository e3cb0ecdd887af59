"""`edgepose export`: PyTorch to a bundle of ONNX graphs, or anybody's ONNX file seen with TensorRT's eyes."""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
import yaml
from onnx import ModelProto

from edgepose.calibration.boxes import Labels
from edgepose.calibration.dataset import open_dataset
from edgepose.compression.artefact import CROPS, open_compressed
from edgepose.compression.execution import INPUT, feeds_of, outputs_of
from edgepose.compression.graph import Array, load_onnx
from edgepose.compression.shown import crops_of
from edgepose.compression.source_model import load_model
from edgepose.compression.sparse import keeps_pattern, sparse_nodes
from edgepose.export.assemble import Parts, assemble
from edgepose.export.deepstream import write
from edgepose.export.legalise import legalise
from edgepose.export.lint import NEWEST_OPSET, RULES, errors, lint
from edgepose.export.simplify import simplify
from edgepose.export.specs import CONTRACTS, spec_of
from edgepose.export.trace import trace
from edgepose.runtime.bundle import Bundle, require_replaceable
from edgepose.runtime.drafts import draft_file, require_new
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.flags import given
from edgepose.runtime.golden import apart
from edgepose.runtime.preprocess import U8, normalise
from edgepose.runtime.spec import Spec

ORIGIN = (
    "weights",
    "weights_sha256",
    "options",
    "widths",
    "sparsity",
)  # what a compressed network keeps of its source
OF_LINT, OF_DEEPSTREAM = {"linted", "trt", "mend", "as_json"}, {"deepstream", "out", "as_json"}
GOLDEN_FRAMES = "synthetic:count=4,seed=20260101,size={size}"


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
@click.option(
    "--mend",
    type=click.Path(path_type=Path),
    help="With --lint: write the file here as TensorRT takes it, or say why that cannot be done.",
)
@click.option(
    "--deepstream",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="Write this bundle's graph and the configuration of DeepStream's nvinfer into the folder --out.",
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
    mend: Path | None,
    deepstream: Path | None,
    as_json: bool,
) -> None:
    """Export MODEL (such as qrpose_tiny) as a bundle, --lint an ONNX file, or configure --deepstream.

    Every view is linted, run and compared before the bundle gets its name; a file that TensorRT would refuse
    fails the export, exit code 1.
    """
    if deepstream is not None:
        if out is None or given() - OF_DEEPSTREAM:
            raise click.UsageError("--deepstream BUNDLE needs --out FOLDER, and takes --json alone beside it")
        require_new(out)
        _deepstream(deepstream, out, as_json)
        return
    if linted is not None:
        if given() - OF_LINT:
            raise click.UsageError("--lint checks a file that exists; leave out MODEL and its options")
        if mend is None:
            _lint(linted, trt, as_json)
        else:
            _mend(linted, mend, trt, as_json)
        return
    if given() & OF_LINT - {"as_json"}:
        raise click.UsageError("--mend and --trt are about what --lint FILE reads; give it, too")
    if model is None or out is None:
        raise click.UsageError("give MODEL and --out, or --lint FILE")
    if compressed is not None and (weights is not None or options):
        raise click.UsageError("--compressed has its graph already; leave out --weights and --option")
    require_replaceable(out)
    if compressed is not None:
        parts = _compressed_parts(model, compressed)
    else:
        parts = _fp32_parts(model, weights, dict(map(_option, options)))
    _report(assemble(parts, out), as_json)


def _deepstream(bundle: Path, out: Path, as_json: bool) -> None:
    written = write(Bundle.open(bundle), out)
    if as_json:
        print(json.dumps({name: str(path) for name, path in written.items()}, indent=1))
        return
    for path in written.values():
        print(path)


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
    model, origin = load_model(name, weights, options)
    spec = spec_of(name, model)
    frames = golden_frames(spec)
    known = torch_answers(model, frames, spec)
    graphs, done = {}, {}
    for graph, traced in trace(model, spec).items():
        _require_same_as_torch(graph, traced, known, spec)
        graphs[graph], done[graph] = simplify(traced, [feeds_of(traced, one) for one in known])
    made = _provenance(origin, ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime"), _each(done))
    return Parts(spec, graphs, {}, frames, made)


def _each(said: dict[str, str]) -> str:
    """What was said of each graph; of one alone without its name."""
    return "; ".join(f"{name}: {what}" if len(said) > 1 else what for name, what in said.items())


def _compressed_parts(name: str, folder: Path) -> Parts:
    found = open_compressed(folder)
    if found.spec.model != name:
        raise EdgeposeError(f"{folder}: holds a {found.spec.model}, not a {name}")
    source = found.provenance
    origin = {key: value for key, value in source.items() if key in ORIGIN}
    made = _provenance(origin, ("onnx", "onnxruntime"), source["simplified"])
    made["versions"] = source["versions"] | found.versions | made["versions"]
    made["compressed_sha256"] = found.sha256()
    made["calibration_sha256"] = found.calibration["sha256"]
    made["calibration_images"] = found.calibration["images"]
    made |= {f"calibration_{key}": found.calibration[key] for key in CROPS if key in found.calibration}
    made["settings"], made["float"] = found.settings, found.plan
    fp32 = {name: found.fp32(name) for name in found.spec.graphs}
    quantized = {name: found.quantized(name) for name in found.spec.graphs}
    if not all(keeps_pattern(fp32[name], quantized[name]) for name in found.spec.graphs):
        made.pop("sparsity", None)
    return Parts(found.spec, fp32, quantized, found.frames(), made, found.manifest())


def golden_frames(spec: Spec) -> U8:
    """A few synthetic pictures (F, height, width, 3) BGR as the network gets them."""
    crop = spec.resize == "crop"
    pictures = open_dataset(GOLDEN_FRAMES.format(size="256" if crop else f"{spec.width}x{spec.height}"))
    samples = [pictures[index] for index in range(len(pictures))]
    if not crop:
        return np.stack([sample.image for sample in samples])
    found = zip(samples, Labels().find(samples), strict=True)
    return np.concatenate([crops_of(sample, boxes, spec)[:1] for sample, boxes in found])


def torch_answers(model: torch.nn.Module, frames: U8, spec: Spec) -> list[dict[str, Array]]:
    """For each frame its input and what every graph makes of it in PyTorch, by name."""
    answers = []
    for frame in frames:
        known = {INPUT: torch.from_numpy(normalise(frame, spec))}
        contract = CONTRACTS[spec.family]
        with torch.no_grad():
            for graph, module in contract.modules(model).items():
                known |= module(*(known[name] for name in contract.ports[graph].inputs))
        answers.append({name: value.numpy() for name, value in known.items()})
    return answers


def _require_same_as_torch(graph: str, traced: ModelProto, known: list[dict[str, Array]], spec: Spec) -> None:
    contract = CONTRACTS[spec.family]
    expected = [{name: one[name] for name in contract.ports[graph].outputs} for one in known]
    found = apart(expected, outputs_of(traced, [feeds_of(traced, one) for one in known]), spec)
    if not found.within(contract.traced):
        raise GateFailed(
            f"{spec.model}: the ONNX graph {graph} is not the PyTorch model ({found}); nothing was written"
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
    model = load_onnx(path)
    findings, sparse = lint(model, trt), sparse_nodes(model)
    broken = errors(findings)
    if as_json:
        found = [finding.to_dict() for finding in findings]
        print(
            json.dumps(
                {
                    **{"file": str(path), "trt": trt, "errors": len(broken), "findings": found},
                    "sparse_2_4": [name for name, follows in sparse.items() if follows],
                },
                indent=1,
            )
        )
    else:
        rules = {rule.number: rule for rule in RULES}
        for finding in findings:
            rule = rules[finding.rule]
            print(f"{finding.severity:5} {finding.rule} {finding.where}: {finding.what} [{rule.source}]")
        print(f"weights that follow 2:4 along their inputs: {sum(sparse.values())} of {len(sparse)} layers")
    if broken:
        raise GateFailed(
            f"{path}: TensorRT {trt} would refuse it: {len(broken)} errors, rules {_numbers(broken)}"
        )
    if not as_json:
        print(f"{path}: nothing that TensorRT {trt} is known to refuse")


def _mend(path: Path, out: Path, trt: str, as_json: bool) -> None:
    model = load_onnx(path)
    try:
        legal = legalise(model, trt)
    except EdgeposeError as error:
        raise EdgeposeError(f"{path}: {error}") from error
    with draft_file(out) as temporary:
        onnx.save(legal.model, temporary)
        load_onnx(temporary)  # what was written can be read
    if as_json:
        found = [finding.to_dict() for finding in legal.mended]
        print(json.dumps({"file": str(path), "trt": trt, "mended": found, "out": str(out)}, indent=1))
        return
    for rule, count in sorted(Counter(finding.rule for finding in legal.mended).items()):
        text = next(known.text for known in RULES if known.number == rule)
        print(f"{rule} mended {count} times: {text}")
    print(f"written to {out}, for TensorRT {trt}")


def _numbers(findings: list[Any]) -> str:
    return ", ".join(sorted({finding.rule for finding in findings}))
