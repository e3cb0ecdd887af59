"""Poses from what DeepStream's nvinfer attaches to a frame: the raw output tensors of a bundle's graph.

`edgepose export --deepstream` writes the configuration that makes nvinfer attach them (`output-tensor-meta`).
A probe on nvinfer's source pad then asks, for each NvDsInferTensorMeta of a frame:

    poses = poses_of(tensors(tensor_meta, pyds), spec, (frame_width, frame_height))
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from edgepose.runtime.agreement import Array
from edgepose.runtime.decode import DECODERS
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import F32, Poses
from edgepose.runtime.preprocess import Letterbox
from edgepose.runtime.spec import Spec

FLOAT, INT32 = 0, 3  # NvDsInferDataType
_TYPES: dict[int, type[np.generic]] = {FLOAT: np.float32, INT32: np.int32}


def tensors(meta: Any, pyds: Any) -> dict[str, Array]:
    """The output tensors of one frame by name, copied, without the batch axis that nvinfer leaves out.

    `meta`: a pyds.NvDsInferTensorMeta; `pyds`: DeepStream's Python bindings. Raises EdgeposeError for a
    tensor that is neither float32 nor int32.
    """
    found = {}
    for index in range(meta.num_output_layers):
        layer = pyds.get_nvds_LayerInfo(meta, index)
        kind = _TYPES.get(int(layer.dataType))
        if kind is None:
            raise EdgeposeError(
                f"{layer.layerName}: nvinfer hands on data type {int(layer.dataType)}; configure it as "
                "`edgepose export --deepstream` does"
            )
        shape = tuple(layer.inferDims.d[axis] for axis in range(layer.inferDims.numDims))
        size = math.prod(shape) * np.dtype(kind).itemsize
        memory = (ctypes.c_char * size).from_address(pyds.get_ptr(layer.buffer))
        found[layer.layerName] = np.frombuffer(memory, kind).reshape(shape).copy()
    return found


def poses_of(layers: Mapping[str, Array], spec: Spec, size: tuple[int, int]) -> Poses:
    """Poses of one frame of `size` (width, height) pixels, best first, in pixels of that frame.

    `layers`: scores (N,), keypoints (N, K, 2) and keypoint_scores (N, K) of the graph. Raises EdgeposeError
    when one is missing: nvinfer ran another graph.
    """
    wanted = ("scores", "keypoints", "keypoint_scores")
    if missing := [name for name in wanted if name not in layers]:
        raise EdgeposeError(
            f"nvinfer gave {', '.join(layers) or 'no tensors'}, not {', '.join(missing)}; use the graph and "
            "the configuration of `edgepose export --deepstream`"
        )
    outputs = {name: layers[name][None] for name in wanted}  # the batch axis again
    return DECODERS[spec.family](cast(Mapping[str, F32], outputs), letterbox_of(size, spec), spec.joints())


def letterbox_of(size: tuple[int, int], spec: Spec) -> Letterbox:
    """How nvinfer scales a frame of `size` with maintain-aspect-ratio=1 and symmetric-padding=0.

    At the top left, as edgepose does, but of an even number of pixels of the frame, and the shorter side is
    rounded down, not to the nearest (`get_converted_buffer` of gstnvinfer.cpp; nothing was run).
    """
    seen_width, seen_height = (side - side % 2 for side in size)
    width, height = spec.width, max(1, spec.width * seen_height // seen_width)
    if spec.width * seen_height > spec.height * seen_width:
        width, height = max(1, spec.height * seen_width // seen_height), spec.height
    return Letterbox(width / seen_width, height / seen_height, width, height)
