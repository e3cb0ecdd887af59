"""QR-Pose (AAAI 2022): one network, its targets, its losses and its two inference graphs."""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models.qrpose.network import Config, QrPose

# Wider at strides 8 to 32 than specs/qrpose.md's tiny (48, 72, 96): cheap there, and still under 4 MB.
TINY = {"widths": (16, 32, 64, 96, 96), "channels": 64, "instance_channels": 32}


def build_tiny(**options: Any) -> QrPose:
    """`qrpose_tiny`; options are the fields of `Config`, such as head="dense"."""
    known = [field.name for field in fields(Config)]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise EdgeposeError(f"unknown option {key!r} of qrpose_tiny; {hint}")
    return QrPose(Config(**{**TINY, **options}))
