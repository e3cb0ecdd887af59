"""What a pose of a two-stage network is expected to reach, in the units of a single-stage network's score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import F32

FILE = "gauge.json"  # in the two-stage network's bundle
VERSION = 1
Exponents = tuple[float, float]  # of the first score, of the quality


@dataclass(frozen=True, slots=True)
class Gauge:
    """Expected OKS = first score ^ a * quality ^ b.

    The quality cannot be taken as it is. It predicts the OKS by the area of the padded box
    (specs/sharpose.md section 4), 9 times that of a silhouette (median of 400 synthetic people), by which
    COCO and a single-stage network's score measure; and it knows nothing of whether there is anybody, which
    the first score does. `edgepose dial --gauge` measures the exponents; a bundle without has those here.
    """

    coarse: Exponents = (0.0, 3.0)
    fine: Exponents = (0.0, 3.0)

    def expected(self, first: F32, quality: F32, stages: npt.NDArray[np.uint8]) -> F32:
        """(P,) OKS expected of poses of the `stages` (P,), by both scores (P,); NaN where one is."""
        a, b = np.array(((1.0, 0.0), self.coarse, self.fine))[stages].T
        return np.asarray(first.clip(0, 1) ** a * quality.clip(0, 1) ** b, np.float32)


def gauge_of(bundle: Bundle) -> Gauge:
    """The bundle's own, if it has one. Raises EdgeposeError when that is damaged or newer."""
    if FILE not in bundle.files:
        return Gauge()
    values = bundle.read(FILE, "what its quality is worth")
    try:
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']!r}")
        pairs = [tuple(float(value) for value in values[look]) for look in ("coarse", "fine")]
        if not all(len(pair) == 2 and min(pair) >= 0 for pair in pairs):
            raise ValueError("two exponents from 0 on are needed for each look")
        coarse, fine = pairs
        return Gauge((coarse[0], coarse[1]), (fine[0], fine[1]))
    except (KeyError, TypeError, ValueError) as error:
        raise EdgeposeError(
            f"{bundle.path}: {FILE} cannot be read ({error}); measure it again: edgepose dial --gauge"
        ) from error
