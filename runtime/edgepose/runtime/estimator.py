"""Frame in, poses out: preprocessing, one backend and the family's decoder in one callable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from edgepose.runtime.backend import Array, Backend, FrameBackend
from edgepose.runtime.decode import DECODERS
from edgepose.runtime.poses import F32, Poses
from edgepose.runtime.preprocess import U8, Letterbox, prepare
from edgepose.runtime.spec import Spec


class Estimator:
    """Poses of single frames. The backend stays with its owner, who closes it."""

    def __init__(self, backend: Backend, spec: Spec) -> None:
        self._backend = backend
        self._spec = spec

    def __call__(self, frame: U8) -> Poses:
        """All poses of a (H, W, 3) BGR frame, best first, in pixels of that frame."""
        outputs, box = self._look(frame)
        return DECODERS[self._spec.family](cast(Mapping[str, F32], outputs), box, self._spec.joints())

    def _look(self, frame: U8) -> tuple[Mapping[str, Array], Letterbox]:
        if isinstance(self._backend, FrameBackend):
            return self._backend.see(frame)
        images, box = prepare(frame, self._spec)
        return self._backend.run({"images": images}), box
