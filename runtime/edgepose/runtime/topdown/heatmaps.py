"""From heatmaps to points: the largest pixel, and where between the pixels the hill has its top."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.runtime.poses import F32

F64 = npt.NDArray[np.float64]
BLUR = 11  # pixels; the authors' for every size of heatmap
LOW, HIGH = 0.001, 50.0  # what the blurred map is clipped to before its logarithm
EPSILON = float(np.finfo(np.float32).eps)


def flip_back(heatmaps: F32, mirror: Sequence[int]) -> F32:
    """Heatmaps (B, K, h, w) of mirrored crops -> of the crops; `mirror` is `Skeleton.mirror`."""
    return heatmaps[:, list(mirror), :, ::-1]


def flip_average(plain: F32, flipped: F32, mirror: Sequence[int]) -> F32:
    """The mean of the heatmaps (B, K, h, w) of crops and of the mirrored crops, in the crops' pixels."""
    return np.asarray((plain + flip_back(flipped, mirror)) / 2, np.float32)


def peaks(heatmaps: F32) -> tuple[npt.NDArray[np.int64], F32]:
    """(B, K, h, w) -> x, y (B, K, 2) of the largest pixel and its value (B, K).

    A map without any pixel above 0 or with one that is no number has its peak at (-1, -1).
    """
    width = heatmaps.shape[3]
    flat = heatmaps.reshape(*heatmaps.shape[:2], heatmaps.shape[2] * width)
    index = flat.argmax(-1)
    best = np.take_along_axis(flat, index[..., None], -1)[..., 0]
    places = np.stack([index % width, index // width], -1)
    return np.where(best[..., None] > 0, places, -1), best


def decode(heatmaps: F32) -> tuple[F64, F32]:
    """(B, K, h, w) -> points (B, K, 2) in heatmap pixels and each map's largest value (B, K).

    One Newton step from the largest pixel on the logarithm of the blurred map, which for a Gaussian hill
    ends on its top ("Distribution-Aware Coordinate Representation", CVPR 2020, with the derivatives of
    "The Devil is in the Details"). As in the paper the step has no bound: on a map that is no hill the point
    may lie far off. A map without any pixel above 0 or with one that is no number has (-1, -1).
    """
    places, best = peaks(heatmaps)
    found = best > 0
    step = newton(_around(heatmaps[found], places[found]))
    points = places.astype(np.float64)
    points[found] -= step
    return points, best


def _around(maps: F32, places: npt.NDArray[np.int64]) -> F64:
    """Maps (N, h, w) -> (N, 3, 3) logarithms of the blurred maps about `places` (N, 2), [row, column].

    Beyond its edge a map goes on as at its edge.
    """
    beside = np.arange(-1, 2)
    rows = (places[:, 1, None] + beside).clip(0, maps.shape[1] - 1)
    columns = (places[:, 0, None] + beside).clip(0, maps.shape[2] - 1)
    near = np.empty((len(maps), 3, 3))
    for values, one, row, column in zip(near, maps, rows, columns, strict=True):
        blurred = cv2.GaussianBlur(np.ascontiguousarray(one, np.float32), (BLUR, BLUR), 0)
        values[:] = blurred[np.ix_(row, column)]
    return np.asarray(np.log(near.clip(LOW, HIGH)), np.float64)


def newton(near: F64) -> F64:
    """Values (N, 3, 3) about N pixels -> (N, 2) H⁻¹ g, the step x, y to take off; 0 without an inverse."""
    centre, left, right = near[:, 1, 1], near[:, 1, 0], near[:, 1, 2]
    above, below = near[:, 0, 1], near[:, 2, 1]
    gx, gy = (right - left) / 2, (below - above) / 2
    hxx = right - 2 * centre + left + EPSILON
    hyy = below - 2 * centre + above + EPSILON
    hxy = (near[:, 2, 2] - right - below + 2 * centre - left - above + near[:, 0, 0]) / 2
    determinant = hxx * hyy - hxy**2
    steps = np.stack([hyy * gx - hxy * gy, hxx * gy - hxy * gx], -1)
    whole = np.broadcast_to(determinant[:, None] != 0, steps.shape)
    return np.divide(steps, determinant[:, None], out=np.zeros_like(steps), where=whole)
