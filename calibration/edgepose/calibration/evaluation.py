"""What every artefact is evaluated on: labelled pictures, with their people for those that must be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepose.calibration.boxes import Boxes, Finder
from edgepose.calibration.calibration_set import Manifest, require_apart
from edgepose.calibration.dataset import Dataset
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.oks import F64
from edgepose.runtime.poses import Poses
from edgepose.runtime.preprocess import Letterbox
from edgepose.runtime.progress import track
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.crop import Regions

TRUTH = "truth"  # the labels' boxes
MANIFEST = "calibration.json"  # in a bundle, and where it was compressed: of what INT8 was calibrated on


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


def told(pictures: Dataset, finder: Finder, name: str) -> Shown:
    """The pictures with the people that `finder`, called `name`, finds in them."""
    places = track(range(len(pictures)), "Finding people")
    return Shown(pictures, finder.find(pictures[index] for index in places), name)


def require_skeleton(pictures: Dataset, spec: Spec) -> None:
    """Raises EdgeposeError when people are labelled with other joints than the network finds."""
    if pictures.skeleton != spec.joints():
        raise EdgeposeError(
            f"{pictures.source}: its joints are {pictures.skeleton.name}, the bundle's {spec.skeleton}"
        )


def require_unseen(pictures: Dataset, bundle: Bundle) -> None:
    """Raises GateFailed when one of the pictures is of those that the bundle's INT8 was calibrated on."""
    if MANIFEST in bundle.files:
        values = bundle.read(MANIFEST, "the calibration manifest")
        require_apart(Manifest.from_dict(values, bundle.path / MANIFEST), pictures)
