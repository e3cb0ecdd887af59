"""Running a graph that is still in memory, on what is known of each picture by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from onnx import ModelProto, helper

from edgepose.compression.graph import Array, copy
from edgepose.runtime.backend_onnxruntime import DISABLED, session_options
from edgepose.runtime.errors import EdgeposeError, require

INPUT = "images"  # of the first graph of every family, and of later ones too
Feeds = Mapping[str, Array]  # inputs by name, of one picture (batch 1) or more
Outputs = dict[str, Array]


def feeds_of(model: ModelProto, known: Feeds) -> dict[str, Array]:
    """What `model` reads of all that is `known`: pictures, and what the graphs before it gave."""
    return {value.name: known[value.name] for value in model.graph.input}


def tapped(model: ModelProto, tensors: Iterable[str]) -> ModelProto:
    """A copy that gives these inner tensors, too, after its own outputs."""
    result = copy(model)
    result.graph.output.extend(helper.make_empty_tensor_value_info(tensor) for tensor in tensors)
    return result


def outputs_of(
    model: ModelProto,
    feeds: Iterable[Feeds],
    wanted: Sequence[str] | None = None,
    *,
    optimised: bool = True,
) -> list[Outputs]:
    """All that `each_output` gives."""
    return list(each_output(model, feeds, wanted, optimised=optimised))


def each_output(
    model: ModelProto,
    feeds: Iterable[Feeds],
    wanted: Sequence[str] | None = None,
    *,
    optimised: bool = True,
) -> Iterator[Outputs]:
    """The outputs for each of the `feeds`, all or those `wanted`, on ONNX Runtime's CPU, one thread.

    `optimised` False runs node by node, as the file is written. Raises EdgeposeError when it cannot be run.
    """
    ort = require("onnxruntime")
    options = session_options(threads=1)
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with _told():
        session = ort.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=DISABLED,
        )
        names = list(wanted or (output.name for output in session.get_outputs()))
    for feed in feeds:  # what goes wrong with a feed, such as a picture that cannot be read, is told as it is
        with _told():
            values = session.run(names, dict(feed))
        yield dict(zip(names, values, strict=True))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's own exceptions have no common base but this
        raise EdgeposeError(f"ONNX Runtime cannot run the graph: {str(error).splitlines()[0]}") from error
