"""Y'CbCr to BGR against the formulas of ITU-R BT.601, BT.709 and BT.2020, in double precision."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgepose.runtime.colours import LUMA, Colours, ToBgr, from_bgr
from edgepose.runtime.preprocess import U8

F64 = npt.NDArray[np.float64]
KINDS = [Colours(matrix, full) for matrix in ("bt601", "bt709", "bt2020") for full in (False, True)]
# KR and KB of the recommendations' own tables.
TABLES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


def encoded(bgr: F64, colours: Colours) -> tuple[U8, U8]:
    """(H/2, W/2, 3) in 0..1, each for four pixels -> luma (H, W), blue and red (H/2, W/2, 2)."""
    kr, kb = TABLES[colours.matrix]
    low, luma, chroma = (0, 255, 255) if colours.full_range else (16, 219, 224)
    blue, green, red = np.moveaxis(bgr, -1, 0)
    y = kr * red + (1 - kr - kb) * green + kb * blue
    pb, pr = (blue - y) / 2 / (1 - kb), (red - y) / 2 / (1 - kr)
    pair = np.clip(np.rint(128 + chroma * np.stack([pb, pr], -1)), 0, 255).astype(np.uint8)
    return np.rint(low + luma * y).astype(np.uint8).repeat(2, 0).repeat(2, 1), pair


@settings(max_examples=30, deadline=None)
@given(bgr=arrays(np.float64, (4, 6, 3), elements=st.floats(0, 1)), colours=st.sampled_from(KINDS))
def test_what_was_encoded_comes_back(bgr: F64, colours: Colours) -> None:
    luma, pair = encoded(bgr, colours)
    convert = ToBgr((12, 8), colours)
    seen = convert(luma, pair)
    wanted = 255 * bgr.repeat(2, 0).repeat(2, 1)
    # Rounded to 8 bits here, there once more, where the spans or the matrix differ: blue, which is worth
    # least, is off by 1.8 for half a level of its chroma.
    assert np.abs(seen - wanted).max() <= 4.5
    assert np.array_equal(convert(luma, pair[..., 0].copy(), pair[..., 1].copy()), seen)  # I420


@settings(max_examples=30, deadline=None)
@given(image=arrays(np.uint8, (6, 4, 3)), colours=st.sampled_from(KINDS))
def test_a_picture_is_encoded_as_the_recommendations_say(image: U8, colours: Colours) -> None:
    y, blue, red = from_bgr(image, colours)
    luma, _ = encoded(image / 255, colours)
    _, pair = encoded(image.reshape(3, 2, 2, 2, 3).mean((1, 3)) / 255, colours)  # each of four pixels
    # Single and double precision may round half a level differently.
    assert np.abs(y.astype(int) - luma[::2, ::2]).max() <= 1
    assert np.abs(np.stack([blue, red], -1).astype(int) - pair).max() <= 1


@pytest.mark.parametrize("colours", KINDS, ids=str)
def test_nothing_is_darker_in_the_mean(colours: Colours) -> None:
    bgr = np.random.default_rng(1).uniform(0, 1, (100, 100, 3))
    off = ToBgr((200, 200), colours)(*encoded(bgr, colours)) - 255 * bgr.repeat(2, 0).repeat(2, 1)
    assert np.abs(off.mean((0, 1))).max() < 0.3
    assert np.abs(off).mean() < 0.8


@pytest.mark.parametrize("colours", KINDS, ids=str)
def test_black_grey_and_white_stay(colours: Colours) -> None:
    for grey in (0, 0.25, 0.5, 1):
        seen = ToBgr((2, 2), colours)(*encoded(np.full((1, 1, 3), grey), colours))
        assert np.abs(seen - 255 * grey).max() <= 1.5


def test_a_picture_is_no_other_ones_memory() -> None:
    convert = ToBgr((4, 4), Colours("bt709"))
    dark, light = (encoded(np.full((2, 2, 3), grey), Colours("bt709")) for grey in (0.1, 0.9))
    first = convert(*dark)
    before, given = first.copy(), dark[0].copy()
    convert(*light)
    assert np.array_equal(first, before)
    assert np.array_equal(dark[0], given)


def test_the_kernels_table_is_the_recommendations() -> None:
    assert LUMA == TABLES
