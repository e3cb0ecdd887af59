"""Frame in, poses out: preprocessing, one backend and the family's decoder in one callable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from edgepose.runtime.backend import Backend
from edgepose.runtime.decode import DECODERS
from edgepose.runtime.poses import F32, Poses
from edgepose.runtime.preprocess import U8, prepare
from edgepose.runtime.spec import Spec


class Estimator:
    """Poses of single frames. The backend stays with its owner, who closes it."""

    def __init__(self, backend: Backend, spec: Spec) -> None:
        self._backend = backend
        self._spec = spec

    def __call__(self, frame: U8) -> Poses:
        """All poses of a (H, W, 3) BGR frame, best first, in pixels of that frame."""
        images, box = prepare(frame, self._spec)
        outputs = cast(Mapping[str, F32], self._backend.run({"images": images}))
        return DECODERS[self._spec.family](outputs, box, self._spec.joints())
