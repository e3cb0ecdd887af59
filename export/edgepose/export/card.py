"""The bundle's README.md: what the model is, what is in the folder, where it came from, what is not known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepose.runtime.spec import Spec

VIEWS = {
    "fp32": "the reference; any ONNX runtime, and TensorRT 8.x or weakly typed 10.x with the FP16 flag",
    "fp16": "half-precision types with float32 ends; coordinates and scores are computed in float32",
    "int8.ort": "INT8 as ONNX Runtime's CPU kernels fuse it (unsigned activations)",
    "int8.trt": "INT8 for TensorRT 8.x and weakly typed 10.x (INT8 and FP16 flags)",
    "int8.trt-typed": "INT8 with half types for strongly typed TensorRT 10.x and 11.x",
}

FAMILIES = {
    "qrpose": (
        "A single-stage network: each pixel of a stride-4 map regresses a whole pose and predicts its own "
        "quality. An independent implementation of the ideas of “Learning Quality-aware Representation for "
        "Multi-person Pose Regression” (AAAI 2022); it does not reproduce the paper's results."
    ),
    "querypose": (
        "A network of queries: a fixed set of them finds people's boxes, one person each, and part queries "
        "find the joints of the best; nothing has to suppress duplicates. An independent implementation of "
        "“QueryPose: Sparse Multi-Person Pose Regression via Spatial-Aware Part-Level Query” (NeurIPS 2022)."
    ),
    "sharpose": (
        "A top-down network: a transformer sees one person's crop at half resolution, judges its own pose, "
        "and where it doubts looks again, sharply, at the parts that its attention found to matter. An "
        "independent implementation of “SHaRPose: Sparse High-Resolution Representation for Human Pose "
        "Estimation” (AAAI 2024)."
    ),
}


def card(spec: Spec, provenance: Mapping[str, Any], files: Mapping[str, int]) -> str:
    """Markdown. `files` are the bundle's files and their sizes in bytes."""
    sections = (
        f"# {spec.model}",
        FAMILIES[spec.family],
        _interface(spec),
        "## Files\n\n" + "\n".join(_file_line(name, size) for name, size in sorted(files.items())),
        "## Where it came from\n\n" + "\n".join(_origin(provenance)),
        _limits(),
    )
    return "\n\n".join(sections) + "\n"


def _interface(spec: Spec) -> str:
    return "## Input and outputs\n\n" + INTERFACES[spec.family](spec)


def _image(spec: Spec, shown: str) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (spec.mean, spec.std))
    return (
        f"`images` (batch, 3, {spec.height}, {spec.width}) float32, {spec.colour}: {shown}, scaled to 0..1, "
        f"minus mean ({mean}), divided by standard deviation ({std})."
    )


def _maps(spec: Spec) -> str:
    score = "expected OKS of each person, 0 for an empty slot"
    return _poses(spec, score, "the joints", "pixels of the input")


def _queries(spec: Spec) -> str:
    score = "how probably each query found a person, times the mean of their `keypoint_scores`"
    return _poses(spec, score, "the person", "pixels of the input, whose corner (not centre) is at integers")


def _poses(spec: Spec, score: str, boxed: str, pixels: str) -> str:
    joints = len(spec.joints())
    shown = "the picture letterboxed (aspect kept, top left, padded right and below with the mean colour)"
    return (
        f"{_image(spec, shown)}\n\n"
        f"`scores` (batch, N): {score} · `boxes` (batch, N, 4): x0, y0, x1, y1 of {boxed} · `keypoints` "
        f"(batch, N, {joints}, 2) · `keypoint_scores` (batch, N, {joints}). Coordinates are {pixels}; joints "
        f"are those of {spec.skeleton}. A stream shows people from a score of {spec.score_threshold:g} on."
    )


def _looks(spec: Spec) -> str:
    maps = f"(batch, {len(spec.joints())}, {spec.height // 4}, {spec.width // 4})"
    shown = "one person's crop (their box, grown to the aspect and by a quarter; black beyond the frame)"
    limits = f"{spec.limit('fp32'):g}"
    if spec.refine_below_int8 is not None:
        limits += f", in INT8 below {spec.refine_below_int8:g},"
    return (
        f"{_image(spec, shown)}\n\n"
        f"The graph `coarse` gives `coarse_heatmaps` {maps} · `quality` (batch): the expected OKS of their "
        "pose · `region_order` (batch, cells) int32: cells of 32 x 32 pixels, best first · `reuse_features` "
        f"and `coarse_embedding` (batch, cells, channels). People of a quality below {limits} are looked at "
        "again: the graph `fine` takes their `images` and the last three outputs, sees the first "
        f"{spec.sharp_cells} cells of `region_order` sharp, and gives `heatmaps` {maps}. Joints are those of "
        f"{spec.skeleton}."
    )


INTERFACES = {"qrpose": _maps, "querypose": _queries, "sharpose": _looks}


def _file_line(name: str, size: int) -> str:
    view = ".".join(name.removesuffix(".onnx").split(".")[1:]) if name.endswith(".onnx") else ""
    other = {
        "golden.npz": "pictures and each view's answers, to be reproduced on another machine",
        "calibration.json": "manifest of the pictures the INT8 scales were calibrated on",
        "scales.json": "the INT8 step of each quantized activation, by its tensor of the FP32 graph",
    }
    kind = name.partition(".")[2] if name.endswith(".scales.json") else name
    return f"- `{name}` ({size / 1e6:.2f} MB): {VIEWS.get(view) or other.get(kind, '')}"


def _origin(provenance: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- weights `{provenance['weights']}`, sha256 `{provenance['weights_sha256']}`",
        f"- made by `{provenance['command']}`",
        "- with " + ", ".join(f"{name} {number}" for name, number in sorted(provenance["versions"].items())),
        f"- graph: {provenance['simplified']}",
    ]
    if "calibration_sha256" in provenance:
        shown = f"{provenance['calibration_images']} pictures"
        if "calibration_crops" in provenance:
            finder = provenance["calibration_boxes"]
            shown = f"{provenance['calibration_crops']} people whom `{finder}` finds in {shown}"
        steps, digest = provenance["settings"].get("qat_steps"), provenance["calibration_sha256"]
        lines.append(f"- INT8 scales {'at first ' if steps else ''}from {shown}, manifest sha256 `{digest}`")
        if steps:
            lines.append(
                f"- INT8 weights and scales from {steps} steps of training: the best average of them"
            )
    return lines


def _limits() -> str:
    return (
        "## What is not known\n\n"
        "The TensorRT views follow rules read from its headers, parser sources and issues; no engine was "
        "built of them where this bundle was made. Accuracy and speed are in `ledger.json` once "
        "`edgepose verify` has run."
    )
