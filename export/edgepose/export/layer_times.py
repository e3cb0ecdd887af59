"""How long ONNX Runtime takes for each layer of a graph, by the layer's name in PyTorch."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from onnx import ModelProto

from edgepose.compression.allocation import Times
from edgepose.compression.execution import Feeds
from edgepose.compression.graph import WEIGHTED, Graph
from edgepose.runtime.backend_onnxruntime import DISABLED, session_options
from edgepose.runtime.errors import require

KERNEL = "_kernel_time"
UNDISTURBED = 10  # percentile
BLOCKED = "_nchwc"  # what ONNX Runtime adds to a name when it lays channels out in blocks


def layer_times(model: ModelProto, feeds: Feeds, rounds: int = 30) -> Times:
    """On the CPU, one thread, as ONNX Runtime optimises the graph: of `rounds` runs the tenth percentile.

    What other programs take of the machine only ever adds; medians of 30 runs differed twofold on a busy one.
    """
    ort = require("onnxruntime")
    options = session_options(threads=1)
    with tempfile.TemporaryDirectory(prefix="edgepose-") as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = ort.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=DISABLED,
        )
        for _ in range(rounds):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    seconds: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["name"].endswith(KERNEL):
            seconds[event["name"].removesuffix(KERNEL).removesuffix(BLOCKED)].append(event["dur"] / 1e6)
    found = {name: float(np.percentile(values, UNDISTURBED)) for name, values in seconds.items()}
    layers: dict[str, float] = defaultdict(float)
    read: dict[str, float] = defaultdict(float)
    owners, readers = _owners(model), _readers(model)
    for name, value in found.items():
        if name in owners:
            layers[owners[name]] += value
        elif name in readers:
            read[readers[name]] += value
    return Times(dict(layers), dict(read), sum(found.values()))


def _owners(model: ModelProto) -> dict[str, str]:
    """Layers by the names that a node can have after fusing: its own, its output's, and what follows it."""
    graph, owners = Graph(model), {}
    for node in graph.nodes:
        if node.op_type in WEIGHTED:
            owners[node.name] = owners[node.output[0]] = node.name
            readers = graph.consumers[node.output[0]]
            while len(readers) == 1 and readers[0].op_type in ("Relu", "Add"):
                (after,) = readers
                owners.setdefault(after.output[0], node.name)
                readers = graph.consumers[after.output[0]]
    return owners


def _readers(model: ModelProto) -> dict[str, str]:
    """For every other node the first layer that its result reaches."""
    graph = Graph(model)
    first: dict[str, str] = {}
    for node in reversed(graph.nodes):
        if node.op_type not in WEIGHTED:
            for after in graph.consumers[node.output[0]]:
                reached = after.name if after.op_type in WEIGHTED else first.get(after.name)
                if reached is not None:
                    first[node.name] = reached
                    break
    return first
