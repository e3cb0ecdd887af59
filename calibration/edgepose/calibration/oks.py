"""Object keypoint similarity of poses and labelled people."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgepose.calibration.sample import Person
from edgepose.runtime.oks import F64, similarity
from edgepose.runtime.poses import F32


def joint_terms(keypoints: F32, person: Person, sigmas: F64) -> F64:
    """The similarity of each joint of D poses (D, K, 2) to one labelled person: (D, K), 0..1."""
    return similarity(keypoints.astype(np.float64) - person.keypoints, person.area, sigmas)


def _outside(keypoints: F32, person: Person) -> F64:
    """How far joints (D, K, 2) lie outside the box enlarged by its own size on each side, in pixels."""
    x, y, width, height = person.box
    low, high = np.array([x - width, y - height]), np.array([x + 2 * width, y + 2 * height])
    points = keypoints.astype(np.float64)
    return np.asarray(np.maximum(low - points, 0) + np.maximum(points - high, 0))


def oks(keypoints: F32, person: Person, sigmas: F64) -> F64:
    """(D,) similarity of poses (D, K, 2) to a person, over the labelled joints.

    A person without labelled joints (a crowd, or too small) is compared by box, as COCO's evaluator does.
    """
    labelled = person.visibility > 0
    if labelled.any():
        terms = joint_terms(keypoints, person, sigmas)[:, labelled]
    else:
        terms = similarity(_outside(keypoints, person), person.area, sigmas)
    return np.asarray(terms.sum(axis=1) / terms.shape[1])


def oks_matrix(keypoints: F32, people: Sequence[Person], sigmas: F64) -> F64:
    """(D, G) similarity of D poses to G people."""
    columns = [oks(keypoints, person, sigmas) for person in people]
    return np.stack(columns, axis=1) if columns else np.zeros((len(keypoints), 0))
