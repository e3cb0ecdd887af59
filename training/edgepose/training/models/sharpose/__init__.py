"""SHaRPose (AAAI 2024): a top-down transformer that looks twice, sharper only where it is worth it."""

from __future__ import annotations

from typing import Any

from edgepose.training.models.options import configure, fields_but
from edgepose.training.models.sharpose.network import Config, SharPose

# The table of specs/sharpose.md section 0; names say height x width, as the paper's, sizes width, height.
PROFILES: dict[str, dict[str, Any]] = {
    # Ours, for tests and trials: the paper has none so small.
    "sharpose_tiny_128x96": {"size": (96, 128), "channels": 64, "depth": 4, "heads": 4, "alpha": 0.4},
    "sharpose_small_256x192": {"size": (192, 256), "channels": 384, "alpha": 0.5},
    "sharpose_base_256x192": {"size": (192, 256), "channels": 768, "alpha": 0.4},
    # No quality reaches 1.2: everybody is refined.
    "sharpose_base_384x288": {"size": (288, 384), "channels": 768, "alpha": 0.3, "threshold": 1.2},
}


def config_of(name: str, **options: Any) -> Config:
    """A profile by name; options are the fields of `Config`, but not those that the name says."""
    known = fields_but(Config, ("size", "channels", "depth", "heads"))
    return configure(Config, name, PROFILES[name], options, known)


def build(name: str, **options: Any) -> SharPose:
    """The network of `config_of`."""
    return SharPose(config_of(name, **options))
