"""From a family's graph outputs to poses in the source frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgepose.runtime.decode import qrpose, querypose
from edgepose.runtime.poses import F32, Poses
from edgepose.runtime.preprocess import Letterbox
from edgepose.runtime.skeleton import Skeleton

Decoder = Callable[[Mapping[str, F32], Letterbox, Skeleton], Poses]

# One reader per model family (DESIGN.md: tables, not registries).
DECODERS: dict[str, Decoder] = {"querypose": querypose.decode, "qrpose": qrpose.decode}
