"""Float islands found by blame: as few layers as it takes for the gates to hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from edgepose.calibration.evaluation import Shown
from edgepose.calibration.ledger import Gates
from edgepose.compression.answers import Answers
from edgepose.compression.blame import Blamed, Judge, Point, rank, walk
from edgepose.compression.graph import load_onnx
from edgepose.compression.groups import Switches, switches_of
from edgepose.compression.quantize import Quantized
from edgepose.runtime.errors import GateFailed
from edgepose.runtime.spec import Spec

# By graph: names of nodes that stay float -> why. Graphs of one network have nodes of equal names.
Keep = Mapping[str, Mapping[str, str]]
# Quantizes with these nodes float, too; gives the spec of what came out.
Requantize = Callable[[Keep], tuple[Mapping[str, Quantized], Spec]]


@dataclass(frozen=True, slots=True)
class Asked:
    """What quantized graphs must hold, and on what."""

    shown: Shown
    gates: Gates
    min_height_px: float = 0.0


@dataclass(frozen=True, slots=True)
class Islands:
    """A quantized network, and what stayed float so that the gates hold."""

    keep: Keep  # empty when nothing has to
    point: Point | None  # what was measured; None when no gates were asked for
    quantized: Mapping[str, Quantized]  # by graph
    spec: Spec


def float_islands(asked: Asked, fp32: Mapping[str, Path], requantize: Requantize, folder: Path) -> Islands:
    """As few layers float as it takes for the gates to hold.

    Blame's ranking, on the graphs quantized without any, decides who is next; what counts is the network
    quantized anew. Answers are kept in `folder`. Raises GateFailed when the last layer would have to be
    float.
    """
    quantized, spec = requantize({})
    models = {name: load_onnx(path) for name, path in fp32.items()}
    switches = switches_of(models, _models(quantized), (spec.width, spec.height))
    judge = Judge(Answers(folder, switches, asked.shown, spec), asked.gates, asked.min_height_px)
    point = judge.point(judge.answers.groups, 0)
    if not point.failures:
        return Islands({}, point, quantized, spec)
    ranking = rank(judge)
    groups = [blamed.group for blamed in ranking]
    start = next(point.floats for point in walk(judge, groups) if not point.failures)
    for floats in range(start, len(groups)):
        keep = {name: _nodes(each, ranking[:floats]) for name, each in switches.items()}
        quantized, spec = requantize(keep)
        found = judge.answers.ask(_models(quantized), spec, "int8")
        point = judge.judged(found, floats, sum(group.macs for group in groups[floats:]))
        if not point.failures:
            return Islands(keep, point, quantized, spec)
    raise GateFailed(
        f"with one of {len(groups)} layers in INT8 the gates still fail ({'; '.join(point.failures)}); "
        "deploy FP32, or allow a larger loss"
    )


def _models(quantized: Mapping[str, Quantized]) -> dict[str, ModelProto]:
    return {name: result.model for name, result in quantized.items()}


def _nodes(switches: Switches, ranking: Sequence[Blamed]) -> dict[str, str]:
    """The nodes of one graph that are in the groups of the ranking, and why they are."""
    own = (blamed for blamed in ranking if blamed.group in switches.groups)
    return {node: _reason(blamed) for blamed in own for node in blamed.group.nodes}


def _reason(blamed: Blamed) -> str:
    return f"blame: costs {100 * blamed.oks.mean:+.2f} of OKS 100 and {blamed.drift_px.mean:.2f} px"
