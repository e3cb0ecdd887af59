"""Boxes, tables, chairs and poles that stand among the people and hide them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from edgepose.calibration.synthetic.body import F64, rotation
from edgepose.calibration.synthetic.camera import Camera
from edgepose.calibration.synthetic.draw import THING, Canvas, Light, paint_faces
from edgepose.calibration.synthetic.look import F32, noise_tile, random_colour

_CORNERS: F64 = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (0, 1) for z in (-0.5, 0.5)])  # (8, 3)
# Corner indices around each face, and its outward normal.
_FACES = (
    ((0, 1, 3, 2), (-1, 0, 0)),
    ((4, 5, 7, 6), (1, 0, 0)),
    ((0, 1, 5, 4), (0, -1, 0)),
    ((2, 3, 7, 6), (0, 1, 0)),
    ((0, 2, 6, 4), (0, 0, -1)),
    ((1, 3, 7, 5), (0, 0, 1)),
)


@dataclass(frozen=True, slots=True)
class Box:
    """A cuboid; its base floats `base_m` above the floor."""

    place: tuple[float, float]  # x, z of the middle, metres
    base_m: float
    size: tuple[float, float, float]  # width, height, depth, metres
    yaw: float
    cloth: F32  # (32, 32, 3) BGR

    def corners(self) -> F64:
        """(8, 3) world metres."""
        return (_CORNERS * self.size) @ rotation(1, self.yaw).T + (self.place[0], self.base_m, self.place[1])

    def middle(self) -> F64:
        """(3,) world metres."""
        return np.array([self.place[0], self.base_m + self.size[1] / 2, self.place[1]])


def board(rng: np.random.Generator) -> F32:
    """(32, 32, 3) wood, plastic, cardboard: one colour, grain, sometimes a second panel."""
    y, x = rng.integers(0, 192, 2)
    grain = noise_tile()[y : y + 32, x : x + 64].reshape(32, 32, 2).mean(axis=2)
    tile = random_colour(rng) * (0.85 + 0.3 * grain[..., None])
    if rng.random() < 0.35:
        low, high = sorted(rng.integers(2, 31, 2))
        tile[low : high + 1, 3:-3] = random_colour(rng)
    return np.asarray(np.minimum(tile, 255), np.float32)


def paint_box(canvas: Canvas, box: Box, camera: Camera, light: Light) -> None:
    """Paints the faces that look at the camera; the mask gets THING."""
    corners = box.corners()
    seen = camera.to_camera(corners)
    if seen[:, 2].min() < 0.2:
        return
    pixels = camera.project_camera(seen)
    turn = rotation(1, box.yaw)
    outlines, textures = [], []
    for indices, normal in _FACES:
        outward = turn @ np.array(normal, np.float64)
        if outward @ (camera.position - corners[indices[0]]) <= 0:
            continue
        bright = float(light.shade(np.array((camera.turn @ outward) @ light.direction)))
        tile = np.minimum(box.cloth * (0.25 + 0.75 * bright), 255).astype(np.uint8)
        outlines.append(pixels[list(indices)])
        textures.append((tile, _face_to_tile(outlines[-1])))
    paint_faces(canvas, np.array(outlines).reshape(-1, 4, 2), textures, THING)


def _face_to_tile(outline: F64) -> F64 | None:
    """(2, 3) that lays the (32, 32) texture into a face (4, 2); None when the face is too small for one."""
    source = outline[[0, 1, 3]].astype(np.float32)
    (ux, uy), (vx, vy) = source[1] - source[0], source[2] - source[0]
    if abs(float(ux * vy - uy * vx)) < 60:
        return None
    target = np.array([[0, 31], [31, 31], [0, 0]], np.float32)
    return np.asarray(cv2.getAffineTransform(source, target), np.float64)


def chair(rng: np.random.Generator, place: tuple[float, float], seat_m: float, yaw: float) -> list[Box]:
    """A stool, a bench or a chair with a back for somebody who sits at `place` looking along `yaw`."""
    cloth = board(rng)
    forward = rotation(1, yaw)[:, 2]
    seat = (place[0] + 0.1 * forward[0], place[1] + 0.1 * forward[2])
    width = rng.uniform(0.4, 1.3)
    thick = rng.uniform(0.04, seat_m * 0.9)
    boxes = [Box(seat, seat_m - thick, (width, thick, 0.42), yaw, cloth)]
    if thick < 0.25:
        for x in (-0.45, 0.45):
            leg = (seat[0] + x * width * forward[2], seat[1] - x * width * forward[0])
            boxes.append(Box(leg, 0.0, (0.05, seat_m - thick, 0.3), yaw, cloth))
    if rng.random() < 0.5:
        rear = (place[0] - 0.2 * forward[0], place[1] - 0.2 * forward[2])
        boxes.append(Box(rear, seat_m, (min(width, 0.55), rng.uniform(0.25, 0.5), 0.05), yaw, cloth))
    return boxes


def thing(rng: np.random.Generator, place: tuple[float, float]) -> list[Box]:
    """A piece of furniture, a pole, a crate or a wall end."""
    cloth, yaw, kind = board(rng), rng.uniform(-0.8, 0.8), rng.random()
    if kind < 0.25:
        thick = rng.uniform(0.06, 0.25)
        return [Box(place, 0.0, (thick, rng.uniform(1.5, 4), thick), yaw, cloth)]
    if kind < 0.5:
        width, depth, height = rng.uniform(0.6, 1.8), rng.uniform(0.5, 0.9), rng.uniform(0.4, 1.0)
        top = Box(place, height, (width, 0.05, depth), yaw, cloth)
        across = rotation(1, yaw)[:, 0]
        legs = [
            (place[0] + s * 0.45 * width * across[0], place[1] + s * 0.45 * width * across[2])
            for s in (-1, 1)
        ]
        return [*(Box(leg, 0.0, (0.06, height, depth * 0.9), yaw, cloth) for leg in legs), top]
    if kind < 0.85:
        size = (rng.uniform(0.3, 1.2), rng.uniform(0.25, 1.2), rng.uniform(0.3, 0.7))
        return [Box(place, 0.0, size, yaw, cloth)]
    return [Box(place, 0.0, (rng.uniform(0.5, 1.2), rng.uniform(1.5, 2.4), 0.3), yaw, cloth)]
