"""Pictures out of real pipelines: of every layout, size and kind of colours, as GStreamer draws them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgepose.runtime.colours import Colours
from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream import gst
from edgepose.runtime.stream.pixels import CAPS, I420, Pixels, buffer_of, colours_of

SIZES = [(64, 48), (33, 47), (34, 35), (6, 2), (1280, 720)]


def sample_of(source: str, tail: str = "") -> Any:
    """The first sample of a test source, which knows all of GStreamer's layouts."""
    pipeline = gst.launch(f"videotestsrc num-buffers=1 {source} ! {tail} appsink name=frames sync=false")
    pipeline.set_state(gst.namespace("Gst").State.PLAYING)
    try:
        return pipeline.get_by_name("frames").try_pull_sample(5_000_000_000)
    finally:
        pipeline.set_state(gst.namespace("Gst").State.NULL)


def drawn(source: str, tail: str = "") -> U8:
    return Pixels()(sample_of(source, tail))


@pytest.mark.parametrize("layout", ["I420", "NV12", "BGR"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("colorimetry", ["bt601", "bt709", ""])
def test_a_colour_is_that_colour(layout: str, size: tuple[int, int], colorimetry: str) -> None:
    """Of limited range: videotestsrc draws no other, whatever it says."""
    said = f",colorimetry={colorimetry}" if colorimetry and layout != "BGR" else ""
    image = drawn(
        "pattern=solid-color foreground-color=0xffc83c14 ! "
        f"video/x-raw,format={layout},width={size[0]},height={size[1]}{said}"
    )
    assert image.shape == (size[1], size[0], 3)
    assert image.flags.c_contiguous
    assert np.abs(image.astype(int) - (0x14, 0x3C, 0xC8)).max() <= 3


@pytest.mark.parametrize("layout", ["I420", "NV12"])
@pytest.mark.parametrize("size", [(64, 48), (75, 53)], ids=str)
def test_every_pixel_is_where_it_belongs(layout: str, size: tuple[int, int]) -> None:
    where = f"width={size[0]},height={size[1]}"
    image, packed = (
        drawn(f"pattern=checkers-8 ! video/x-raw,format={each},{where}") for each in (layout, "BGR")
    )
    assert len(np.unique(packed[::8, ::8].reshape(-1, 3), axis=0)) == 2
    assert np.abs(image.astype(int) - packed).max() <= 4


@pytest.mark.parametrize("width", [32, 33, 34, 35])
def test_bgr_survives_the_way_through_a_pipeline(width: int) -> None:
    """Rows are padded to 4 bytes by GStreamer: for every remainder of the width."""
    Gst = gst.namespace("Gst")
    image = np.random.default_rng(width).integers(0, 256, (20, width, 3), np.uint8)
    padded = np.pad(image.reshape(20, 3 * width), ((0, 0), (0, -3 * width % 4)))
    pipeline = gst.launch(
        f"appsrc name=a caps=video/x-raw,format=BGR,width={width},height=20,framerate=1/1 format=time ! "
        f"videoconvert ! video/x-raw,format=RGBx ! videoconvert ! {CAPS} ! appsink name=b sync=false"
    )
    pipeline.set_state(Gst.State.PLAYING)
    pipeline.get_by_name("a").push_buffer(Gst.Buffer.new_wrapped(padded.tobytes()))
    sample = pipeline.get_by_name("b").try_pull_sample(5 * Gst.SECOND)
    assert (gst.size_of(sample), gst.rate_of(sample)) == ((width, 20), 1)
    np.testing.assert_array_equal(Pixels()(sample), image)
    pipeline.set_state(Gst.State.NULL)


@pytest.mark.parametrize("size", [(32, 20), (34, 22), (322, 242)], ids=str)
def test_a_picture_survives_the_way_into_a_pipeline_and_out(size: tuple[int, int]) -> None:
    """Rows are padded to 4 bytes by GStreamer: for each remainder of a width and its half."""
    width, height = size
    rng = np.random.default_rng(width)
    image = rng.integers(0, 256, (height // 2, width // 2, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    pipeline = gst.launch(
        f"appsrc name=a caps={I420},width={width},height={height},framerate=1/1 format=time ! "
        "videoconvert ! video/x-raw,format=NV12 ! appsink name=b sync=false"  # its planes read by GStreamer
    )
    pipeline.set_state(gst.namespace("Gst").State.PLAYING)
    try:
        pipeline.get_by_name("a").push_buffer(buffer_of(image))
        sample = pipeline.get_by_name("b").try_pull_sample(5_000_000_000)
        assert (gst.size_of(sample), gst.rate_of(sample)) == (size, 1)
        off = np.abs(Pixels()(sample).astype(int) - image)
        assert off.max() <= 5  # blue by two levels of its chroma
        assert off.mean() < 1
    finally:
        pipeline.set_state(gst.namespace("Gst").State.NULL)


def test_other_layouts_are_converted_on_the_way_and_these_are_not() -> None:
    picture = "pattern=solid-color foreground-color=0xffc83c14 ! video/x-raw,width=64,height=48,format="
    for layout in ("YUY2", "Y42B", "RGBx", "GRAY8", "I420_10LE"):
        image = drawn(picture + layout, f"videoconvert ! {CAPS} !")
        wanted = image.mean() if layout == "GRAY8" else (0x14, 0x3C, 0xC8)
        assert np.abs(image.astype(int) - wanted).max() <= 6, layout
    for layout in ("I420", "NV12", "BGR"):
        caps = sample_of(picture + layout, f"videoconvert ! {CAPS} !").get_caps().to_string()
        assert f"format=(string){layout}" in caps


@pytest.mark.parametrize("layout", ["I420", "NV12", "BGR"])
def test_rows_lie_where_their_buffer_says(layout: str) -> None:
    """Some elements leave room after each row and plane, and say so by a GstVideoMeta."""
    Gst, GstVideo = gst.namespace("Gst"), gst.namespace("GstVideo")
    plain = sample_of(f"pattern=checkers-8 ! video/x-raw,format={layout},width=34,height=22")
    sides = {"I420": [(34, 22), (17, 11), (17, 11)], "NV12": [(34, 22), (34, 11)], "BGR": [(102, 22)]}[layout]
    usual = {"I420": [36, 20, 20], "NV12": [36, 36], "BGR": [104]}[layout]
    given, spread, offsets, at = gst.bytes_of(plain.get_buffer()), b"\xaa" * 7, [], 0
    for (columns, rows), pitch in zip(sides, usual, strict=True):
        offsets.append(len(spread))
        for row in range(rows):
            spread += given[at + row * pitch :][:columns].ljust(128, b"\xaa")
        at += pitch * rows
    buffer = Gst.Buffer.new_wrapped(spread)
    format_ = getattr(GstVideo.VideoFormat, layout)
    more = [0] * (4 - len(sides))
    GstVideo.buffer_add_video_meta_full(
        buffer, GstVideo.VideoFrameFlags.NONE, format_, 34, 22, len(sides), offsets + more,
        [128] * len(sides) + more,
    )  # fmt: skip
    padded = Gst.Sample.new(buffer, plain.get_caps(), None, None)
    pixels = Pixels()
    for sample in (plain, padded, plain):
        assert np.array_equal(pixels(sample), Pixels()(plain))


@pytest.mark.parametrize(
    ("said", "height", "colours"),
    [
        ("bt601", 1080, Colours("bt601")),
        ("bt709", 240, Colours("bt709")),
        ("bt2020", 2160, Colours("bt2020")),
        ("smpte240m", 480, Colours("bt709")),
        ("1:4:0:0", 480, Colours("bt601", full_range=True)),
        ("2:3:5:1", 480, Colours("bt709")),
        ("1:3:5:1", 480, Colours("bt709", full_range=True)),
        ("2:0:0:0", 480, Colours("bt601")),
        (None, 576, Colours("bt601")),
        (None, 720, Colours("bt709")),
    ],
)
def test_gstreamers_names_of_colours(said: str | None, height: int, colours: Colours) -> None:
    """docs: GstVideoColorimetry, its names and enumerations."""
    assert colours_of(said, height) == colours


def test_a_sink_whose_pictures_change_is_followed() -> None:
    pixels = Pixels()
    for layout, width in (("I420", 64), ("NV12", 32), ("I420", 64)):
        image = pixels(sample_of(f"pattern=white ! video/x-raw,format={layout},width={width},height=48"))
        assert image.shape == (48, width, 3)
        assert image.min() >= 253
