"""Turns what was painted into labels: exact joints, what is hidden, box and area of what is seen.

A joint outside of the picture gets visibility 0 and coordinates 0 as in COCO. Inside, it is visible (2) when
the mask shows one of its own parts there and it does not lie on the far side of its trunk or head, else
hidden (1). A person is labelled when at least one joint lies in the picture, at least `SEEN_PX` pixels are
seen, and these show a visible joint or are `SEEN_SHARE` of the silhouette inside the picture. So somebody of
whom hardly anything is seen is not labelled, but nobody is dropped merely for being mostly hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.calibration.sample import Person
from edgepose.calibration.synthetic.body import F64, PART, PARTS, Figure
from edgepose.calibration.synthetic.camera import Camera
from edgepose.calibration.synthetic.draw import Canvas, covers
from edgepose.runtime.skeleton import COCO17

SEEN_PX = 10
SEEN_SHARE = 0.15
_SHARED = {
    "shoulder": ("chest", "belly", "bag"),
    "hip": ("pelvis", "belly", "skirt"),
    "knee": ("skirt",),
    "nose": ("head", "nose"),
    "eye": ("head", "nose"),
    "ear": ("head", "hair"),
}
_SIDED = {
    "shoulder": ("upper_arm",),
    "elbow": ("upper_arm", "forearm"),
    "wrist": ("forearm", "hand"),
    "hip": ("thigh",),
    "knee": ("thigh", "shin"),
    "ankle": ("shin", "foot"),
    "ear": ("ear",),
}
# Outward normals in the head's axes, and the cosine to the viewer from which the feature can be seen.
_FACING = {
    "nose": (0, 0, 1, -0.1),
    "left_eye": (0.37, 0.1, 0.92, 0.12),
    "right_eye": (-0.37, 0.1, 0.92, 0.12),
}
_FACING |= {"left_ear": (1, 0, 0, -0.3), "right_ear": (-1, 0, 0, -0.3)}


def _own_parts() -> npt.NDArray[np.bool_]:
    """(17, P) which parts may cover a joint without hiding it."""
    table = np.zeros((len(COCO17), len(PARTS)), np.bool_)
    for row, joint in enumerate(COCO17.joints):
        side, _, kind = joint.rpartition("_")
        names = _SHARED.get(kind, ()) + tuple(f"{side}_{part}" for part in _SIDED.get(kind, ()))
        table[row, [PART[name] for name in names]] = True
    return table


_OWN = _own_parts()


@dataclass(frozen=True, slots=True)
class Painted:
    """One person on the canvas."""

    figure: Figure
    number: int  # in the mask
    full_px: int  # silhouette inside the picture before anything nearer was painted


def _turned_away(figure: Figure, camera: Camera) -> npt.NDArray[np.bool_]:
    """(17,) joints on the far side of head or trunk."""
    away = np.zeros(len(COCO17), np.bool_)
    viewer = camera.position - figure.joints
    viewer /= np.linalg.norm(viewer, axis=1, keepdims=True)
    for joint, (*normal, least) in enumerate(_FACING.values()):
        away[joint] = viewer[joint] @ (figure.head_turn @ np.array(normal)) < least
    for joint, sign, turn in ((5, 1, figure.chest_turn), (6, -1, figure.chest_turn)):
        away[joint] = viewer[joint] @ (sign * turn[:, 0]) < -0.8  # the trunk is between
    for joint, sign, turn in ((11, 1, figure.hip_turn), (12, -1, figure.hip_turn)):
        away[joint] = viewer[joint] @ (sign * turn[:, 0]) < -0.7
    return away


def _visibility(canvas: Canvas, painted: Painted, camera: Camera, pixels: F64) -> npt.NDArray[np.uint8]:
    height, width = canvas.seen.shape
    nearest = np.rint(pixels).astype(np.intp)
    inside = ((nearest >= 0) & (nearest < (width, height))).all(axis=1)
    clipped = np.clip(nearest, 0, (width - 1, height - 1))
    part = canvas.seen[clipped[:, 1], clipped[:, 0]].astype(np.intp) - 1 - painted.number * len(PARTS)
    mine = (part >= 0) & (part < len(PARTS))
    own = _OWN[np.arange(len(part)), np.where(mine, part, 0)]
    visible = mine & own & ~_turned_away(painted.figure, camera)
    return np.where(inside, np.where(visible, 2, 1), 0).astype(np.uint8)


def label(canvas: Canvas, painted: Painted, camera: Camera) -> Person | None:
    """The person's labels, or None when they cannot be seen."""
    mask = covers(canvas, painted.number)
    area = cv2.countNonZero(mask)
    pixels = camera.project(painted.figure.joints)
    visibility = _visibility(canvas, painted, camera, pixels)
    enough = (visibility == 2).any() or area >= SEEN_SHARE * painted.full_px
    if area < SEEN_PX or not enough or not visibility.any():
        return None
    keypoints = np.where(visibility[:, None] > 0, pixels, 0).astype(np.float32)
    x, y, w, h = cv2.boundingRect(mask)
    return Person(keypoints, visibility, (float(x), float(y), float(w), float(h)), float(area))
