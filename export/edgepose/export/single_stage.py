"""Families of one graph that finds everybody: QR-Pose, and whoever else gives the same outputs."""

from __future__ import annotations

from edgepose.compression.execution import INPUT
from edgepose.export.contract import Contract, Ports
from edgepose.runtime.agreement import PoseDifference

GRAPH = "pose"
OUTPUTS = ("scores", "boxes", "keypoints", "keypoint_scores")


SINGLE_STAGE = Contract(
    ports={GRAPH: Ports((INPUT,), OUTPUTS)},
    modules=lambda network: {GRAPH: network},
    prepared=lambda network: network,
    described=lambda spec, _: spec,
    traced=PoseDifference(score=1e-4, keypoint_px=0.01, confidence=1e-4),
)
