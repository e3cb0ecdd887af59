"""What running does: runtime, engine, inspector, context; ONNX Runtime computes on the caller's memory."""

from __future__ import annotations

import ctypes
import json
import weakref
from typing import Any

import numpy as np
import onnx
import onnxruntime

from edgepose.compression.execution import rounding
from standin_tensorrt.behaviour import data_type, registered, require_driver, tell, unpack
from standin_tensorrt.onnx_rules import Graph, Port
from standin_tensorrt.strictness import WouldCrash

ACTIVATIONS = 4096  # bytes that an execution context takes


class Runtime:
    DLA_core = 0  # of whatever plan: it does not say which it was built for

    def start(self: Any, logger: Any) -> None:
        require_driver(self, logger)
        self._sim.logger = registered(self, logger)

    def deserialize_cuda_engine(self: Any, plan: Any) -> Any:
        module, found = self._sim.module, unpack(bytes(plan))
        if found is None:
            tell(
                self,
                "ERROR",
                "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magicTag mismatch)",
            )
            return None
        head, graph = found
        for key, here in (("version", module.__version__), ("sm", module._gpu.sm)):
            if head[key] != here:
                tell(self, "ERROR", f"incompatible engine plan: its {key} is {head[key]}, expecting {here}")
                return None
        weights = Graph(graph)
        if (taken := _taken(self, weights.bytes_of_weights())) is None:
            return None
        if head["dla_core"] is not None:
            module._gpu.dla_used.add(self.DLA_core)
        made = module._new("ICudaEngine", logger=self._sim.logger, graph=weights, head=head, session=None)
        weakref.finalize(made, module._gpu.blocks.pop, taken)
        return made


def _taken(made: Any, size: int) -> int | None:
    """The address of so many bytes of the device, or an error to the logger."""
    gpu = made._sim.module._gpu
    address: int | None = gpu.allocate(size, gpu.blocks)
    if address is None:
        tell(made, "ERROR", "Error Code 2: OutOfMemory (Requested size was larger than what is free.)")
    return address


def _port(engine: Any, name: str) -> Port | None:
    graph = engine._sim.graph
    found = next((port for port in graph.inputs + graph.outputs if port.name == name), None)
    if found is None:
        tell(engine, "ERROR", f"invalid tensor name: {name}")
    return found


def _is_input(engine: Any, name: str) -> bool:
    return any(port.name == name for port in engine._sim.graph.inputs)


class ICudaEngine:
    num_io_tensors = property(lambda self: len(self._sim.graph.inputs + self._sim.graph.outputs))
    num_optimization_profiles = property(lambda self: max(1, len(self._sim.head["profiles"])))

    def get_tensor_name(self: Any, index: int) -> str:
        return str((self._sim.graph.inputs + self._sim.graph.outputs)[index].name)

    def get_tensor_mode(self: Any, name: str) -> Any:
        modes = self._sim.module.TensorIOMode
        if _port(self, name) is None:
            return modes.NONE
        return modes.INPUT if _is_input(self, name) else modes.OUTPUT

    def get_tensor_dtype(self: Any, name: str) -> Any:
        port = _port(self, name)
        return data_type(self._sim.module, port.dtype.name if port else "float32")

    def get_tensor_shape(self: Any, name: str) -> Any:
        port = _port(self, name)
        return self._sim.module.Dims(port.shape if port else ())

    def get_tensor_profile_shape(self: Any, name: str, profile: int) -> Any:
        profiles, port = self._sim.head["profiles"], _port(self, name)
        if port is None or not _is_input(self, name):
            return []
        shapes = profiles[profile].get(name, [port.shape] * 3) if profiles else [port.shape] * 3
        return [self._sim.module.Dims(shape) for shape in shapes]

    def create_execution_context(self: Any, *strategy: Any) -> Any:
        if (taken := _taken(self, ACTIVATIONS)) is None:
            return None
        shapes = {port.name: port.shape for port in self._sim.graph.inputs if -1 not in port.shape}
        state = {"engine": self, "shapes": shapes, "addresses": {}, "outputs": {}, "prepared": None}
        context = self._sim.module._new("IExecutionContext", logger=self._sim.logger, **state)
        weakref.finalize(context, self._sim.module._gpu.blocks.pop, taken)
        return context

    def create_engine_inspector(self: Any) -> Any:
        return self._sim.module._new("EngineInspector", engine=self)


class EngineInspector:
    def get_engine_information(self: Any, form: Any) -> str:
        """Layers as the releases' own JSON shows them; only their names when the build kept no more."""
        module, engine = self._sim.module, self._sim.engine
        if form != module.LayerInformationFormat.JSON:
            return "\n".join(node.name for node in engine._sim.graph.nodes)
        layers: list[Any] = [_layer(module, engine, node) for node in engine._sim.graph.nodes]
        if engine._sim.head["verbosity"] != "DETAILED":
            layers = [layer["Name"] for layer in layers]
        ports = "I/O Tensors" if module._release.startswith("11.") else "Bindings"
        names = [port.name for port in engine._sim.graph.inputs + engine._sim.graph.outputs]
        return json.dumps({"Layers": layers, ports: names})


_FORMATS = {
    "int8": "Thirty-two wide channel vectorized row major Int8 format",
    "fp16": "Row major linear FP16 format",
}


def _layer(module: Any, engine: Any, node: Any) -> dict[str, Any]:
    precision = engine._sim.head["precision"]
    form = _FORMATS.get(precision, "Row major linear FP32")
    described = {"Name": node.output[0], "Dimensions": [1], "Format/Datatype": form}
    if module._release.startswith("11."):
        described = {"Name": node.output[0], "Dimensions": [1], "Format": "linear", "DataType": form}
    kind = "Reformat" if node.op_type == "Cast" else node.op_type
    return {"Name": node.name or node.op_type, "LayerType": kind, "Inputs": [], "Outputs": [described]}


class IExecutionContext:
    engine = property(lambda self: self._sim.engine)

    def set_input_shape(self: Any, name: str, shape: Any) -> bool:
        engine, wanted = self._sim.engine, tuple(int(size) for size in shape)
        limits = ICudaEngine.get_tensor_profile_shape(engine, name, 0)
        if not limits:
            return False
        low, _, high = (tuple(limit) for limit in limits)
        inside = len(wanted) == len(low) and all(
            a <= s <= b for a, s, b in zip(low, wanted, high, strict=True)
        )
        if not inside:
            tell(self, "ERROR", f"setInputShape: {name} {wanted} is outside the profile {low} to {high}")
            return False
        self._sim.shapes[name] = wanted
        return True

    def get_tensor_shape(self: Any, name: str) -> Any:
        engine, module = self._sim.engine, self._sim.module
        port = _port(engine, name)
        if port is None:
            return module.Dims(())
        if _is_input(engine, name):
            return module.Dims(self._sim.shapes.get(name, port.shape))
        if len(self._sim.shapes) < len(engine._sim.graph.inputs):
            return module.Dims(port.shape)
        return module.Dims(_output_shapes(self)[name])

    def set_tensor_address(self: Any, name: str, address: int) -> bool:
        if _port(self._sim.engine, name) is None:
            return False
        self._sim.addresses[name] = int(address)
        return True

    def execute_async_v3(self: Any, stream: int) -> bool:
        graph, gpu = self._sim.engine._sim.graph, self._sim.module._gpu
        if not gpu.has_context():
            raise WouldCrash("enqueue without a CUDA context on this thread")
        for port in graph.inputs:
            if port.name not in self._sim.shapes:
                tell(self, "ERROR", f"enqueueV3: the shape of {port.name} is not set")
                return False
        for port in graph.inputs + graph.outputs:
            if not self._sim.addresses.get(port.name):
                tell(self, "ERROR", f"enqueueV3: the address of {port.name} is not set")
                return False
        if gpu.faults.lost:
            tell(self, "ERROR", "Error Code 1: Cuda Runtime (an illegal memory access was encountered)")
            return False
        key = tuple(sorted(self._sim.shapes.items()))
        if stream in gpu.capturing and key != self._sim.prepared:
            raise WouldCrash("recorded before a first run of these shapes: what TensorRT prepares is lost")
        self._sim.prepared, shapes, addresses = key, dict(self._sim.shapes), dict(self._sim.addresses)
        engine = self._sim.engine._sim  # neither engine nor context, which a graph does not keep alive
        gpu.queue(stream, lambda: _compute(engine, shapes, addresses))
        return True


def _compute(engine: Any, shapes: dict[str, Any], addresses: dict[str, int]) -> None:
    """With the shapes and addresses there were when it was queued; `engine` is what an engine simulates."""
    graph, module = engine.graph, engine.module
    feeds = {p.name: _memory(module, p, (addresses, shapes[p.name])).astype(p.dtype) for p in graph.inputs}
    for port, answer in zip(graph.outputs, _answers(engine, feeds), strict=True):
        _memory(module, port, (addresses, answer.shape))[...] = answer


def _answers(engine: Any, feeds: dict[str, Any]) -> list[Any]:
    faults = engine.module._gpu.faults
    answers = _session(engine).run(None, feeds)
    if engine.head["precision"] in faults.wrong_precisions:
        return [np.where(np.isfinite(a), a * 0.5, a).astype(a.dtype) for a in answers]
    return list(answers)


def _output_shapes(context: Any) -> dict[str, tuple[int, ...]]:
    key, graph = tuple(sorted(context._sim.shapes.items())), context._sim.engine._sim.graph
    if key not in context._sim.outputs:
        feeds = {port.name: np.zeros(context._sim.shapes[port.name], port.dtype) for port in graph.inputs}
        answers = _session(context._sim.engine._sim).run(None, feeds)
        context._sim.outputs[key] = {p.name: a.shape for p, a in zip(graph.outputs, answers, strict=True)}
    return dict(context._sim.outputs[key])


def _session(engine: Any) -> Any:
    if engine.session is None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # As the file is written: the optimiser quantizes float biases, on scales that half rounds to nothing.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        data = rounding(onnx.load_from_string(engine.graph.data)).SerializeToString()
        engine.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return engine.session


def _memory(module: Any, port: Port, where: tuple[dict[str, int], tuple[int, ...]]) -> Any:
    """The caller's memory for a tensor, as an array of the engine's type; `where`: addresses, shape."""
    address, shape = where[0][port.name], where[1]
    is_narrow = port.dtype == np.int64 and not hasattr(module.DataType, "INT64")
    dtype = np.dtype(np.int32) if is_narrow else port.dtype
    size = int(np.prod(shape)) * dtype.itemsize
    if not module._gpu.owns(address, size):
        raise WouldCrash(
            f"{port.name}: {size} bytes at {address:#x} are not all device memory of one allocation"
        )
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


BEHAVIOURS: dict[str, type] = {
    kind.__name__: kind for kind in (Runtime, ICudaEngine, EngineInspector, IExecutionContext)
}
