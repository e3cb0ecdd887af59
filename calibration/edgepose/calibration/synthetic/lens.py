"""What a real camera does to a picture: blur, shake, exposure, white balance, contrast and sensor noise."""

from __future__ import annotations

import functools

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.calibration.synthetic.look import U8

_MARGIN = 64


@functools.lru_cache(maxsize=4)
def _grain(width: int, height: int) -> npt.NDArray[np.int16]:
    """(H + 64, W + 64, 3) normal noise of standard deviation 16."""
    rng = np.random.default_rng(7)
    shape = (height + _MARGIN, width + _MARGIN, 3)
    fine = rng.standard_normal(shape, dtype=np.float32)
    return np.asarray(np.rint(16 * fine), np.int16)


def add_grain(image: U8, sigma: float, offset: tuple[int, int]) -> U8:
    """The picture with noise of standard deviation `sigma`; `offset` (0..63 each) picks the noise."""
    h, w = image.shape[:2]
    piece = _grain(w, h)[offset[1] : offset[1] + h, offset[0] : offset[0] + w]
    noisy = cv2.addWeighted(image, 1.0, piece, sigma / 16, 0.0, dtype=cv2.CV_8U) if sigma else image
    return np.asarray(noisy, np.uint8)


def tone_curve(rng: np.random.Generator) -> U8:
    """(1, 256, 3) exposure, gamma, contrast and white balance."""
    level = np.linspace(0, 1, 256)
    gain, gamma, contrast = rng.uniform(0.75, 1.25), np.exp(rng.normal(0, 0.2)), rng.uniform(0.75, 1.2)
    tone = ((gain * level) ** gamma - 0.5) * contrast + 0.5 + rng.uniform(-0.06, 0.06)
    tint = 1 + rng.normal(0, 0.05, 3)
    return np.asarray(np.clip(255 * tone[:, None] * tint, 0, 255), np.uint8)[None]


def photograph(rng: np.random.Generator, image: U8) -> U8:
    """The picture as a camera of random quality delivers it."""
    scale = image.shape[0] / 256
    if rng.random() < 0.55:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), scale * rng.uniform(0.35, 1.1)), np.uint8)
    if rng.random() < 0.08:
        length = max(int(scale * rng.uniform(3, 7)), 2)
        kernel = np.zeros((length, length), np.float32)
        ends = (
            ((0, 0), (length - 1, length - 1))
            if rng.random() < 0.5
            else ((0, length // 2), (length - 1, length // 2))
        )
        cv2.line(kernel, ends[0], ends[1], (1.0,))
        image = np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.uint8)
    image = np.asarray(cv2.LUT(image, tone_curve(rng)), np.uint8)
    sigma = float(rng.gamma(1.5, 2.5))
    x, y = rng.integers(0, _MARGIN, 2)
    image = add_grain(image, min(sigma, 16.0), (int(x), int(y)))
    if rng.random() < 0.04:
        image = np.asarray(
            cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR), np.uint8
        )
    return image
