"""From a FP32 graph, and its quantized form if there is one, to a published bundle that was checked first."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from edgepose.calibration.evaluation import MANIFEST
from edgepose.compression.graph import copy, load_onnx
from edgepose.compression.plan import float_tail
from edgepose.export import golden, views
from edgepose.export.card import card
from edgepose.export.lint import errors, lint
from edgepose.export.metadata import read_spec, write_spec
from edgepose.export.scales import activation_scales
from edgepose.runtime.bundle import Bundle, publish
from edgepose.runtime.errors import GateFailed
from edgepose.runtime.golden import FILE, Golden, limit
from edgepose.runtime.preprocess import U8
from edgepose.runtime.spec import Spec
from edgepose.runtime.trt.implicit import scales_file

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


def views_of(parts: Parts) -> Iterator[tuple[str, ModelProto]]:
    """Every view with its name in the bundle (`pose.int8.ort`), spec included, linted.

    They are made one after the other, for those of a large network do not fit in memory together. Raises
    GateFailed when TensorRT would not take one: a uint8 or asymmetric Q/DQ, say.
    """
    for graph, fp32 in parts.fp32.items():
        for view, model in _views(fp32, parts.quantized.get(graph), parts.spec.family):
            name = f"{graph}.{view}"
            write_spec(model, parts.spec)
            _require_legal(name, model)
            yield name, model


def _views(fp32: ModelProto, quantized: ModelProto | None, family: str) -> Iterator[tuple[str, ModelProto]]:
    yield "fp32", copy(fp32)
    if quantized is not None:
        tail = float_tail(fp32, family)
        yield "fp16", views.fp16_view(fp32, tail)
        yield "int8.ort", views.cpu_view(quantized)
        yield "int8.trt", views.trt_view(quantized)
        yield "int8.trt-typed", views.typed_view(quantized, tail)


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
    with tempfile.TemporaryDirectory(prefix="edgepose-") as temporary:
        folder = Path(temporary)
        recorded = golden.record(_written(parts, folder), parts.frames, parts.spec)
        (folder / FILE).write_bytes(golden.to_bytes(recorded))
        if parts.manifest is not None:
            (folder / MANIFEST).write_text(json.dumps(parts.manifest, indent=1) + "\n", encoding="utf-8")
        for graph, model in parts.quantized.items():
            scales = activation_scales(model, parts.fp32[graph])
            (folder / scales_file(graph)).write_text(json.dumps(scales, indent=1) + "\n", encoding="utf-8")
        _check_files(folder, recorded, parts.spec)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        (folder / "README.md").write_text(card(parts.spec, parts.provenance, sizes), encoding="utf-8")
        return publish(folder, out, parts.spec, parts.provenance)


def _written(parts: Parts, folder: Path) -> Iterator[tuple[str, ModelProto]]:
    for name, model in views_of(parts):
        onnx.save(model, folder / f"{name}.onnx")
        yield name, model


def _check_files(folder: Path, recorded: Golden, spec: Spec) -> None:
    """What was written is what was made: it loads, carries the spec, and answers as recorded."""
    for path in folder.glob("*.onnx"):
        model, view = load_onnx(path), path.name.removesuffix(".onnx")
        assert read_spec(model, path.name) == spec
        apart, allowed = golden.deviation(recorded, view, model, spec), limit(view, spec)
        if not apart.within(allowed):
            raise GateFailed(
                f"{view}: does not repeat its own answers ({apart}, allowed {allowed}); nothing was written"
            )
