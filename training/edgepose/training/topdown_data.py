"""Training crops: one labelled person each, changed at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgepose.calibration.sample import Person
from edgepose.runtime.poses import F32
from edgepose.runtime.preprocess import U8
from edgepose.runtime.skeleton import COCO17, Skeleton
from edgepose.runtime.topdown.crop import F64, Regions, visible
from edgepose.training.sections import Fraction, NonNegative, Section

Bools = npt.NDArray[np.bool_]
Size = tuple[int, int]  # width, height in pixels
UPPER_BODY = 11  # COCO's joints before the hips
HALF_BODY_PADDING = 1.5


class Changes(Section):
    """How crops vary in training; the values are the paper's (specs/sharpose.md section 6)."""

    shift: NonNegative = 0.16  # of the region's sides, at most
    shift_share: Fraction = 0.3  # of the people who are shifted
    half_body_share: Fraction = 0.3  # of the people with more than `half_body_joints` labelled joints
    half_body_joints: Annotated[int, Field(ge=0)] = 8
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.5  # standard deviation and limit of the factor about 1
    rotation: NonNegative = 40.0  # degrees, standard deviation; the limit is twice that
    rotation_share: Fraction = 0.6
    flip_share: Fraction = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One person's crop with their K joints, in the crop's pixels."""

    image: U8  # (H, W, 3) in the frame's colours
    joints: F32  # (K, 2) x, y
    labelled: Bools  # (K,)
    sides: F32  # (2,) width and height of the region in frame pixels


def croppable(people: Sequence[Person], size: Size) -> list[tuple[F64, Person]]:
    """Who can be learnt from in a frame of `size`, with their boxes (4,) x, y, w, h cut off at its edges.

    Left out are crowds, people without a labelled joint, and boxes with nothing in the frame.
    """
    labelled = [person for person in people if person.visibility.any() and not person.crowd]
    boxes, kept = visible(np.array([person.box for person in labelled], np.float64), size)
    return [(box, labelled[index]) for box, index in zip(boxes, kept, strict=True)]


def half_body(rng: np.random.Generator, person: Person, size: Size) -> Regions | None:
    """The region (of one) of the labelled joints above the hips, or of those below if drawn and over two.

    Its centre is the joints' mean. None when fewer than two joints are left.
    """
    labelled = np.flatnonzero(person.visibility > 0)
    upper, lower = labelled[labelled < UPPER_BODY], labelled[labelled >= UPPER_BODY]
    chosen = upper if rng.normal() < 0.5 or len(lower) <= 2 else lower
    if len(chosen) < 2:
        return None
    joints = person.keypoints[chosen].astype(np.float64)
    sides = np.maximum(joints.max(0) - joints.min(0), 1)
    box = np.concatenate([joints.mean(0) - sides / 2, sides])
    return Regions.around(box, size, HALF_BODY_PADDING)


def vary(
    rng: np.random.Generator, box: F64, person: Person, size: Size, changes: Changes
) -> tuple[Regions, bool]:
    """The region (of one) to crop for a person's box (4,) x, y, w, h, and whether to mirror the crop.

    Differs: the authors mirror the frame first; the crops are the same, up to the sign of the rotation.
    """
    region = Regions.around(box, size)
    centres = region.centres
    if rng.random() < changes.shift_share:
        centres = centres + rng.uniform(-1, 1, 2) * changes.shift * region.sides
    mirrored = bool(rng.random() < changes.flip_share)
    sides = region.sides
    many = int((person.visibility > 0).sum()) > changes.half_body_joints
    half = half_body(rng, person, size) if many and rng.random() < changes.half_body_share else None
    if half is not None:
        centres, sides = half.centres, half.sides
    factor = np.clip(1 + changes.scale * rng.normal(), 1 - changes.scale, 1 + changes.scale)
    angle = np.clip(changes.rotation * rng.normal(), -2 * changes.rotation, 2 * changes.rotation)
    degrees = angle * (rng.random() < changes.rotation_share)
    return Regions(centres, sides * factor, np.array([degrees])), mirrored


def example(frame: U8, person: Person, region: Regions, size: Size) -> Example:
    """A person of `frame` (H, W, 3) as seen in the `region` (of one), in a crop of `size`."""
    return Example(
        region.cut(frame, size)[0],
        region.to_crop(person.keypoints[None], size)[0].astype(np.float32),
        person.visibility > 0,
        region.sides[0].astype(np.float32),
    )


def mirror(seen: Example, skeleton: Skeleton = COCO17) -> Example:
    """Left and right changed, in the picture and in the joints' names."""
    order = list(skeleton.mirror)
    last = np.float32(seen.image.shape[1] - 1)
    joints = seen.joints[order] * np.array([-1, 1], np.float32) + np.array([last, 0], np.float32)
    image = np.ascontiguousarray(seen.image[:, ::-1])
    return Example(image, joints, seen.labelled[order], seen.sides)
