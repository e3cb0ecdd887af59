"""Measuring what the poses of a two-stage network reach, by its quality and the score of who was found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from edgepose.calibration.dataset import Dataset
from edgepose.calibration.oks import oks_matrix
from edgepose.calibration.sample import Sample
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.oks import F64
from edgepose.runtime.progress import track
from edgepose.runtime.topdown.crop import Regions, prepare
from edgepose.runtime.topdown.gauge import FILE, VERSION, Exponents, Gauge
from edgepose.runtime.topdown.pair import Pair
from edgepose.runtime.topdown.people import boxes_around
from edgepose.runtime.topdown.score import poses
from edgepose.runtime.topdown.twostage import MOST

FEWEST = 30  # people; of fewer two exponents are an accident
WIDEST = (2.0, 16.0)  # exponents of the first score and of the quality
STEPS = 17  # of each, where the search for the best begins


class Reached(NamedTuple):
    """People that the first network found, and what both looks at them reach."""

    first: F64  # (P,) the first network's score
    quality: F64  # (P,) in 0..1
    coarse: F64  # (P,) OKS with the most similar labelled person; 0: there is nobody
    fine: F64  # (P,)


def reached(pair: Pair, dataset: Dataset, least: float) -> Reached:
    """Of everybody found in the pictures with a score of `least` or more; EdgeposeError for too few."""
    rows = [row for i in track(range(len(dataset)), "gauge") for row in _in(pair, dataset[i], least)]
    if len(rows) < FEWEST:
        raise EdgeposeError(
            f"{dataset.source}: the first network finds {len(rows)} people in it, {FEWEST} are the fewest to "
            "gauge by; give more pictures"
        )
    return Reached(*np.array(rows, np.float64).T)


def _in(pair: Pair, sample: Sample, least: float) -> Iterator[tuple[float, ...]]:
    """Fields of `Reached` of each person found in a picture."""
    spec, sigmas = pair.second.spec, pair.second.spec.joints().sigma_array()
    found = pair.first(sample.image).above(least)
    boxes, whose = boxes_around(found, (sample.image.shape[1], sample.image.shape[0]))
    people = [person for person in sample.people if person.visibility.any() and not person.crowd]
    for start in range(0, len(boxes), MOST):
        part = slice(start, start + MOST)
        regions = Regions.around(boxes[part], (spec.width, spec.height))
        crops = prepare(sample.image, regions, spec)
        glance = pair.second.glance(crops)
        again = pair.second.look_again(crops, glance, np.arange(len(crops)))
        looks = [poses(maps, regions, glance.quality).keypoints for maps in (glance.heatmaps, again)]
        oks = [oks_matrix(keypoints, people, sigmas).max(1, initial=0) for keypoints in looks]
        yield from zip(found.scores[whose[part]], glance.quality.clip(0, 1), *oks, strict=True)


def fitted(first: F64, quality: F64, oks: F64) -> Exponents:
    """The exponents a, b for which first ^ a * quality ^ b is nearest to the OKS (P,), in squares."""
    a, b = np.linspace(np.zeros(2), WIDEST, STEPS).T
    expected = first ** a[:, None, None] * quality ** b[:, None]  # (STEPS, STEPS, P)
    place = np.unravel_index(((expected - oks) ** 2).sum(-1).argmin(), (STEPS, STEPS))
    start = np.clip([a[place[0]], b[place[1]]], 1e-3, np.array(WIDEST) - 1e-3)  # it wants room on all sides
    found = least_squares(
        lambda x: first ** x[0] * quality ** x[1] - oks, start, bounds=(0, WIDEST), xtol=1e-10, ftol=1e-12
    )
    return float(found.x[0]), float(found.x[1])


def gauged(seen: Reached) -> Gauge:
    """For both looks."""
    return Gauge(*(fitted(seen.first, seen.quality, oks) for oks in (seen.coarse, seen.fine)))


def with_gauge(second: Bundle, gauge: Gauge, facts: Mapping[str, object]) -> Bundle:
    """Publish the bundle with this gauge inside, and what it was measured on."""
    values = {"version": VERSION, "coarse": gauge.coarse, "fine": gauge.fine, **facts}
    return second.with_files({FILE: (json.dumps(values, indent=1) + "\n").encode()})
