"""Stick figures: easy people, some of them hard to see, whom a small network learns in minutes.

The experiment of specs/qrpose-evaluation.md section 2: each bone has a colour of its own, so that joints are
soon told apart, and figures are faint, hidden, blurred or grainy by different amounts, so that some poses are
found well and some badly, which is what a score has to tell.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from edgepose.calibration.sample import Person, Sample
from edgepose.calibration.synthetic.body import F64
from edgepose.calibration.synthetic.look import U8
from edgepose.runtime.skeleton import COCO17

MOST_STICKS = 3
HEIGHTS = (0.35, 0.8)  # of a figure that stands upright, in the picture's shorter side
AREA = 0.53  # of the box, as in COCO
_BORDER = 4  # pixels between a figure and the picture's edge
_APART = 0.18  # of the shorter side, at least so far lie the centres of two figures
_CELLS = 8  # of the backdrop, a side
# The upper body about the hips' middle in heights: x towards the figure's left, y upwards.
_TRUNK = {
    "nose": (0.0, 0.42),
    "eye": (0.02, 0.45),
    "ear": (0.05, 0.43),
    "shoulder": (0.1, 0.3),
    "hip": (0.06, 0.0),
}
# A bone's end, its beginning, its length in heights, and the range of its angle: of upper arm and thigh from
# straight down, outwards; of forearm and shin from the bone before it.
_BONES = (
    ("elbow", "shoulder", 0.15, (-1.0, 2.2)),
    ("wrist", "elbow", 0.14, (-0.2, 1.8)),
    ("knee", "hip", 0.22, (-0.3, 0.9)),
    ("ankle", "knee", 0.22, (-0.9, 0.0)),
)
_INK = (np.arange(len(COCO17.edges))[:, None] * (37, 91, 151) + (0, 60, 120)) % 255  # BGR of each bone


def _pose(rng: np.random.Generator, height: float) -> F64:
    """(K, 2) pixels about the middle of the hips, y down."""
    joints: dict[str, F64] = {}
    width, turn = rng.uniform(0.35, 1.0), rng.uniform(-0.04, 0.04)  # of the trunk; of the face, sideways
    for side, sign in (("left", 1.0), ("right", -1.0)):
        for part, (x, y) in _TRUNK.items():
            name = part if part == "nose" else f"{side}_{part}"
            joints[name] = np.array([sign * x * width + (turn if y > 0.4 else 0.0), -y])
        angles = {"shoulder": 0.0, "hip": 0.0}
        for end, start, length, bend in _BONES:
            angles[end] = angles[start] + rng.uniform(*bend)
            along = np.array([sign * math.sin(angles[end]), math.cos(angles[end])])
            joints[f"{side}_{end}"] = joints[f"{side}_{start}"] + length * along
    lean = rng.normal(0, 0.25)
    turned = np.array([[math.cos(lean), -math.sin(lean)], [math.sin(lean), math.cos(lean)]])
    return np.asarray(np.array([joints[name] for name in COCO17.joints]) @ turned.T * height)


def _place(rng: np.random.Generator, size: tuple[int, int], others: list[F64]) -> F64 | None:
    """(K, 2) joints of a figure all in the picture, in a place of its own; None if none is found."""
    shorter = min(size)
    for _ in range(20):
        joints = _pose(rng, rng.uniform(*HEIGHTS) * shorter)
        room = np.array(size) - 1 - 2 * _BORDER - np.ptp(joints, axis=0)
        if (room < 0).any():
            continue
        joints += rng.uniform(0, room) + _BORDER - joints.min(0)
        if all(np.linalg.norm(joints.mean(0) - other.mean(0)) > _APART * shorter for other in others):
            return joints
    return None


def _backdrop(rng: np.random.Generator, size: tuple[int, int]) -> U8:
    """Soft colours crossed by a few lines."""
    soft = rng.integers(85, 150, (_CELLS, _CELLS, 3)).astype(np.uint8)
    image = np.asarray(cv2.resize(soft, size, interpolation=cv2.INTER_CUBIC), np.uint8)
    for _ in range(rng.integers(3, 8)):
        first, last = rng.integers(0, size, (2, 2)).tolist()
        cv2.line(image, first, last, rng.integers(0, 255, 3).tolist(), int(rng.integers(1, 5)))
    return image


def draw_figure(rng: np.random.Generator, image: U8, joints: F64) -> None:
    """(K, 2) joints bone by bone, in colours more or less like the ground's in the figure's middle."""
    x, y = joints.mean(0).round().astype(int)
    contrast = rng.uniform(0.3, 1.0)
    colours = image[y, x] * (1 - contrast) + _INK * contrast
    thickness = max(1, round(float(np.ptp(joints, axis=0).max()) * 0.047))
    ends = joints.round().astype(int).tolist()
    for (a, b), colour in zip(COCO17.edges, colours.tolist(), strict=True):
        cv2.line(image, ends[a], ends[b], colour, thickness, cv2.LINE_AA)


def _hide(rng: np.random.Generator, image: U8, joints: F64) -> F64 | None:
    """In six of ten cases a rectangle before a joint below the head: its corners (2, 2)."""
    if rng.random() < 0.4:
        return None
    shorter = min(image.shape[:2])
    corner = joints[rng.integers(5, len(joints))] - rng.uniform(0.06, 0.2, 2) * shorter
    corners = np.array([corner, corner + rng.uniform(0.12, 0.4, 2) * shorter]).round()
    first, last = corners.astype(int).tolist()
    cv2.rectangle(image, first, last, rng.integers(0, 255, 3).tolist(), cv2.FILLED)
    return corners


def _labelled(joints: F64, hidden: list[F64]) -> Person:
    low, sides = joints.min(0), np.ptp(joints, axis=0)
    covered = [((joints >= first) & (joints <= last)).all(1) for first, last in hidden]
    visibility = np.where(np.any(covered, axis=0), 1, 2) if covered else np.full(len(joints), 2)
    box = (float(low[0]), float(low[1]), float(sides[0]), float(sides[1]))
    return Person(joints.astype(np.float32), visibility.astype(np.uint8), box, AREA * float(sides.prod()))


def sticks(seed: int, index: int, size: tuple[int, int] = (256, 256)) -> Sample:
    """The picture number `index` (its image_id) of the endless set `seed`; `size` is width, height.

    One to three figures; a figure that finds no place is left out. The same arguments give the same bytes.
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, index, *size)))
    image = _backdrop(rng, size)
    figures: list[F64] = []
    for _ in range(rng.integers(1, MOST_STICKS + 1)):
        joints = _place(rng, size, figures)
        figures += [] if joints is None else [joints]
    for joints in figures:
        draw_figure(rng, image, joints)
    hidden = [corners for joints in figures if (corners := _hide(rng, image, joints)) is not None]
    if rng.random() < 0.35:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 2.2)), np.uint8)
    grainy = image + rng.normal(0, rng.uniform(2, 18), image.shape)
    people = tuple(_labelled(joints, hidden) for joints in figures)
    return Sample(index, np.clip(grainy, 0, 255).astype(np.uint8), people)
