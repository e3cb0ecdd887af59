"""QueryPose (NeurIPS 2022): people as a fixed set of queries, poses part by part, nothing to suppress."""

from __future__ import annotations

from typing import Any

from edgepose.training.models.options import configure, fields_but
from edgepose.training.models.querypose.config import Config
from edgepose.training.models.querypose.network import QueryPose

# The table of specs/querypose.md section 1; each also with `_full` at its end. Published are the light W32
# and W48.
NAMES = {
    "querypose_r50": "resnet50",
    "querypose_hrnet32": "hrnet32",
    "querypose_hrnet48": "hrnet48",
    "querypose_swint": "swint",
    "querypose_swinb": "swinb",
    "querypose_swinl": "swinl",
}
TINY = "querypose_tiny"
PROFILES: dict[str, dict[str, Any]] = {
    # Ours, for CPUs and tests: half of the stages, a sixth of the channels.
    TINY: {
        **{"backbone": "residual", "size": (256, 256), "queries": 30, "stages": 3, "channels": 40},
        **{"heads": 4, "hidden": 192, "dynamic_channels": 16, "part_channels": 32},
        **{"pose_layers": 3, "pose_channels": 48, "top_k": 20},
    },
    **{name: {"backbone": backbone} for name, backbone in NAMES.items()},
    **{f"{name}_full": {"backbone": backbone, "full": True} for name, backbone in NAMES.items()},
}
# What a caller may choose of a published network: the rest is what its weights are.
FREE = ("size", "skeleton", "queries", "top_k", "roi", "reference")


def build(name: str, **options: Any) -> QueryPose:
    """A profile by name; options are fields of `Config`, for a published network those in `FREE`."""
    known = fields_but(Config, ("backbone",)) if name == TINY else FREE
    return QueryPose(configure(Config, name, PROFILES[name], options, known))
