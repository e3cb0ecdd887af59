"""Whether the poses that came out of an RTSP session are those of the people who were filmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgepose.calibration.oks import oks_matrix
from edgepose.calibration.sample import Person
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import Poses
from edgepose.runtime.skeleton import Skeleton

GOOD_OKS = 0.5
TALL = 0.25  # of the picture's height
MIN_SEEN = 0.6  # of the joints; the body itself hides some in any side view


@dataclass(frozen=True, slots=True)
class StreamScore:
    """People who had to be found in the streamed frames, and how many were."""

    frames: int
    people: int  # unoccluded, whole in the picture, taller than a quarter of it
    found: int  # with OKS >= 0.5

    @property
    def share(self) -> float:
        """Found people as a share of all who had to be found; raises EdgeposeError when there were none."""
        if not self.people:
            raise EdgeposeError(f"nobody was to be found in {self.frames} streamed frames; stream for longer")
        return self.found / self.people


def must_be_found(person: Person, others: Sequence[Person], height: int) -> bool:
    """Tall, whole in the picture, most joints seen, and not behind another person's box."""
    tall = person.box[3] > TALL * height
    whole = bool((person.visibility > 0).all())
    seen = float((person.visibility == 2).mean()) >= MIN_SEEN
    return (
        tall and whole and seen and not person.crowd and not any(_overlap(person, other) for other in others)
    )


def _overlap(person: Person, other: Person) -> bool:
    """Whether another, whose feet are lower and who so stands in front, covers a tenth of the box."""
    if other is person or other.box[1] + other.box[3] < person.box[1] + person.box[3]:
        return False
    x, y, width, height = person.box
    across = min(x + width, other.box[0] + other.box[2]) - max(x, other.box[0])
    down = min(y + height, other.box[1] + other.box[3]) - max(y, other.box[1])
    return max(across, 0.0) * max(down, 0.0) > 0.1 * width * height


def score_stream(
    frames: Sequence[tuple[int, Poses]],
    truth: Callable[[int], Sequence[Person]],
    height: int,
    skeleton: Skeleton,
) -> StreamScore:
    """Compare (source frame index, poses) of streamed frames with the people of those frames."""
    people = found = 0
    for index, poses in frames:
        everyone = truth(index)
        wanted = [i for i, person in enumerate(everyone) if must_be_found(person, everyone, height)]
        similar = oks_matrix(poses.keypoints, everyone, skeleton.sigma_array())  # (P, G)
        best = similar.max(axis=0, initial=0.0) if len(everyone) else np.zeros(0)
        people += len(wanted)
        found += int((best[wanted] >= GOOD_OKS).sum())
    return StreamScore(len(frames), people, found)
