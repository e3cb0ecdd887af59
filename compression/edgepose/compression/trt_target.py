"""What TensorRT can run in INT8, told to NNCF as a hardware table for the length of a `with` block."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from types import ModuleType
from typing import Any

from edgepose.compression.graph import Array
from edgepose.runtime.errors import require


def load_nncf() -> ModuleType:
    """NNCF, imported so that it neither reports its use nor writes a client id into the home folder.

    NNCF reports nothing when `openvino_telemetry` cannot be imported, so that import is made to fail here.
    """
    before = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # this makes the import fail
    try:
        nncf = require("nncf")
        _name_layers_by_their_whole_paths()
    finally:
        del sys.modules["openvino_telemetry"]
        if before is not None:
            sys.modules["openvino_telemetry"] = before
    return nncf


@cache
def _name_layers_by_their_whole_paths() -> None:
    """Let NNCF call a layer inside a ModuleList `stages/1/conv`, by which its hooks and our scopes find it.

    It names the children of what is called alone, and a ModuleList never is: `stages.1.conv` would be `conv`,
    told apart from `stages.0.conv` by a count of calls, which training and evaluation do not share.
    """
    from nncf.torch.function_hook.hook_executor_mode import FunctionHookMode

    original = FunctionHookMode.get_current_relative_name

    def whole(self: Any) -> str:
        for caller in self.module_call_stack:
            if id(caller) not in self.cache_child_name:  # NNCF's own, of one pass through the network
                inside = ((name, module) for name, module in caller.named_modules() if module is not caller)
                self.cache_child_name[id(caller)] = {id(it): name.replace(".", "/") for name, it in inside}
        return str(original(self))

    FunctionHookMode.get_current_relative_name = whole


def _table(attention: bool) -> tuple[Any, ...]:
    """NNCF `OpDesc` for every operator that may be touched; all others stay float.

    Signed, symmetric, activations per tensor, weights per output channel: NvInfer.h, IQuantizeLayer. Without
    `signedness_to_force` NNCF writes uint8 after every ReLU, which TensorRT's parser refuses.
    """
    from nncf.common.hardware.defines import SCALES, UNIFIED, Granularity, OpDesc, QConfigSpace
    from nncf.common.hardware.opset import HWOpName as Op
    from nncf.common.quantization.structs import QuantizationScheme

    def space(*granularity: Granularity, narrow: bool) -> QConfigSpace:
        return QConfigSpace(
            bits=8,
            mode=(QuantizationScheme.SYMMETRIC,),
            granularity=granularity,
            narrow_range=(narrow,),
            signedness_to_force=True,
        )

    activation = (space(Granularity.PER_TENSOR, narrow=False),)
    weight = (space(Granularity.PER_CHANNEL, Granularity.PER_TENSOR, narrow=True),)
    weighted = (Op.CONVOLUTION, Op.DEPTHWISE_CONVOLUTION, Op.MAT_MUL)
    moves = [Op.MAX_POOL, Op.SPLIT, Op.VARIADIC_SPLIT, Op.SLICE, Op.STRIDED_SLICE]
    moves += [Op.BROADCAST, Op.TILE, Op.PAD]
    # Attention lays its heads out anew between two layers: a pair before that is no layer's own.
    if not attention:
        moves += [Op.RESHAPE, Op.FLATTEN, Op.SQUEEZE, Op.UNSQUEEZE, Op.TRANSPOSE]
    return (
        *(OpDesc(type=op, activations=activation, weights=weight) for op in (*weighted, Op.ADD)),
        *(OpDesc(type=op, activations=activation) for op in (Op.AVG_POOL, Op.INTERPOLATE)),
        OpDesc(type=Op.CONCAT, attributes={SCALES: UNIFIED}),  # unequal input scales cost a requantization
        *(OpDesc(type=op) for op in moves),
    )


def advanced() -> Any:
    """NNCF's finer settings: all eight bits for every weight, and for activations the range of least error.

    By default it leaves one bit out of the first convolution's weights, for the sake of CPUs that add in 16
    bits, and takes the mean over the pictures of what is largest: half of them then have more than 127 steps
    hold. A squared error counts both, what is cut off and what is rounded.
    """
    nncf = load_nncf()
    from nncf.quantization.advanced_parameters import OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return nncf.AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.DISABLE,
        activations_range_estimator_params=RangeEstimatorParametersSet.HISTOGRAM,
    )


def least_error_ranges(shown: Iterable[Mapping[str, Array]]) -> dict[str, float]:
    """The largest magnitude that INT8 should hold of each tensor, found as `advanced` has NNCF find it.

    `shown` has the tensors by name, once for each picture.
    """
    load_nncf()
    from nncf.common.tensor_statistics.collectors import HistogramAggregator
    from nncf.tensor import Tensor

    histograms: dict[str, Any] = defaultdict(HistogramAggregator)
    for tensors in shown:
        for name, array in tensors.items():
            histograms[name].register_reduced_input(Tensor(array))
    bounds = {name: histogram.aggregate().values() for name, histogram in histograms.items()}
    return {name: max(abs(float(bound.data)) for bound in both) for name, both in bounds.items()}


@contextlib.contextmanager
def trt_target(attention: bool = False) -> Iterator[None]:
    """NNCF places and chooses quantizers for TensorRT inside this block, and smooths behind norms alone.

    SmoothQuant (ICML 2023, section 4.2) does so: a LayerNormalization takes the factors in. NNCF smooths what
    a GELU makes as well, where they stay an operation of their own. In networks of `attention` blocks every
    pair stands right before its layer.

    It replaces two functions that NNCF 3.4 keeps to itself; hence the pin `nncf>=3.4,<3.5` and the linter.
    NNCF's log is silent inside: it is about placements that the linter and the float plan report better.
    """
    load_nncf()
    import nncf.common.hardware.config as hardware
    from nncf.quantization.algorithms.smooth_quant.algorithm import SmoothQuant

    table, target, smoothed = _table(attention), hardware.get_hw_setup, SmoothQuant._get_nodes_to_smooth_data
    logger = logging.getLogger("nncf")
    level = logger.level

    def behind_norms(self: Any, graph: Any, kinds: Any) -> list[tuple[Any, int]]:
        def maker(node: Any, port: int) -> str:
            return str(graph.get_input_edge_by_port_id(node, port).from_node.node_type)

        found = smoothed(self, graph, kinds)
        return [(node, port) for node, port in found if maker(node, port) == "LayerNormalization"]

    hardware.get_hw_setup = lambda target_device: table
    SmoothQuant._get_nodes_to_smooth_data = behind_norms
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hardware.get_hw_setup, SmoothQuant._get_nodes_to_smooth_data = target, smoothed
        logger.setLevel(level)
