"""Running a graph that is still in memory, on what is known of each picture by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from onnx import ModelProto, NodeProto, TensorProto, helper

from edgepose.compression.graph import QUANTIZE, Array, Graph, copy
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


def rounding(model: ModelProto) -> ModelProto:
    """The model, its half tensors quantized by their exact values in float32: as ONNX has it, rounded.

    ONNX Runtime before 1.30 cuts half quotients off towards zero instead (its pull request 32452).
    """
    constants = Graph(model).constants
    if all(tensor.data_type != TensorProto.FLOAT16 for tensor in constants.values()):
        return model  # not copied: some networks are large
    result = copy(model)
    nodes: list[NodeProto] = []
    for node in result.graph.node:
        scale = constants.get(node.input[1]) if node.op_type == QUANTIZE else None
        if scale is not None and scale.data_type == TensorProto.FLOAT16:
            for index, name in enumerate(node.input[:2]):
                node.input[index] = f"{node.output[0]}/float{index}"
                nodes.append(helper.make_node("Cast", [name], [node.input[index]], to=TensorProto.FLOAT))
        nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
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
            rounding(model).SerializeToString(),
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
