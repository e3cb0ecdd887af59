"""What lies behind the people: rooms, streets, textures and clutter."""

from __future__ import annotations

import cv2
import numpy as np

from edgepose.calibration.synthetic.body import F64
from edgepose.calibration.synthetic.camera import Camera
from edgepose.calibration.synthetic.look import F32, U8, mixed, noise_tile, picture, ramp, random_colour

ROOM, STREET = 0.45, 0.75
_TILE = 128


def _muted(rng: np.random.Generator) -> F32:
    """(3,) BGR of walls, floors and skies: mostly pale and grey."""
    vivid = random_colour(rng)
    grey = float(vivid.mean())
    return np.asarray(grey + (vivid - grey) * rng.uniform(0.1, 0.8) + rng.uniform(0, 90), np.float32).clip(
        0, 255
    )


def texture(rng: np.random.Generator) -> U8:
    """(128, 128, 3) of plaster, planks, bricks, tiles, stripes or cloudy noise."""
    rows, columns = ramp(_TILE)
    kind, period = rng.random(), float(rng.choice((8, 16, 32)))
    if kind < 0.3:
        mix = np.zeros((1, 1), np.float32)
    elif kind < 0.45:  # bricks
        shifted = columns + np.floor(rows / period) * period
        mix = (((rows % period) < 1.5) | ((shifted % (2 * period)) < 1.5)).astype(np.float32)
    elif kind < 0.6:
        mix = ((columns % period) < period * rng.uniform(0.1, 0.5)).astype(np.float32)
    elif kind < 0.75:
        mix = ((np.floor(rows / period) + np.floor(columns / period)) % 2).astype(np.float32)
    else:
        y, x = rng.integers(0, 128, 2)
        mix = np.clip(noise_tile()[y : y + _TILE, x : x + _TILE] * 4 - 1.5, 0, 1)
    first = _muted(rng)
    second = np.clip(first + rng.normal(0, 45, 3), 0, 255).astype(np.float32)
    y, x = rng.integers(0, 128, 2)
    rough = 1 + np.float32(rng.uniform(0, 0.5)) * (noise_tile()[y : y + _TILE, x : x + _TILE] - 0.5)
    return picture(mixed(first, second, mix, rough))


def _gradient(rng: np.random.Generator, size: tuple[int, int]) -> U8:
    corners = np.stack([_muted(rng) for _ in range(4)]).reshape(2, 2, 3)
    return np.asarray(cv2.resize(corners, size, interpolation=cv2.INTER_LINEAR), np.uint8)


def _noise(rng: np.random.Generator, size: tuple[int, int]) -> U8:
    """Coloured noise at several scales, like foliage, rock or a crowd out of focus."""
    total = np.zeros((size[1], size[0], 3), np.float32)
    weight = rng.uniform(0.4, 0.9)
    cells, share = int(rng.integers(3, 9)), 1.0
    for _ in range(4):
        small = rng.random((cells, cells, 3), dtype=np.float32) - 0.5
        smooth = np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_LINEAR), np.float32)
        smooth *= share
        total += smooth
        cells, share = cells * 3, share * weight
    planes = [np.asarray(plane, np.float32) for plane in cv2.split(total)]
    grey = (planes[0] + planes[1] + planes[2]) / np.float32(3)
    vivid, colour, contrast = rng.uniform(0, 0.7), _muted(rng), rng.uniform(60, 190)
    for each, plane in zip(colour, planes, strict=True):  # in place: a new array is new pages each time
        plane -= grey
        plane *= vivid
        plane += grey
        plane *= contrast
        plane += each
    return picture(planes)


def _filled(tile: U8, size: tuple[int, int], zoom: float, phase: tuple[float, float]) -> U8:
    """The tile repeated over a picture of `size`, `zoom` pixels per tile pixel."""
    matrix = np.array([[1 / zoom, 0, phase[0]], [0, 1 / zoom, phase[1]]])
    # Repeated first: OpenCV takes several times as long to wrap around at each pixel.
    right, below = (
        max(int(side / zoom + start) + 2 - _TILE, 0) for side, start in zip(size, phase, strict=True)
    )
    tiles = cv2.copyMakeBorder(tile, 0, below, 0, right, cv2.BORDER_WRAP)
    return np.asarray(
        cv2.warpAffine(tiles, matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP), np.uint8
    )


def _lay_floor(rng: np.random.Generator, image: U8, camera: Camera, depth_m: float) -> None:
    """Covers what lies nearer than `depth_m` with a floor in perspective."""
    w, h = camera.size
    far = camera.project(np.array([[-60.0, 0, -depth_m], [60.0, 0, -depth_m]]))
    corners = np.array([far[0], far[1], (far[1][0], 9 * h), (far[0][0], 9 * h)])
    corners = np.clip(corners, -(2.0**14), 2.0**14)
    mask = np.zeros((h, w), np.uint8)
    cv2.fillConvexPoly(mask, np.rint(corners).astype(np.int32), (255,))
    per_metre = rng.uniform(40, 200)
    matrix: F64 = np.diag([per_metre, per_metre, 1.0]) @ np.linalg.inv(camera.floor_homography())
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    tile = texture(rng)
    _, top, _, rows = cv2.boundingRect(mask)
    if rows:  # above, nothing of it would be seen
        down = np.array([[1.0, 0, 0], [0, 1, top], [0, 0, 1]])
        floor = cv2.warpPerspective(tile, matrix @ down, (w, rows), flags=flags, borderMode=cv2.BORDER_WRAP)
        cv2.copyTo(floor, mask[top : top + rows], image[top : top + rows])
    if rng.random() < 0.5:  # a skirting board or a kerb
        ends = np.rint(far).clip(-(2**14), 2**14).astype(int)
        cv2.line(
            image,
            ends[0].tolist(),
            ends[1].tolist(),
            _muted(rng).tolist(),
            int(rng.integers(1, 4)),
            cv2.LINE_AA,
        )


def _houses(rng: np.random.Generator, image: U8, row: float) -> None:
    """House fronts with windows, and tree crowns, standing on `row`."""
    h, w = image.shape[:2]
    for _ in range(int(rng.integers(0, 6))):
        x, width, height = rng.uniform(-0.1, 1) * w, rng.uniform(0.1, 0.5) * w, rng.uniform(0.1, 0.8) * h
        x0, x1, y0 = int(x), int(x + width), int(row - height)
        colour = _muted(rng)
        cv2.rectangle(image, (x0, y0), (x1, int(row)), colour.tolist(), -1)
        step, glass = max(int(rng.uniform(0.04, 0.1) * w), 3), (colour * 0.55).tolist()
        for y in range(y0 + step // 2, int(row) - step, step):
            for left in range(x0 + step // 2, x1 - step // 2, step):
                cv2.rectangle(image, (left, y), (left + step // 2, y + step // 2), glass, -1)
    for _ in range(int(rng.integers(0, 4))):
        x, radius = int(rng.uniform(0, w)), int(rng.uniform(0.03, 0.12) * w)
        top = int(row - rng.uniform(0.15, 0.5) * h)
        cv2.line(image, (x, int(row)), (x, top), (50, 70, 90), max(radius // 4, 1), cv2.LINE_AA)
        green = np.array([40, 110, 60]) * rng.uniform(0.4, 1.3)
        for _ in range(5):
            where = (x + int(rng.normal(0, 0.6) * radius), top + int(rng.normal(0, 0.5) * radius))
            cv2.circle(image, where, radius, (green * rng.uniform(0.8, 1.2)).tolist(), -1, cv2.LINE_AA)


def _clutter(rng: np.random.Generator, image: U8, count: int) -> None:
    """Pictures, lamps, shelves, cables, balls: among them things that look a little like limbs and heads."""
    h, w = image.shape[:2]
    for _ in range(count):
        kind, colour = rng.random(), random_colour(rng).tolist()
        x, y = int(rng.uniform(0, w)), int(rng.uniform(0, h))
        a, b = int(w * rng.gamma(1.5, 0.05)) + 2, int(h * rng.gamma(1.5, 0.05)) + 2
        if kind < 0.4:
            cv2.rectangle(image, (x, y), (x + a, y + b), colour, -1)
            if kind < 0.15:
                cv2.rectangle(image, (x, y), (x + a, y + b), random_colour(rng).tolist(), max(a // 12, 1))
        elif kind < 0.6:
            cv2.ellipse(image, (x, y), (a, b), rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
        else:
            end = (x + int(rng.normal(0, 0.2) * w), y + int(rng.normal(0, 0.2) * h))
            cv2.line(image, (x, y), end, colour, int(rng.gamma(1.2, 0.012 * w)) + 1, cv2.LINE_AA)


def make_backdrop(rng: np.random.Generator, camera: Camera, depth_m: float, kind: float) -> U8:
    """(H, W, 3) scenery without people; a wall or the horizon lies `depth_m` away or farther.

    `kind` in 0..1: a room below ROOM, a street below STREET, else textures without a floor.
    """
    size = camera.size
    if kind < ROOM:
        zoom = size[1] / 256 * rng.uniform(0.4, 2.5)
        image = _filled(texture(rng), size, zoom, (rng.uniform(0, 64), rng.uniform(0, 64)))
        shadow = rng.uniform(0.55, 1.15, (2, 2)).astype(np.float32)
        light = np.asarray(cv2.resize(shadow, size, interpolation=cv2.INTER_LINEAR), np.float32)
        image = picture(np.asarray(channel, np.float32) * light for channel in cv2.split(image))
        _clutter(rng, image, int(rng.integers(0, 12)))
        _lay_floor(rng, image, camera, depth_m)
    elif kind < STREET:
        image = _gradient(rng, size) if rng.random() < 0.7 else _noise(rng, size)
        _houses(rng, image, float(np.clip(np.mean(camera.horizon()), -size[1], 2 * size[1])))
        _clutter(rng, image, int(rng.integers(0, 6)))
        _lay_floor(rng, image, camera, 60.0)
    else:
        image = _noise(rng, size) if rng.random() < 0.65 else _gradient(rng, size)
        _clutter(rng, image, int(rng.integers(0, 25)))
    if rng.random() < 0.3:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 3.0) * size[1] / 256), np.uint8)
    return np.ascontiguousarray(image)
