"""What a network is shown of a calibration set: whole pictures, or the people that a detector finds."""

from __future__ import annotations

import numpy as np

from edgepose.calibration.boxes import Boxes, Finder
from edgepose.calibration.calibration_set import FEWEST, CalibrationSet, count_useful
from edgepose.calibration.sample import Sample
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.preprocess import U8, letterbox, pad_colour
from edgepose.runtime.progress import track
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.crop import Regions

MOST = 512  # crops: memory is bounded when the pictures are full of people


def pictures_shown(pictures: CalibrationSet, spec: Spec) -> list[U8]:
    """Every picture as (height, width, 3) BGR of the network's size."""
    shown = track(pictures.images(), "Reading pictures", len(pictures))
    return [letterbox(image, spec.width, spec.height, pad_colour(spec))[0] for image in shown]


def people_shown(pictures: CalibrationSet, spec: Spec, finder: Finder) -> list[U8]:
    """A crop (height, width, 3) BGR of every person found, or of MOST, taken evenly from all pictures.

    Raises EdgeposeError when nobody is found, and when the crops are too few to take activation ranges from.
    """
    found = finder.find(track(pictures.samples(), "Finding people", len(pictures)))
    crops: list[U8] = []
    for sample, boxes in zip(pictures.samples(), found, strict=True):
        crops.extend(crops_of(sample, boxes, spec))
    places = np.linspace(0, len(crops) - 1, min(MOST, len(crops))).round().astype(int)
    shown = [crops[place] for place in places]
    useful = count_useful(shown)
    if useful < FEWEST:
        raise EdgeposeError(
            f"{pictures.folder}: {useful} different people are found in its {len(pictures)} pictures, a "
            f"calibration needs {FEWEST} or more; add pictures, or name another source of boxes"
        )
    return shown


def crops_of(sample: Sample, found: Boxes, spec: Spec) -> U8:
    """(P, height, width, 3) BGR crops of the people in a picture."""
    size = (spec.width, spec.height)
    return Regions.around(found.boxes, size).cut(sample.image, size)


def require_finder(spec: Spec, given: bool) -> None:
    """Raises EdgeposeError when boxes are needed and not given, or given and not needed."""
    needed = spec.resize == "crop"
    if needed and not given:
        raise EdgeposeError(
            f"{spec.model} is shown one person at a time: name who finds people, "
            "--detector BUNDLE or --boxes FILE"
        )
    if given and not needed:
        raise EdgeposeError(f"{spec.model} is shown whole pictures: leave out --detector and --boxes")
