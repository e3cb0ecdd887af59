"""Letterbox geometry and normalisation against closed forms and a picture's own content."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepose.runtime.preprocess import Letterbox, letterbox, normalise, pad_colour, prepare
from edgepose.runtime.spec import Spec

SPEC = Spec("qrpose", "qrpose_tiny", 256, 256)
SIDES = st.integers(1, 4000)


@given(SIDES, SIDES, st.floats(-100, 5000), st.floats(-100, 5000))
def test_points_come_back(width: int, height: int, x: float, y: float) -> None:
    box = Letterbox.fit((width, height), (256, 256))
    point = np.array([[x, y]], np.float32)
    step = 1 / min(box.scale_x, box.scale_y)  # one network pixel in source pixels
    np.testing.assert_allclose(box.to_source(box.to_input(point)), point, atol=1e-3 * max(1.0, step))


@given(SIDES, SIDES)
def test_the_picture_fits_and_touches_one_side(width: int, height: int) -> None:
    box = Letterbox.fit((width, height), (256, 192))
    assert 1 <= box.width <= 256
    assert 1 <= box.height <= 192
    assert box.width == 256 or box.height == 192


@pytest.mark.parametrize("size", [(512, 512), (640, 480), (300, 700)])
def test_a_bright_spot_lands_where_the_geometry_says(size: tuple[int, int]) -> None:
    width, height = size
    frame = np.zeros((height, width, 3), np.uint8)
    x, y = width * 2 // 3, height // 3
    frame[y - 4 : y + 5, x - 4 : x + 5] = 255
    image, box = letterbox(frame, 256, 256, (0, 0, 0))
    weights = image[..., 0].astype(float)
    found = [(weights.sum(axis=a) * np.arange(256)).sum() / weights.sum() for a in (0, 1)]
    np.testing.assert_allclose(found, box.to_input(np.array([x, y], np.float32)), atol=0.05)


def test_padding_is_nearly_zero_after_normalisation() -> None:
    images, box = prepare(np.zeros((100, 200, 3), np.uint8), SPEC)
    assert images.shape == (1, 3, 256, 256)
    assert (box.width, box.height) == (256, 128)
    assert np.abs(images[:, :, 128:]).max() < 0.01


def test_normalisation_is_rgb_minus_mean_over_std() -> None:
    blue, green, red = 10, 100, 200
    image = np.full((2, 2, 3), (blue, green, red), np.uint8)
    expected = [(v / 255 - m) / s for v, m, s in zip((red, green, blue), SPEC.mean, SPEC.std, strict=True)]
    np.testing.assert_allclose(normalise(image, SPEC)[0, :, 0, 0], expected, atol=1e-5)
    assert pad_colour(SPEC) == (104, 116, 124)


def test_a_one_pixel_picture_is_prepared() -> None:
    images, _ = prepare(np.full((1, 1, 3), 255, np.uint8), SPEC)
    assert np.isfinite(images).all()
