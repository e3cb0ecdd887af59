"""What building does: parser, network, configuration and builder, as each release would have it.

Each class holds the methods of the class of that name, called after the signature check with `self` being the
made object; its plain values are a property's first value, a tuple names an enum member.
"""

from __future__ import annotations

import json
import struct
import weakref
from typing import Any

from standin_tensorrt.calibration import calibrated
from standin_tensorrt.onnx_rules import Graph, Refused, refusals
from standin_tensorrt.strictness import WouldCrash, called

MAGIC = b"STANDIN!"
_WORKSPACE_NEEDED = 1 << 20
_TYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}


def tell(made: Any, severity: str, text: str) -> None:
    """To the logger that the object was made with."""
    called(made._sim.logger.log, getattr(made._sim.module.ILogger.Severity, severity), text)


def registered(made: Any, logger: Any) -> Any:
    """The logger that is heeded: 10.16 ignores a second one while anything made with the first is there."""
    module = made._sim.module
    module._loggers = [(ref, first) for ref, first in module._loggers if ref() is not None]
    heeded = module._loggers[0][1] if module._loggers else logger
    module._loggers.append((weakref.ref(made), heeded))
    return heeded


def data_type(module: Any, name: str) -> Any:
    """8.x narrows 64-bit integers."""
    found = _TYPES[name]
    return getattr(
        module.DataType, "INT32" if found == "INT64" and not hasattr(module.DataType, found) else found
    )


def pack(head: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(head).encode()
    return MAGIC + struct.pack("<Q", len(text)) + text + body


def unpack(plan: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Head and graph of a plan, or None for what is none."""
    try:
        size = struct.unpack("<Q", plan[8:16])[0]
        head = json.loads(plan[16 : 16 + size])
        return (
            (head, plan[16 + size :]) if plan[:8] == MAGIC and len(plan) == head["size"] + 16 + size else None
        )
    except (struct.error, ValueError, KeyError):
        return None


def require_driver(made: Any, logger: Any) -> None:
    module = made._sim.module
    if not module._gpu.ready():
        logger.log(module.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise WouldCrash("made without a CUDA driver: the real 10.16 and 11.4 end the process at first use")


class ILogger:
    def start(self: Any) -> None:
        """Users derive from it."""


class IProgressMonitor(ILogger):
    pass


class Builder:
    num_DLA_cores = property(lambda self: self._sim.module._gpu.dla_cores)

    def start(self: Any, logger: Any) -> None:
        require_driver(self, logger)
        self._sim.logger = registered(self, logger)

    def create_network(self: Any, flags: int) -> Any:
        module = self._sim.module
        known = module.NetworkDefinitionCreationFlag.__members__
        old, bits = module._release.startswith("8."), int(flags)
        if bits & ~sum(1 << int(value) for value in known.values()):
            tell(self, "ERROR", f"unknown network flags {bits:#x}")
            return None

        def has(name: str) -> bool:
            return name in known and bool(bits & 1 << int(known[name]))

        strong = module._release.startswith("11.") or has("STRONGLY_TYPED")
        explicit = not old or has("EXPLICIT_BATCH")
        return module._new(
            "INetworkDefinition",
            logger=self._sim.logger,
            strong=strong,
            explicit=explicit,
            graph=None,
            parser=None,
        )

    def create_builder_config(self: Any) -> Any:
        state = {"flags": {"TF32"}, "profiles": [], "pools": {}, "cache": None}
        return self._sim.module._new("IBuilderConfig", logger=self._sim.logger, **state)

    def create_optimization_profile(self: Any) -> Any:
        return self._sim.module._new("IOptimizationProfile", logger=self._sim.logger, shapes={})

    def build_serialized_network(self: Any, network: Any, config: Any) -> Any:
        if network._sim.parser is not None and network._sim.parser() is None:
            raise WouldCrash("the parser, which owns the weights, is gone before the build")
        if (fault := _unbuildable(self, network, config)) is not None:
            tell(self, "ERROR", fault)
            return None
        tell(self, "VERBOSE", "autotuning")
        if not _report_progress(config):
            return None  # cancelled, which needs no reason
        graph, module = network._sim.graph, self._sim.module
        precision = _precision(network, config)
        if calibrator := _calibrator(config):
            made = calibrated(module, graph, config, calibrator)
            if isinstance(made, str):
                tell(self, "ERROR", made)
                return None
            graph, precision = made, "int8"
        head = {
            "version": module.__version__,
            "sm": module._gpu.sm,
            "precision": precision,
            "profiles": [p._sim.shapes for p in config._sim.profiles],
            "verbosity": config.profiling_verbosity.name,
            "size": len(graph.data),
            "dla_core": config.DLA_core if config.default_device_type.name == "DLA" else None,
        }
        return module._new("IHostMemory", data=pack(head, graph.data))


def _calibrator(config: Any) -> Any:
    """Of a build for INT8; from 11.0 on there is none."""
    return config._sim.values.get("int8_calibrator") if "INT8" in config._sim.flags else None


def _precision(network: Any, config: Any) -> str:
    graph = network._sim.graph
    if graph.has_pairs:
        return "int8"
    return "fp16" if "FP16" in config._sim.flags or graph.has_half else "fp32"


def _unbuildable(builder: Any, network: Any, config: Any) -> str | None:
    """Why no engine can be made, or None."""
    graph, flags, faults = network._sim.graph, config._sim.flags, builder._sim.module._gpu.faults
    if graph is None:
        return "Network must have at least one output"
    precision = flags & {"FP16", "BF16", "INT8", "FP8"}
    if network._sim.strong and precision:
        return f"precision flags {sorted(precision)} are not allowed in a strongly typed network"
    if faults.skips_tactics:
        text = "Tactic Device request: 600MB Available: 302MB. Device memory is insufficient to use tactic."
        tell(builder, "WARNING", text)
        return "Error Code 10: Internal Error (Could not find any implementation for node {ForeignNode[x]}.)"
    if graph.has_pairs and not network._sim.strong and "INT8" not in flags:
        return "Int8 precision has been set for a layer, but int8 is not configured in the builder"
    if "INT8" in flags and not graph.has_pairs and _calibrator(config) is None:
        return "Calibration failure occurred with no scaling factors detected"
    if _precision(network, config) in faults.unbuildable:
        return "Error Code 10: Internal Error (Could not find any implementation for node {ForeignNode[x]})"
    if faults.strong_int8_fails and network._sim.strong and graph.has_pairs:
        return "Error Code 9: Internal Error (no valid tactic for DequantizeLinear with FP32 output)"
    return _unbuildable_here(builder, graph, config)


def _unbuildable_here(builder: Any, graph: Graph, config: Any) -> str | None:
    """The board's limits: memory, profile, DLA."""
    module = builder._sim.module
    open_inputs = [port for port in graph.inputs if -1 in port.shape]
    if open_inputs and not config._sim.profiles:
        return "Network has dynamic or shape inputs, but no optimization profile has been defined."
    for profile in config._sim.profiles:
        if any(port.name not in profile._sim.shapes for port in open_inputs):
            return "the optimization profile does not cover every dynamic input"
    if config._sim.pools.get("WORKSPACE", 1 << 30) < _WORKSPACE_NEEDED:
        return "Could not find any implementation for node Conv_0 due to insufficient workspace."
    if module._gpu.free() < graph.bytes_of_weights():
        return "Error Code 2: OutOfMemory (no further information)"
    if config.default_device_type == module.DeviceType.DLA and graph.has_pairs:
        return "DLA does not support explicit quantization (QuantizeLinear)"
    if config.default_device_type == module.DeviceType.DLA and config.DLA_core >= module._gpu.dla_cores:
        return "no DLA core on this device"
    return None


def _report_progress(config: Any) -> bool:
    """False when the monitor cancels."""
    monitor = config._sim.values.get("progress_monitor")
    if monitor is not None:
        called(monitor.phase_start, "Building Engine", None, 2)
        called(monitor.phase_start, "Tactic Selection", "Building Engine", 1)
        for phase in ("Tactic Selection", "Building Engine"):
            if not called(monitor.step_complete, phase, 0, otherwise=False):
                return False
            called(monitor.phase_finish, phase)
    return True


class IBuilderConfig:
    builder_optimization_level = 3
    DLA_core = -1
    default_device_type = ("GPU",)
    profiling_verbosity = ("LAYER_NAMES_ONLY",)
    progress_monitor = None
    int8_calibrator = None
    num_optimization_profiles = property(lambda self: len(self._sim.profiles))

    def set_flag(self: Any, flag: Any) -> None:
        self._sim.flags.add(flag.name)

    def clear_flag(self: Any, flag: Any) -> None:
        self._sim.flags.discard(flag.name)

    def get_flag(self: Any, flag: Any) -> bool:
        return flag.name in self._sim.flags

    def set_memory_pool_limit(self: Any, pool: Any, size: int) -> None:
        self._sim.pools[pool.name] = int(size)

    def add_optimization_profile(self: Any, profile: Any) -> int:
        if not profile._sim.shapes:
            tell(self, "ERROR", "the profile is empty")
            return -1
        self._sim.profiles.append(profile)
        return len(self._sim.profiles) - 1

    def create_timing_cache(self: Any, data: Any) -> Any:
        return self._sim.module._new("ITimingCache", data=bytes(data))

    def set_timing_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
        module = self._sim.module
        tag = f"timings {module.__version__} sm{module._gpu.sm}".encode()
        if cache._sim.data not in (b"", tag) and not ignore_mismatch:
            tell(self, "WARNING", "the timing cache header does not match this device")
            return False
        cache._sim.data = tag
        self._sim.cache = cache
        return True

    def get_timing_cache(self: Any) -> Any:
        return self._sim.cache


class ITimingCache:
    def serialize(self: Any) -> Any:
        return self._sim.module._new("IHostMemory", data=self._sim.data)


class IHostMemory:
    nbytes = property(lambda self: len(self._sim.data))


class IOptimizationProfile:
    def set_shape(self: Any, name: str, low: Any, best: Any, high: Any) -> None:
        shapes = [tuple(map(int, shape)) for shape in (low, best, high)]
        ordered = all(0 <= a <= b <= c for a, b, c in zip(*shapes, strict=True))
        if not ordered:
            raise ValueError("Shape provided for max is inconsistent with other shapes.")
        self._sim.shapes[name] = shapes


class INetworkDefinition:
    num_inputs = property(lambda self: len(self._sim.graph.inputs))
    num_outputs = property(lambda self: len(self._sim.graph.outputs))
    num_layers = property(lambda self: len(self._sim.graph.nodes))

    def get_input(self: Any, index: int) -> Any:
        return self._sim.module._new("ITensor", port=self._sim.graph.inputs[index])


class ITensor:
    name = property(lambda self: self._sim.port.name)
    shape = property(lambda self: self._sim.module.Dims(self._sim.port.shape))
    dtype = property(lambda self: data_type(self._sim.module, self._sim.port.dtype.name))


class OnnxParser:
    num_errors = property(lambda self: len(self._sim.errors))

    def start(self: Any, network: Any, logger: Any) -> None:
        self._sim.network, self._sim.logger, self._sim.errors = network, logger, []

    def parse(self: Any, model: Any, path: str | None) -> bool:
        network, module = self._sim.network, self._sim.module
        if not network._sim.explicit:
            self._sim.errors = [
                Refused(-1, "", "the parser only takes networks with an explicit batch dimension")
            ]
        else:
            try:
                graph = Graph(bytes(model))
            except Exception as error:  # whatever onnx finds wrong with the bytes
                self._sim.errors = [Refused(-1, "", f"Failed to parse the ONNX model: {error}")]
            else:
                self._sim.errors = list(refusals(graph, module._release, module._plugins))
                network._sim.graph, network._sim.parser = graph, weakref.ref(self)
        for error in self._sim.errors:
            tell(self, "ERROR", f"While parsing node number {error.node}: {error.text}")
        return not self._sim.errors

    def get_error(self: Any, index: int) -> Any:
        return self._sim.module._new("ParserError", error=self._sim.errors[index])


class ParserError:
    def desc(self: Any) -> str:
        return str(self._sim.error.text)

    def node(self: Any) -> int:
        return int(self._sim.error.node)

    def node_operator(self: Any) -> str:
        return str(self._sim.error.operator)


BEHAVIOURS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(ILogger, IProgressMonitor, Builder, IBuilderConfig, ITimingCache, IHostMemory),
        *(IOptimizationProfile, INetworkDefinition, ITensor, OnnxParser, ParserError),
    )
}
