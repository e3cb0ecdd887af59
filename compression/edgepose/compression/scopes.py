"""What stays in floating point in each family beyond the general rules, and the measurement behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Scope:
    """Layers by name: `pattern` is matched against whole parts of a path (`head.off1`, `/head/off1/Conv`)."""

    what: str  # what these layers compute, for people
    pattern: str
    reason: str
    downstream: bool  # whether everything computed from these layers stays float too
    until: Literal["layers", "convolutions"] | None = None  # what ends that, itself not among it
    half: bool = False  # whether that may be half; otherwise it is float32 in every view

    def matches(self, name: str) -> bool:
        """Whether one component of the path `name` is the pattern."""
        return any(re.fullmatch(self.pattern, part) for part in re.split(r"[./]", name))


# Families made of attention blocks, for which NNCF has a mode of its own: it also moves the spread of the
# channels from activations into weights (SmoothQuant). On a half-trained sharpose_tiny joints then drift by
# 0.02 px in the median and 0.10 px at the 95th percentile, without SmoothQuant 0.03 and 0.20, in the plain
# mode 0.04 and 0.32. It works behind LayerNorms alone, which take in the products that it leaves behind.
TRANSFORMERS = frozenset({"sharpose"})

FLOAT_SCOPES: dict[str, tuple[Scope, ...]] = {
    "qrpose": (
        Scope(
            "scores",
            r"score\d*",
            "score logits in 8 bits tie: 91 duplicate people instead of 1 on 400 images, AP .3325 -> .3139",
            downstream=True,
        ),
        Scope(
            "offsets",
            r"off\d*",
            "offsets in 8 bits step by half a map pixel at 128x128: mean OKS .6323 -> .6181",
            downstream=True,
        ),
        Scope(
            "confidences",
            r"conf\d*|joint_conf",
            "per-joint confidences are an output; they cost one 1x1 layer",
            downstream=True,
        ),
    ),
    # By the plan of specs/querypose.md section 14. No other was compared; this one costs the shipped weights,
    # which are little trained, 0.1 points of AP.
    "querypose": (
        Scope(
            "boxes and scores",
            r"delta|logit",
            "every stage moves the boxes of the one before, and joints are looked for in the last ones",
            downstream=True,
            until="layers",
        ),
        Scope(
            "the joints",
            r"coordinates|deviations",
            "outputs: places in a box, and how sure they are",
            downstream=True,
        ),
        Scope(
            "the box branch",
            r"box_stages",
            "4 % of the work with 10 queries, and its errors add up from stage to stage",
            downstream=True,
            until="convolutions",
            half=True,
        ),
        Scope(
            "the parts",
            r"attend",
            "a softmax over all places of a region reads it, and the part queries what that finds",
            downstream=True,
            half=True,
        ),
    ),
    "sharpose": (
        Scope(
            "the quality",
            r"quality_predictor",
            "one number held against a limit: an error of 0.05 changes who is looked at again",
            downstream=True,
        ),
    ),
}
