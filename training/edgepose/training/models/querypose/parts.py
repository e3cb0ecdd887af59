"""Which joints belong to which body part, for each skeleton."""

from __future__ import annotations

# Section 8.6 for COCO; section 11 for CrowdPose, whose authors published no split.
PARTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "coco17": (
        (0, 1, 2, 3, 4),  # face
        (5, 6),  # shoulders
        *((7, 9), (8, 10)),  # left and right elbow with wrist
        (11, 12),  # hips
        *((13, 15), (14, 16)),  # left and right knee with ankle
    ),
    "crowdpose14": (
        (12, 13),  # head and neck
        (0, 1),
        *((2, 4), (3, 5)),
        (6, 7),
        *((8, 10), (9, 11)),
    ),
}


def places(parts: tuple[tuple[int, ...], ...]) -> list[int]:
    """For each joint of the skeleton, where it stands when the parts are written one after the other."""
    written = [joint for part in parts for joint in part]
    return sorted(range(len(written)), key=written.__getitem__)
