"""Paints bodies and boxes onto a picture and, with the same outlines, onto a mask of who is seen where."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.calibration.synthetic.body import F64, PART, PARTS, SLABS, Figure
from edgepose.calibration.synthetic.camera import Camera
from edgepose.calibration.synthetic.look import F32, LIMB_TILE, U8, WRAP, Look

NOBODY, THING = 0, 255  # values of the mask; a part of person i is 1 + i * len(PARTS) + part
_SHIFT = 4  # fractional bits of OpenCV's polygon corners
_DETAIL_PX = 1.5  # half width from which a part shows its texture
_ACROSS = 32  # columns of a wrap that face the camera
_CORNERS = 24  # of every outline
_ARC = np.linspace(-1, 1, _CORNERS // 2, dtype=np.float64)
_SLAB_INDEX = range(len(SLABS))  # they are the first of PARTS
_NO_WRAP = np.zeros((WRAP, _ACROSS, 3), np.uint8)
# Metres towards the camera: which part covers which where they touch, clothes over skin, hands over clothes.
_BIAS = np.zeros(len(PARTS))
for _name, _metres in {"neck": -0.05, "hair": -0.012, "belly": 0.03, "chest": 0.02, "skirt": 0.13}.items():
    _BIAS[PART[_name]] = _metres
for _side in ("left", "right"):
    _BIAS[PART[f"{_side}_upper_arm"]], _BIAS[PART[f"{_side}_forearm"]] = 0.02, 0.03
    _BIAS[PART[f"{_side}_hand"]] = 0.035


@dataclass(frozen=True, slots=True)
class Light:
    """One distant lamp and what the surroundings add."""

    direction: F64  # (3,) unit, camera axes, towards the lamp
    ambient: float
    diffuse: float

    def shade(self, facing: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """Brightness of a surface whose normal makes cos `facing` with the lamp."""
        brightness: npt.NDArray[np.floating] = self.ambient + self.diffuse * np.maximum(facing, 0)
        return brightness


@dataclass(frozen=True, slots=True)
class Canvas:
    """What is painted: the picture (H, W, 3) BGR and the mask (H, W) of who is seen where."""

    image: U8
    seen: U8


def covers(canvas: Canvas, person: int) -> U8:
    """(H, W) 255 where the person is seen."""
    first = 1 + person * len(PARTS)
    return np.asarray(cv2.inRange(canvas.seen, first, first + len(PARTS) - 1), np.uint8)


@dataclass(frozen=True, slots=True)
class _Parts:
    """All parts in the camera frame and in pixels."""

    near: F64  # (P,) depth key, metres
    start: F64  # (P, 2) pixels
    along: F64  # (P, 2) unit, pixels
    across: F64  # (P, 2) unit, pixels
    length: F64  # (P,) pixels, at least 1
    radius: F64  # (P, 2) pixels
    towards: F64  # (P, 3) unit, camera axes: out of the part's axis towards the camera


def _view(figure: Figure, camera: Camera) -> _Parts:
    ends = camera.to_camera(np.stack([figure.start, figure.end]))  # (2, P, 3)
    pixels = camera.project_camera(ends)
    axis = ends[1] - ends[0]
    axis /= np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-9)
    span = pixels[1] - pixels[0]
    length = np.linalg.norm(span, axis=1)
    along = np.where(length[:, None] > 1e-6, span / np.maximum(length, 1e-6)[:, None], (0.0, 1.0))
    towards = axis * axis[:, 2:] - (0, 0, 1)  # the view direction without its component along the axis
    size = np.linalg.norm(towards, axis=1, keepdims=True)
    towards = np.where(size > 1e-3, towards / np.maximum(size, 1e-3), (0.0, 0.0, -1.0))
    return _Parts(
        near=ends[..., 2].mean(axis=0) - _BIAS,
        start=pixels[0],
        along=along,
        across=np.stack([-along[:, 1], along[:, 0]], axis=1),
        length=np.maximum(length, 1.0),
        radius=figure.radius * camera.focal_px / np.maximum(ends[..., 2].T, 0.15),
        towards=towards,
    )


def _capsule_outlines(parts: _Parts) -> F64:
    """(P, 24, 2) pixels: two arcs joined by the common tangents of the end circles."""
    r0, r1 = parts.radius[:, :1], parts.radius[:, 1:]
    tangent = np.arccos(np.clip((r0 - r1) / parts.length[:, None], -1, 1))  # angle of the tangent point
    heading = np.arctan2(parts.along[:, 1:], parts.along[:, :1])
    far = heading + _ARC * tangent  # (P, 12) around the end
    near = heading + math.pi + _ARC * (math.pi - tangent)
    end = parts.start + parts.along * parts.length[:, None]
    cap1 = end[:, None] + r1[..., None] * np.stack([np.cos(far), np.sin(far)], axis=-1)
    cap0 = parts.start[:, None] + r0[..., None] * np.stack([np.cos(near), np.sin(near)], axis=-1)
    return np.concatenate([cap1, cap0], axis=1)


def _outlines(figure: Figure, camera: Camera, parts: _Parts) -> F64:
    """(P, 24, 2) convex outlines, pixels."""
    outlines = _capsule_outlines(parts)
    rings = camera.project(figure.rings).astype(np.float32).reshape(len(SLABS), -1, 2)
    for slab, index in enumerate(_SLAB_INDEX):
        if figure.present[index]:
            hull = cv2.convexHull(rings[slab])[:, 0]
            outlines[index] = hull[np.arange(_CORNERS) * len(hull) // _CORNERS]
    return outlines


@functools.cache
def _round(columns: int) -> tuple[F64, F64]:
    """u from one side of a part to the other, and how far its surface bulges there: sqrt(1 - u^2)."""
    u = np.linspace(-0.97, 0.97, columns, dtype=np.float64)
    return u, np.sqrt(1 - u * u)


def _profiles(parts: _Parts, light: Light, columns: int) -> tuple[F32, F64, F64]:
    """Brightness (P, columns, 3) across each part, and the across coordinate u and sqrt(1 - u^2).

    The same for all three channels: numpy takes several times as long to repeat it in a product.
    """
    u, bulge = _round(columns)
    sideways = parts.across @ light.direction[:2]
    facing = sideways[:, None] * u + (parts.towards @ light.direction)[:, None] * bulge
    brightness = (light.shade(facing) * (0.8 + 0.2 * bulge)).astype(np.float32)
    return np.repeat(brightness[..., None], 3, axis=2), u, bulge


def _lit_limbs(parts: _Parts, look: Look, light: Light) -> U8:
    """(P, 24, 12, 3) textures with their shading."""
    lit = look.limbs * _profiles(parts, light, LIMB_TILE[1])[0][:, None]
    return np.asarray(np.minimum(lit, 255), np.uint8)


def _lit_wraps(figure: Figure, camera: Camera, parts: _Parts, look: Look, light: Light) -> list[U8]:
    """The half of each wrap that faces the camera, (64, 32, 3), shaded."""
    profile, u, bulge = _profiles(parts, light, _ACROSS)
    chosen = []
    for slab, index in enumerate(_SLAB_INDEX):
        if not figure.present[index]:
            chosen.append(_NO_WRAP)
            continue
        turn = camera.turn @ (figure.chest_turn if slab in (1, 2) else figure.hip_turn)
        across = np.array([*parts.across[index], 0.0]) @ turn  # in the body's axes: left, up, forward
        towards = parts.towards[index] @ turn
        normal = np.outer(u, across) + np.outer(bulge, towards)
        around = np.arctan2(normal[:, 0], normal[:, 2])
        column = (WRAP / 2 + around * (WRAP / (2 * math.pi))).astype(np.intp) % WRAP
        lit = look.wraps[slab].take(column, axis=1) * profile[index]
        chosen.append(np.minimum(lit, 255).astype(np.uint8))
    return chosen


@dataclass(frozen=True, slots=True)
class _Fills:
    """n convex outlines ready for OpenCV."""

    outer: npt.NDArray[np.int32]  # (n, k, 2) with _SHIFT fractional bits
    # (n, k, 2) half a pixel smaller: OpenCV also fills pixels the border only touches
    inner: npt.NDArray[np.int32]
    # x0, y0, x1, y1 of their pixels inside the picture; empty when x0 >= x1 or y0 >= y1
    windows: list[list[int]]
    corners: npt.NDArray[np.intp]  # (n, 2) their x0, y0


def _fills(outlines: F64, canvas: Canvas) -> _Fills:
    height, width = canvas.seen.shape
    outlines = np.clip(outlines, -8000, 8000)  # far outside; OpenCV counts in 32 bits
    inwards = outlines.mean(axis=1, keepdims=True) - outlines
    distance = np.maximum(np.sqrt((inwards * inwards).sum(axis=2, keepdims=True)), 1e-6)
    inner = outlines + inwards * np.minimum(0.5 / distance, 0.9)
    low = np.maximum(outlines.min(axis=1).astype(np.intp) - 1, 0)
    high = np.minimum(outlines.max(axis=1).astype(np.intp) + 2, (width, height))
    outer, inner = (np.rint(corners * (1 << _SHIFT)).astype(np.int32) for corners in (outlines, inner))
    return _Fills(outer, inner, np.concatenate([low, high], axis=1).tolist(), low)


def _from_corner(to_tile: F64, corner: npt.NDArray[np.intp]) -> F64:
    """Placements (..., 2, 3) from pixels, as from pixels counted from a window's `corner` (..., 2)."""
    here = to_tile.copy()
    here[..., 2] += (to_tile[..., :2] * corner[..., None, :]).sum(axis=-1)
    return here


def _fill(canvas: Canvas, fills: _Fills, index: int, texture: tuple[U8, F64 | None], value: int) -> None:
    """Fills one outline with a tile, or with its mean colour.

    A (2, 3) places the tile: from pixels, counted from the window's corner, to its own. The mask gets
    `value` where pixel centres lie inside.
    """
    x0, y0, x1, y1 = fills.windows[index]
    if x0 >= x1 or y0 >= y1:
        return
    tile, to_tile = texture
    cv2.fillConvexPoly(canvas.seen, fills.inner[index], (value,), cv2.LINE_8, _SHIFT)
    if to_tile is None:
        cv2.fillConvexPoly(canvas.image, fills.outer[index], cv2.mean(tile)[:3], cv2.LINE_AA, _SHIFT)
        return
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    picture = cv2.warpAffine(tile, to_tile, (x1 - x0, y1 - y0), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.inRange(canvas.seen[y0:y1, x0:x1], value, value)
    cv2.copyTo(picture, inside, canvas.image[y0:y1, x0:x1])


def paint_faces(canvas: Canvas, outlines: F64, textures: list[tuple[U8, F64 | None]], value: int) -> None:
    """Paints convex outlines (n, k, 2) one after the other, with tiles placed by (2, 3) from pixels."""
    fills = _fills(outlines, canvas)
    for index, (tile, to_tile) in enumerate(textures):
        if to_tile is not None:
            cv2.fillConvexPoly(canvas.image, fills.outer[index], cv2.mean(tile)[:3], cv2.LINE_AA, _SHIFT)
            to_tile = _from_corner(to_tile, fills.corners[index])
        _fill(canvas, fills, index, (tile, to_tile), value)


def _to_tiles(parts: _Parts, outlines: F64, tiles: list[U8]) -> tuple[F64, F64]:
    """(P, 2, 3) from pixels to each part's texture (columns across, rows along), and half widths (P,) px."""
    offset = np.einsum("pkc,pc->pk", outlines - parts.start[:, None], parts.across)
    half = np.maximum(np.abs(offset).max(axis=1), 0.5)
    shape = np.array([tile.shape[:2] for tile in tiles], np.float64)
    across = parts.across * (shape[:, 1] / (2 * half))[:, None]
    along = parts.along * (shape[:, 0] / parts.length)[:, None]
    column = shape[:, 1] / 2 - 0.5 - (across * parts.start).sum(axis=1)
    row = -0.5 - (along * parts.start).sum(axis=1)
    return np.stack([np.column_stack([across, column]), np.column_stack([along, row])], axis=1), half


def paint_head(canvas: Canvas, figure: Figure, camera: Camera, look: tuple[Look, Light], value: int) -> None:
    """Renders the head's ellipsoid pixel by pixel, so that the face turns with it."""
    centre = camera.to_camera(figure.head_centre)
    metres = float(centre[2]) / camera.focal_px  # per pixel
    at = camera.project_camera(centre)
    reach = float(figure.head_size.max()) / metres * 1.1 + 1
    x0, y0 = (max(int(v), 0) for v in at - reach)
    x1, y1 = (min(int(v) + 1, limit) for v, limit in zip(at + reach, camera.size, strict=True))
    if x0 >= x1 or y0 >= y1 or centre[2] < 0.2:
        return
    x = ((np.arange(x0, x1) - at[0]) * metres).astype(np.float32)[None, :, None]
    y = ((np.arange(y0, y1) - at[1]) * metres).astype(np.float32)[:, None, None]
    turn = camera.turn @ figure.head_turn
    to_unit = (turn / figure.head_size).T.astype(np.float32)  # camera axes to the unit sphere of the head
    ray = to_unit @ (centre / np.linalg.norm(centre)).astype(np.float32)
    offset = x * to_unit[:, 0] + y * to_unit[:, 1]  # (h, w, 3)
    a, b = float(ray @ ray), offset @ ray
    inside = b * b - a * ((offset * offset).sum(axis=2) - 1)
    depth = (-b - np.sqrt(np.maximum(inside, 0))) / a
    point = offset + depth[..., None] * ray
    colour = _head_colour(point, look, turn, figure.head_size)
    edge = inside / a * (float(figure.head_size[0]) / metres) / 2 + 0.5
    alpha = np.clip(edge, 0, 1)[..., None]
    part = canvas.image[y0:y1, x0:x1]
    part[:] = part + alpha * (colour - part)
    canvas.seen[y0:y1, x0:x1][edge > 0.5] = value


def _head_colour(point: F32, look: tuple[Look, Light], turn: F64, size: F64) -> F32:
    """(h, w, 3) lit colour of points (h, w, 3) of the head's unit sphere."""
    head, light = look[0].head, look[1]
    column = np.arctan2(point[..., 0], point[..., 2]) * (head.shape[1] / (2 * math.pi)) + (
        head.shape[1] / 2 - 0.5
    )
    row = head.shape[0] / 2 - 0.5 - np.arcsin(np.clip(point[..., 1], -1, 1)) * (head.shape[0] / math.pi)
    texture = cv2.remap(head, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    normal = point / size.astype(np.float32)
    lamp = (light.direction @ turn).astype(np.float32)
    facing = (normal @ lamp) / np.maximum(np.sqrt((normal * normal).sum(axis=2)), 1e-6)
    lit = texture * light.shade(facing)[..., None]
    return np.asarray(np.minimum(lit, 255), np.float32)


def paint_person(
    canvas: Canvas, figure: Figure, camera: Camera, look: tuple[Look, Light], person: int
) -> None:
    """Paints all parts from far to near."""
    parts = _view(figure, camera)
    outlines = _outlines(figure, camera, parts)
    limbs = _lit_limbs(parts, *look)
    wraps = _lit_wraps(figure, camera, parts, *look)
    first = 1 + person * len(PARTS)
    order = [int(index) for index in np.argsort(-parts.near, kind="stable") if figure.present[index]]
    tiles = [*wraps, *limbs[len(SLABS) :]]
    to_tile, half = _to_tiles(parts, outlines, tiles)
    fills = _fills(outlines, canvas)
    to_tile = _from_corner(to_tile, fills.corners)
    # The silhouette's smooth border; inside, a smooth border would draw rings at the joints.
    for index in order:
        if index != PART["head"] and half[index] > _DETAIL_PX:
            cv2.fillConvexPoly(
                canvas.image, fills.outer[index], cv2.mean(tiles[index])[:3], cv2.LINE_AA, _SHIFT
            )
    for index in order:
        if index == PART["head"]:
            paint_head(canvas, figure, camera, look, first + index)
        else:
            texture = (tiles[index], to_tile[index] if half[index] > _DETAIL_PX else None)
            _fill(canvas, fills, index, texture, first + index)
