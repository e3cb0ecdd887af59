"""A network as ONNX Runtime would run it on the CPU: its graphs, their size in multiply-adds, their time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnx import ModelProto
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgepose.compression.allocation import Times
from edgepose.compression.execution import Feeds, feeds_of
from edgepose.export.layer_times import layer_times
from edgepose.export.simplify import simplify
from edgepose.export.specs import spec_of
from edgepose.export.trace import trace
from edgepose.export.verb_export import golden_frames, torch_answers
from edgepose.runtime.backend_onnxruntime import OnnxRuntimeBackend
from edgepose.runtime.bench import Timing, alternate


@dataclass(frozen=True, slots=True)
class Runnable:
    """A network's graphs and what each reads of one picture."""

    graphs: Sequence[tuple[ModelProto, Feeds]]
    multiply_adds: int  # of all graphs, for that picture

    def times(self) -> Times:
        """Of all graphs together; those of a network may share layers."""
        layers: dict[str, float] = defaultdict(float)
        read: dict[str, float] = defaultdict(float)
        total = 0.0
        for model, feeds in self.graphs:
            found = layer_times(model, feeds)
            total += found.total
            for into, seconds in ((layers, found.layers), (read, found.read)):
                for name, value in seconds.items():
                    into[name] += value
        return Times(dict(layers), dict(read), total)


def runnable(name: str, model: nn.Module) -> Runnable:
    """The network `model`, built under `name`, traced and simplified as `edgepose export` does it."""
    spec = spec_of(name, model.eval())
    with FlopCounterMode(display=False) as counter:
        (known,) = torch_answers(model, golden_frames(spec)[:1], spec)
    graphs = []
    for traced in trace(model, spec).values():
        feeds = feeds_of(traced, known)
        graphs.append((simplify(traced, [feeds])[0], feeds))
    return Runnable(graphs, counter.get_total_flops() // 2)


def compared(networks: Mapping[str, Runnable], rounds: int) -> list[Timing]:
    """All networks in turns on ONNX Runtime's CPU, one thread; the first is the measure of the others."""
    with TemporaryDirectory(prefix="edgepose-") as folder, ExitStack() as stack:
        runs: dict[str, Callable[[], Any]] = {}
        for name, network in networks.items():
            calls = []
            for index, (model, feeds) in enumerate(network.graphs):
                path = Path(folder) / f"{name}.{index}.onnx"
                onnx.save(model, path)
                calls.append(partial(stack.enter_context(OnnxRuntimeBackend(path, threads=1)).run, feeds))
            runs[name] = partial(_all, calls)
        return alternate(runs, rounds)


def _all(calls: Sequence[Callable[[], Any]]) -> None:
    for call in calls:
        call()
