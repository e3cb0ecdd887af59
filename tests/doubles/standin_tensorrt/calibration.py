"""Implicit INT8: a calibrator asked as the builder asks it, and its scales put into the graph as pairs.

The real calibrator looks for the range that loses least information; this one takes the largest value.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from standin_tensorrt.onnx_rules import Graph
from standin_tensorrt.strictness import WouldCrash, called

# NV_TENSORRT_VERSION of each release's NvInferVersion.h, as it stands in the caches they write.
NUMBERS = {"8.5": 8502, "8.6": 8601, "10.3": 100300, "10.7": 100700, "10.13": 101303, "10.16": 101601}


def calibrated(module: Any, graph: Graph, config: Any, calibrator: Any) -> Graph | str:
    """The graph with a pair behind every tensor that has a scale, or why there is none."""
    scales = _cached(module, graph, calibrator)
    if isinstance(scales, str):
        return scales
    if scales is None:
        scales = _measured(module, graph, config, calibrator)
        if not scales:
            return "Calibration failure occurred with no scaling factors detected"
        calibrator.write_calibration_cache(b"what the calibrator found")
    return Graph(_with_pairs(graph, scales))


def _cached(module: Any, graph: Graph, calibrator: Any) -> dict[str, float] | str | None:
    """The scales of its cache; None when it has none, or one of another release, which is passed over."""
    cache = calibrator.read_calibration_cache()
    if cache is None:
        return None
    head, *lines = bytes(cache).decode().splitlines()
    if head != f"TRT-{NUMBERS[module._release]}-EntropyCalibration2":
        return None
    scales = {}
    for line in lines:
        name, _, digits = line.rpartition(": ")
        if not name or len(digits) != 8:
            return f"the calibration cache is damaged: {line}"
        scales[name] = float(np.frombuffer(struct.pack("<I", int(digits, 16)), np.float32)[0])
    unknown = scales.keys() - set(graph.makers) - {port.name for port in graph.inputs}
    return f"the calibration cache names tensors that are not there: {sorted(unknown)}" if unknown else scales


def _measured(module: Any, graph: Graph, config: Any, calibrator: Any) -> dict[str, float]:
    names = [port.name for port in graph.inputs]
    shapes = {port.name: port.shape for port in graph.inputs}
    for profile in config._sim.profiles:
        shapes |= {name: sizes[1] for name, sizes in profile._sim.shapes.items()}
    if any(shape[0] != calibrator.get_batch_size() for shape in shapes.values()):
        raise WouldCrash("the calibrator's batch is not the profile's best one")
    model = onnx.load_from_string(graph.data)
    floats = [name for name in graph.makers if name not in {value.name for value in model.graph.output}]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in floats)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    largest: dict[str, float] = {}
    while places := _called(calibrator, names):
        feeds = {
            port.name: _on_device(module, place, shapes[port.name], port.dtype)
            for port, place in zip(graph.inputs, places, strict=True)
        }
        found = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
        for name, values in (feeds | found).items():
            if values.dtype == np.float32:
                largest[name] = max(largest.get(name, 0.0), float(np.abs(values).max()))
    return {name: high / 127 for name, high in largest.items() if high > 0 and name not in shapes}


def _called(calibrator: Any, names: list[str]) -> Any:
    try:
        return called(calibrator.get_batch, names)
    except Exception as error:  # it would have to pass through TensorRT's own frames
        raise WouldCrash(f"an exception left the calibrator: {error}") from error


def _on_device(module: Any, address: int, shape: Any, dtype: Any) -> Any:
    size = int(np.prod(shape)) * dtype.itemsize
    if not module._gpu.owns(address, size):
        raise WouldCrash(f"the calibrator's {size} bytes at {address:#x} are not all of the device")
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape).copy()


def _with_pairs(graph: Graph, scales: dict[str, float]) -> bytes:
    """Every reader of a tensor with a scale reads it rounded to its steps; the graph's outputs stay."""
    model = onnx.load_from_string(graph.data)
    zero = numpy_helper.from_array(np.array(0, np.int8), "standin_zero")
    model.graph.initializer.append(zero)
    for node in model.graph.node:
        node.input[:] = [f"{name}_rounded" if name in scales else name for name in node.input]
    first = []
    for name, scale in scales.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(scale, np.float32), f"{name}_step"))
        parts = [f"{name}_step", "standin_zero"]
        first.append(helper.make_node("QuantizeLinear", [name, *parts], [f"{name}_int8"]))
        first.append(helper.make_node("DequantizeLinear", [f"{name}_int8", *parts], [f"{name}_rounded"]))
    _insert(model, first)
    return bytes(model.SerializeToString())


def _insert(model: Any, pairs: list[Any]) -> None:
    """In an order in which each node's inputs are there."""
    waiting = [*pairs, *model.graph.node]
    there = {t.name for t in model.graph.initializer} | {v.name for v in model.graph.input} | {""}
    del model.graph.node[:]
    while waiting:
        ready = next(node for node in waiting if set(node.input) <= there)
        waiting.remove(ready)
        there |= set(ready.output)
        model.graph.node.append(ready)
