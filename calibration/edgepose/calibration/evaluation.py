"""What every artefact is evaluated on: labelled pictures, with their people for those that must be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepose.calibration.boxes import Boxes
from edgepose.calibration.dataset import Dataset
from edgepose.runtime.oks import F64
from edgepose.runtime.poses import Poses
from edgepose.runtime.preprocess import Letterbox
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.crop import Regions


@dataclass(frozen=True, slots=True)
class Shown:
    """What the artefacts are shown: labelled pictures, and where people are if the network has to be told."""

    pictures: Dataset
    people: Sequence[Boxes] | None = None  # of each picture
    found_by: str = ""

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """What an artefact's `estimate` takes for a picture."""
        image = self.pictures[index].image
        return (image,) if self.people is None else (image, *self.people[index])

    def scale(self, index: int, poses: Poses, spec: Spec) -> float | F64:
        """Pixels of the network's input for one of the picture, for all `poses` or for each (P,)."""
        size = (spec.width, spec.height)
        if self.people is None:
            return Letterbox.fit(self.pictures.size(index), size).scale_x
        regions = Regions.around(self.people[index].boxes, size)
        middles = (poses.boxes[:, :2] + poses.boxes[:, 2:]) / 2
        away = np.linalg.norm(middles[:, None] - regions.centres[None], axis=-1)  # (P, R)
        return (size[0] - 1) / regions.sides[away.argmin(1), 0] if len(regions) else np.ones(len(poses))
