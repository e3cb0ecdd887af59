"""Families of one graph that finds everybody: QR-Pose and QueryPose."""

from __future__ import annotations

from dataclasses import replace

from edgepose.compression.execution import INPUT
from edgepose.export.contract import Contract, Ports
from edgepose.runtime.agreement import PoseDifference
from edgepose.runtime.spec import Spec
from edgepose.training.models.querypose.network import QueryPose

GRAPH = "pose"
OUTPUTS = ("scores", "boxes", "keypoints", "keypoint_scores")


SINGLE_STAGE = Contract(
    ports={GRAPH: Ports((INPUT,), OUTPUTS)},
    modules=lambda network: {GRAPH: network},
    prepared=lambda network: network,
    described=lambda spec, _: spec,
    traced=PoseDifference(score=1e-4, keypoint_px=0.01, confidence=1e-4),
)


def _with_skeleton(spec: Spec, network: QueryPose) -> Spec:
    return replace(spec, skeleton=network.config.skeleton)


# The same outputs, of the joints that the network was built for.
QUERIES = replace(SINGLE_STAGE, described=_with_skeleton)
