"""QR-Pose (AAAI 2022): one network, its targets, its losses and its two inference graphs."""

from __future__ import annotations

from typing import Any

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models.options import configure, fields_but
from edgepose.training.models.qrpose.network import Config, QrPose

# C, c and M of specs/qrpose.md sections 4 and 7, for its input of 512 pixels.
LARGE = {
    "size": (512, 512),
    "channels": 64,
    "instance_channels": 64,
    "joint_channels": 16,
    "candidates": 256,
}
PROFILES: dict[str, dict[str, Any]] = {
    # Wider at strides 8 to 32 than specs/qrpose.md's tiny (48, 72, 96): cheap there, and still under 4 MB.
    "qrpose_tiny": {"widths": (16, 32, 64, 96, 96), "channels": 64, "instance_channels": 32},
    # Made for a camera's frame rate: 384 is 9/16 of the work of 512, and a person who fills a fifth of the
    # frame's height still covers 19 pixels of the map.
    "qrpose_edge": {**LARGE, "backbone": "resnet18", "size": (384, 384)},
    "qrpose_hrnet32": {**LARGE, "backbone": "hrnet32"},
    "qrpose_hrnet48": {**LARGE, "backbone": "hrnet48"},
    "qrpose_dla34": {**LARGE, "backbone": "dla34"},
}


def build(name: str, **options: Any) -> QrPose:
    """A profile by name; options are the fields of `Config`, such as head="dense", but not its backbone."""
    known = fields_but(Config, ("backbone",) if name == "qrpose_tiny" else ("backbone", "widths"))
    return QrPose(configure(Config, name, PROFILES[name], options, known))


def build_edge(depth: int = 18, **options: Any) -> QrPose:
    """`qrpose_edge` on a ResNet of `depth` 18 or 34; other options as of `build`."""
    if depth not in (18, 34):
        raise EdgeposeError(f"qrpose_edge: there is no depth {depth!r}; choose 18 or 34")
    profile = {**PROFILES["qrpose_edge"], "backbone": f"resnet{depth}"}
    known = ["depth", *fields_but(Config, ("backbone", "widths"))]
    return QrPose(configure(Config, "qrpose_edge", profile, options, known))
