"""A bundle's graph for DeepStream: normalisation inside, and the configuration of nvinfer and nvdspreprocess.

Both scale and letterbox a frame, but normalise all channels by one factor, while a network has one for each;
so the graph itself takes pixels of 0 to 255. Property names are those of the pages Gst-nvinfer and
Gst-nvdspreprocess of NVIDIA's DeepStream manual.
"""

from __future__ import annotations

import configparser
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from edgepose.compression.execution import outputs_of
from edgepose.compression.graph import copy, load_onnx
from edgepose.export.lint import errors, lint
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.decode import DECODERS
from edgepose.runtime.drafts import draft_folder
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.golden import INPUT, REFERENCE, apart, limit, read
from edgepose.runtime.poses import F32
from edgepose.runtime.preprocess import U8
from edgepose.runtime.spec import METADATA_KEY, Spec

PIXELS = "pixels"  # the graph's input: (B, 3, H, W), 0..255 in the spec's colour order
GRAPH, INFER, PREPROCESS = "pose.deepstream.onnx", "config_infer.txt", "config_preprocess.txt"
SPEC_FILE = "spec.json"
_LINTED = ("8.6", "10.3")
_LIBRARY = "/opt/nvidia/deepstream/deepstream/lib/gst-plugins/libcustom2d_preprocess.so"
_COLOURS = {"RGB": "0", "BGR": "1"}  # model-color-format, network-color-format
Sections = Mapping[str, Mapping[str, str]]


def write(bundle: Bundle, out: Path) -> dict[str, Path]:
    """Write graph, configurations and spec into the new folder `out`; paths by file name.

    Raises EdgeposeError for a network that does not see whole frames, GateFailed when the graph would not be
    taken by TensorRT or does not answer the golden pictures as the bundle's own.
    """
    spec = bundle.spec
    if spec.family not in DECODERS:
        raise EdgeposeError(
            f"{bundle.path}: {spec.model} cannot find people by itself, and nvinfer runs one graph; give the "
            "bundle of a single-stage network, such as qrpose_tiny"
        )
    model = with_normalisation(load_onnx(bundle.graph(spec.graphs[0], REFERENCE)), spec)
    _require_legal(model)
    _require_same(model, bundle)
    contents = {
        INFER: text_of(infer_config(spec)),
        PREPROCESS: text_of(preprocess_config(spec)),
        SPEC_FILE: spec.to_json() + "\n",
    }
    with draft_folder(out) as temporary:
        onnx.save(model, temporary / GRAPH)
        for name, content in contents.items():
            (temporary / name).write_text(content, encoding="utf-8")
    return {name: out / name for name in (GRAPH, *contents)}


def with_normalisation(model: ModelProto, spec: Spec) -> ModelProto:
    """The graph that takes PIXELS; INPUT stays the name of what comes behind the normalisation."""
    model = copy(model)
    shape = (1, 3, 1, 1)
    scale = (1 / (255 * np.array(spec.std))).astype(np.float32).reshape(shape)
    shift = (np.array(spec.mean) / np.array(spec.std)).astype(np.float32).reshape(shape)
    for name, value in (("pixel_scale", scale), ("pixel_shift", shift)):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    first = [
        helper.make_node("Mul", [PIXELS, "pixel_scale"], ["pixels_scaled"], "scale_pixels"),
        helper.make_node("Sub", ["pixels_scaled", "pixel_shift"], [INPUT], "shift_pixels"),
    ]
    nodes = [*first, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (given,) = (value for value in model.graph.input if value.name == INPUT)
    given.name = PIXELS
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]  # it speaks of INPUT
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


def _require_legal(model: ModelProto) -> None:
    for release in _LINTED:
        if broken := errors(lint(model, release)):
            raise GateFailed(
                f"{GRAPH}: TensorRT {release} would refuse it: {broken[0].what}; nothing was written"
            )


def _require_same(model: ModelProto, bundle: Bundle) -> None:
    golden, spec = read(bundle), bundle.spec
    view = f"{spec.graphs[0]}.{REFERENCE}"
    found = outputs_of(model, [{PIXELS: pixels(frame, spec)} for frame in golden.frames])
    apart_by, allowed = apart(golden.expected[view], found, spec), limit(view, spec)
    if not apart_by.within(allowed):
        raise GateFailed(
            f"{GRAPH}: does not answer as {view} ({apart_by}, allowed {allowed}); nothing was written"
        )


def pixels(frame: U8, spec: Spec) -> F32:
    """A (H, W, 3) BGR frame of the network's size as nvinfer hands it to the graph: (1, 3, H, W), 0..255."""
    ordered = frame[..., ::-1] if spec.colour == "RGB" else frame
    return np.ascontiguousarray(ordered.transpose(2, 0, 1)[None], np.float32)


def infer_config(spec: Spec) -> Sections:
    """Gst-nvinfer: the whole frame, letterboxed at the top left; raw tensors attached, nothing parsed."""
    return {
        "property": {
            "gpu-id": "0",
            "onnx-file": GRAPH,
            "model-engine-file": f"{GRAPH}_b1_gpu0_fp16.engine",  # the name nvinfer gives what it builds
            "batch-size": "1",
            "network-mode": "2",  # FP16
            "network-type": "100",  # other: no parser of nvinfer's own
            "process-mode": "1",  # whole frames
            "gie-unique-id": "1",
            "infer-dims": f"3;{spec.height};{spec.width}",
            "model-color-format": _COLOURS[spec.colour],
            "net-scale-factor": "1.0",
            "offsets": "0.0;0.0;0.0",
            "maintain-aspect-ratio": "1",
            "symmetric-padding": "0",
            "scaling-filter": "1",  # bilinear
            "output-tensor-meta": "1",
        }
    }


def preprocess_config(spec: Spec) -> Sections:
    """Gst-nvdspreprocess, for regions of interest: nvinfer then has input-tensor-from-meta=1."""
    return {
        "property": {
            "enable": "1",
            "unique-id": "5",
            "gpu-id": "0",
            "target-unique-ids": "1",
            "process-on-frame": "1",
            "network-input-order": "0",  # NCHW
            "network-input-shape": f"1;3;{spec.height};{spec.width}",
            "processing-width": str(spec.width),
            "processing-height": str(spec.height),
            "network-color-format": _COLOURS[spec.colour],
            "tensor-data-type": "0",  # FP32
            "tensor-name": PIXELS,
            "maintain-aspect-ratio": "1",
            "symmetric-padding": "0",
            "scaling-filter": "1",
            "scaling-pool-memory-type": "0",
            "scaling-pool-compute-hw": "0",
            "scaling-buf-pool-size": "6",
            "tensor-buf-pool-size": "6",
            "custom-lib-path": _LIBRARY,
            "custom-tensor-preparation-function": "CustomTensorPreparation",
        },
        "user-configs": {"pixel-normalization-factor": "1.0", "offsets": "0.0;0.0;0.0"},
        "group-0": {
            "src-ids": "0",
            "process-on-roi": "0",
            "custom-input-transformation-function": "CustomAsyncTransformation",
        },
    }


def text_of(sections: Sections) -> str:
    """The sections as GLib's key files have them."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_dict(sections)
    buffer = io.StringIO()
    parser.write(buffer, space_around_delimiters=False)
    return buffer.getvalue()
