"""A pinhole camera: world metres to picture pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from edgepose.calibration.synthetic.body import F64, rotation

_NEAREST_M = 0.15  # what is nearer or behind is held at this depth


@dataclass(frozen=True, slots=True)
class Camera:
    """Pinhole without distortion; pixels with integer = pixel centre. Camera axes: right, down, forward."""

    position: F64  # (3,) world metres
    turn: F64  # (3, 3) rows are the camera axes in the world frame
    focal_px: float
    size: tuple[int, int]  # width, height

    def to_camera(self, points: F64) -> F64:
        """World (..., 3) to camera frame (..., 3), metres."""
        return (points - self.position) @ self.turn.T

    def project_camera(self, points: F64) -> F64:
        """Camera frame (..., 3) to pixels (..., 2)."""
        depth = np.maximum(points[..., 2:], _NEAREST_M)
        centre = np.array([(self.size[0] - 1) / 2, (self.size[1] - 1) / 2])
        pixels: F64 = points[..., :2] * (self.focal_px / depth) + centre
        return pixels

    def project(self, points: F64) -> F64:
        """World (..., 3) to pixels (..., 2)."""
        return self.project_camera(self.to_camera(points))

    def floor_homography(self) -> F64:
        """(3, 3) taking floor metres (x, z, 1) to homogeneous pixels."""
        w, h = self.size
        intrinsic = np.array([[self.focal_px, 0, (w - 1) / 2], [0, self.focal_px, (h - 1) / 2], [0, 0, 1]])
        columns = np.stack([self.turn[:, 0], self.turn[:, 2], -self.turn @ self.position], axis=1)
        homography: F64 = intrinsic @ columns
        return homography

    def horizon(self) -> tuple[float, float]:
        """Row of the horizon at the left and the right border, pixels."""
        w, h = self.size
        up = self.turn[:, 1]  # world up in camera axes; the horizon is where ray . up = 0
        rows = [
            (-(up[0] * (x - (w - 1) / 2) + up[2] * self.focal_px) / up[1]) + (h - 1) / 2 for x in (0, w - 1)
        ]
        return float(rows[0]), float(rows[1])


def make_camera(size: tuple[int, int], focal: float, height_m: float, angles: tuple[float, float]) -> Camera:
    """A camera above the world's origin; `focal` in picture heights, `angles`: pitch (down) and roll, rad."""
    pitch, roll = angles
    level = np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])
    turn = rotation(2, roll) @ rotation(0, pitch) @ level
    return Camera(np.array([0, height_m, 0]), turn, focal * size[1], size)


def pitch_for(camera_drop_m: float, distance_m: float, row: float) -> float:
    """Pitch (rad) that puts a point `camera_drop_m` below the camera at `row` (tangent below the axis)."""
    return math.atan2(camera_drop_m, distance_m) - math.atan(row)
