"""From a FP32 graph, and its quantized form if there is one, to a published bundle that was checked first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from edgepose.compression.graph import copy, load_onnx
from edgepose.compression.plan import float_tail
from edgepose.export import golden, views
from edgepose.export.card import card
from edgepose.export.lint import errors, lint
from edgepose.export.metadata import read_spec, write_spec
from edgepose.runtime.bundle import Bundle, publish
from edgepose.runtime.errors import GateFailed
from edgepose.runtime.golden import FILE, TOLERANCES, Golden
from edgepose.runtime.preprocess import U8
from edgepose.runtime.spec import Spec

# The TensorRT release whose rules each view must pass; the CPU view is for ONNX Runtime alone.
LINTED = {"fp32": ("8.6", "10.3", "11.1"), "fp16": ("8.6", "10.3", "11.1"), "int8.trt": ("8.6", "10.3")} | {
    "int8.trt-typed": ("10.3", "11.1")
}


@dataclass(frozen=True, slots=True)
class Parts:
    """What a bundle is made of."""

    spec: Spec
    fp32: Mapping[str, ModelProto]  # by graph
    quantized: Mapping[str, ModelProto]  # by graph; empty for a FP32 bundle
    frames: U8  # (F, height, width, 3) BGR of the network's size, for the golden vectors
    provenance: dict[str, Any]
    manifest: Any = None  # of the calibration set


def views_of(parts: Parts) -> dict[str, ModelProto]:
    """Every view by its name in the bundle (`pose.int8.ort`), spec included, linted.

    Raises GateFailed when TensorRT would not take one: a uint8 or asymmetric Q/DQ, say.
    """
    made: dict[str, ModelProto] = {}
    for graph, fp32 in parts.fp32.items():
        made[f"{graph}.fp32"] = copy(fp32)
        if graph in parts.quantized:
            made |= _compressed_views(graph, fp32, parts.quantized[graph], parts.spec.family)
    for name, model in made.items():
        write_spec(model, parts.spec)
        _require_legal(name, model)
    return made


def _compressed_views(
    graph: str, fp32: ModelProto, quantized: ModelProto, family: str
) -> dict[str, ModelProto]:
    tail = float_tail(fp32, family)
    return {
        f"{graph}.fp16": views.fp16_view(fp32, tail),
        f"{graph}.int8.ort": views.cpu_view(quantized),
        f"{graph}.int8.trt": views.trt_view(quantized),
        f"{graph}.int8.trt-typed": views.typed_view(quantized, tail),
    }


def _require_legal(name: str, model: ModelProto) -> None:
    for release in LINTED.get(name.partition(".")[2], ()):
        broken = errors(lint(model, release))
        if broken:
            first = broken[0]
            more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
            raise GateFailed(
                f"{name}: TensorRT {release} would refuse it: {first.where}: {first.what} "
                f"(rule {first.rule}{more}); nothing was written. Compress again with `edgepose compress`"
            )


def assemble(parts: Parts, out: Path) -> Bundle:
    """Make, check and publish the bundle at `out` (a folder, or a zip when it ends in .edgepose)."""
    made = views_of(parts)
    recorded = golden.record(made, parts.frames, parts.spec)
    with tempfile.TemporaryDirectory(prefix="edgepose-") as temporary:
        folder = Path(temporary)
        for name, model in made.items():
            onnx.save(model, folder / f"{name}.onnx")
        (folder / FILE).write_bytes(golden.to_bytes(recorded))
        if parts.manifest is not None:
            (folder / "calibration.json").write_text(
                json.dumps(parts.manifest, indent=1) + "\n", encoding="utf-8"
            )
        _check_files(folder, recorded, parts.spec)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        (folder / "README.md").write_text(card(parts.spec, parts.provenance, sizes), encoding="utf-8")
        return publish(folder, out, parts.spec, parts.provenance)


def _check_files(folder: Path, recorded: Golden, spec: Spec) -> None:
    """What was written is what was made: it loads, carries the spec, and answers as recorded."""
    for path in folder.glob("*.onnx"):
        model, view = load_onnx(path), path.name.removesuffix(".onnx")
        assert read_spec(model, path.name) == spec
        apart = golden.deviation(recorded, view, model, spec)
        limit = TOLERANCES[view.partition(".")[2]]
        if not apart.within(limit):
            raise GateFailed(
                f"{view}: does not repeat its own answers ({apart}, allowed {limit}); nothing was written"
            )
