"""What a camera makes of a picture: JPEG as OpenCV's, NV12 by its formulas, H.264 worse by its level."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepose.calibration.synthetic import scene
from edgepose.runtime.errors import EdgeposeError, HardwareError, MissingLibrary
from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream import gst
from edgepose.runtime.stream.camera_path import CameraPath

F64 = npt.NDArray[np.float64]
PICTURE = scene(5, 3, (160, 120)).image
ROUNDING = 3  # levels of 255, twice to 8 bits


def error(one: U8, other: U8) -> float:
    """Mean difference, levels."""
    return float(np.abs(one.astype(float) - other).mean())


def luma(image: U8) -> F64:
    """(H, W) brightness (ITU-R BT.601), 0 to 255."""
    weighed: F64 = image.astype(float) @ (0.114, 0.587, 0.299)  # B, G, R
    return weighed


def opencv_jpeg(quality: int) -> U8:
    """PICTURE, coded and decoded by another program."""
    coded = cv2.imencode(".jpg", PICTURE, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)


@pytest.mark.parametrize("quality", [30, 60, 85])
def test_jpeg_loses_what_another_encoder_loses(quality: int) -> None:
    """In brightness, against the best quality: decoders differ in how they spread colours and round."""
    ours, finest = (luma(CameraPath.parse(f"mjpeg:{level}").through(PICTURE)) for level in (quality, 100))
    theirs, best = (luma(opencv_jpeg(level)) for level in (quality, 100))
    assert np.abs(ours - finest).mean() == pytest.approx(np.abs(theirs - best).mean(), rel=0.15)
    assert np.corrcoef((ours - finest).ravel(), (theirs - best).ravel())[0, 1] > 0.7


def test_nv12_keeps_brightness_for_each_pixel_and_colour_for_four() -> None:
    red, blue = (30, 40, 200), (200, 40, 30)
    stripes = np.empty((64, 64, 3), np.uint8)
    stripes[:, ::2], stripes[:, 1::2] = red, blue
    halves = np.empty_like(stripes)
    halves[:, :32], halves[:, 32:] = red, blue
    nv12 = CameraPath.parse("nv12")
    assert np.abs(nv12.through(halves)[:, 2:30].astype(int) - red).max() <= ROUNDING
    seen = nv12.through(stripes)[:, 2:-2].astype(int)
    assert np.abs(luma(seen) - luma(stripes)[:, 2:-2]).max() <= ROUNDING
    hue = seen[..., 2] - seen[..., 0]  # red less blue: 170 and -170 before, between them one value
    assert np.abs(hue).max() < 60


def test_h264_is_worse_by_its_quantizer_and_at_its_finest_nearly_nv12() -> None:
    nv12 = CameraPath.parse("nv12").through(PICTURE)
    levels = (1, 15, 28, 40, 50)
    errors = [error(CameraPath.parse(f"h264:{level}").through(PICTURE), nv12) for level in levels]
    assert errors == sorted(errors)
    assert errors[0] < 0.2
    assert errors[-1] > 4


@pytest.mark.parametrize("name", ["nv12", "mjpeg:85", "h264:20"])
def test_a_picture_is_filmed_by_itself(name: str) -> None:
    path, other = CameraPath.parse(name), scene(5, 4, (160, 120)).image
    first = path.through(PICTURE)
    path.through(other)
    assert np.array_equal(path.through(PICTURE), first)


@settings(max_examples=12, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
    name=st.sampled_from(["nv12", "mjpeg:95", "h264:12"]),
)
def test_a_picture_of_any_size_keeps_its_size_and_its_colour(width, height, colour, name) -> None:
    image = np.full((height, width, 3), colour, np.uint8)
    seen = CameraPath.parse(name).through(image)
    assert seen.shape == image.shape
    assert np.abs(seen.astype(int) - image).max() <= ROUNDING + 2


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' is no camera; give nv12, mjpeg:85 or h264:28"),
        ("h265:20", "'h265:20' is no camera"),
        ("nv12:3", "nv12 has no levels"),
        ("h264", "h264 needs a level from 1 to 50"),
        ("h264:0", "from 1 to 50"),
        ("h264:51", "from 1 to 50"),
        ("h264:٣", "from 1 to 50"),
        ("mjpeg:-5", "mjpeg needs a level from 1 to 100"),
        ("mjpeg:85 ! fakesink", "from 1 to 100"),
    ],
)
def test_what_is_no_camera_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(EdgeposeError, match=sentence):
        CameraPath.parse(text)


def test_a_codec_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gst, "has_element", lambda name: name != "x264enc")
    with pytest.raises(MissingLibrary, match="x264enc"):
        CameraPath.parse("h264:20")
    CameraPath.parse("mjpeg:20")


def test_a_path_that_breaks_says_so() -> None:
    broken = CameraPath("dropped", "video/x-raw,format=NV12 ! identity error-after=1")
    with pytest.raises(HardwareError, match="the camera path dropped is broken"):
        broken.through(PICTURE)
