"""The pictures of a GStreamer sink as BGR: what decoders give is taken as it is, and converted here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgepose.runtime.colours import Colours, ToBgr
from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream import gst

# For the end of a pipeline, behind a videoconvert, which does nothing where one of these comes in.
CAPS = "video/x-raw,format=(string){I420,NV12,BGR}"
_TALLEST_SD = 576  # pixels: above, colours are BT.709 where nobody says otherwise, as for GStreamer
_NAMED = {"bt601": "2:4", "bt709": "2:3", "smpte240m": "2:5", "bt2020": "2:6"}  # range : matrix
_MATRICES = {"3": "bt709", "4": "bt601", "5": "bt709", "6": "bt2020"}  # of GstVideoColorMatrix
_FULL_RANGE = "1"  # of GstVideoColorRange


class Pixels:
    """One sink's samples to pictures; for one thread."""

    def __init__(self) -> None:
        self._caps = ""
        self._read: Callable[[U8], U8] = np.copy

    def __call__(self, sample: Any) -> U8:
        """A new (H, W, 3) BGR picture."""
        caps = sample.get_caps().to_string()
        if caps != self._caps:  # seldom: a camera that turns, or begins again
            self._caps, self._read = caps, _reader(caps)
        with gst.mapped(sample.get_buffer()) as data:
            return self._read(data)


def _reader(caps: str) -> Callable[[U8], U8]:
    structure = gst.namespace("Gst").Structure.new_from_string(caps)
    size = structure.get_int("width")[1], structure.get_int("height")[1]
    layout = structure.get_string("format")
    if layout == "BGR":
        return lambda data: gst.packed(data, size).copy()
    return _planar(layout, size, colours_of(structure.get_string("colorimetry"), size[1]))


def _planar(layout: str, size: tuple[int, int], colours: Colours) -> Callable[[U8], U8]:
    """Of GStreamer's own layout: one plane after the other, of even sides, rows of a multiple of 4 bytes."""
    width, height = (side + side % 2 for side in size)
    pitch, small = _pitch(width), _pitch(width // 2)
    end = pitch * height  # of luma
    convert = ToBgr((width, height), colours)

    def read(data: U8) -> U8:
        luma = _plane(data, 0, (height, pitch))[:, :width]
        if layout == "NV12":
            pair = _plane(data, end, (height // 2, pitch))[:, :width]
            image = convert(luma, pair.reshape(height // 2, width // 2, 2))
        else:
            starts = (end, end + small * height // 2)
            blue, red = (_plane(data, start, (height // 2, small))[:, : width // 2] for start in starts)
            image = convert(luma, blue, red)
        return np.ascontiguousarray(image[: size[1], : size[0]])

    return read


def _pitch(columns: int) -> int:
    return (columns + 3) // 4 * 4


def _plane(data: U8, start: int, shape: tuple[int, int]) -> U8:
    """Rows and bytes a row."""
    return data[start : start + shape[0] * shape[1]].reshape(shape)


def colours_of(colorimetry: str | None, height: int) -> Colours:
    """Of GStreamer's `colorimetry`, a name or range:matrix:transfer:primaries, of a picture of `height`."""
    text = _NAMED.get(colorimetry or "", colorimetry or "")
    span, _, rest = text.partition(":")
    usual = "bt709" if height > _TALLEST_SD else "bt601"
    return Colours(_MATRICES.get(rest.partition(":")[0], usual), span == _FULL_RANGE)
