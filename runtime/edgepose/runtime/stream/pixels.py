"""Pictures out of GStreamer and into it: decoders and encoders get their own layouts, converted here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgepose.runtime.colours import Colours, ToBgr, from_bgr
from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream import gst

# For the end of a pipeline, behind a videoconvert, which does nothing where one of these comes in.
CAPS = "video/x-raw,format=(string){I420,NV12,BGR}"
I420 = "video/x-raw,format=I420,colorimetry=bt601"  # what `buffer_of` makes of a picture, but for its size
_TALLEST_SD = 576  # pixels: above, colours are BT.709 where nobody says otherwise, as for GStreamer
_NAMED = {"bt601": "2:4", "bt709": "2:3", "smpte240m": "2:5", "bt2020": "2:6"}  # range : matrix
_MATRICES = {"3": "bt709", "4": "bt601", "5": "bt709", "6": "bt2020"}  # of GstVideoColorMatrix
_FULL_RANGE = "1"  # of GstVideoColorRange


Planes = tuple[tuple[int, int], ...]  # where each begins, and from row to row: bytes


class Pixels:
    """One sink's samples to pictures; for one thread."""

    def __init__(self) -> None:
        self._kind: tuple[str, Planes] = ("", ())
        self._read: Callable[[U8], U8] = np.copy

    def __call__(self, sample: Any) -> U8:
        """A new (H, W, 3) BGR picture."""
        buffer = sample.get_buffer()
        kind = sample.get_caps().to_string(), _planes_of(buffer)
        if kind != self._kind:  # seldom: a camera that turns, or begins again
            self._kind, self._read = kind, _reader(*kind)
        with gst.mapped(buffer) as data:
            return self._read(data)


def buffer_of(image: U8, colours: Colours = Colours()) -> Any:  # noqa: B008  it is frozen
    """A new GstBuffer with a (H, W, 3) BGR picture of even sides as I420."""
    height, width = image.shape[:2]
    places = _usual("I420", (width, height))
    start, pitch = places[-1]
    buffer = gst.namespace("Gst").Buffer.new_allocate(None, start + pitch * height // 2, None)
    with gst.mapped(buffer, write=True) as data:
        for plane, (start, pitch) in zip(from_bgr(image, colours), places, strict=True):
            np.ndarray(plane.shape, np.uint8, data, start, (pitch, 1))[:] = plane
    return buffer


def _planes_of(buffer: Any) -> Planes:
    """Where an element says that the planes lie; empty where they lie as usual."""
    meta = gst.namespace("GstVideo").buffer_get_video_meta(buffer)
    if meta is None:
        return ()
    return tuple(zip(list(meta.offset)[: meta.n_planes], list(meta.stride)[: meta.n_planes], strict=True))


def _reader(caps: str, said: Planes) -> Callable[[U8], U8]:
    structure = gst.namespace("Gst").Structure.new_from_string(caps)
    layout = structure.get_string("format")
    size = structure.get_int("width")[1], structure.get_int("height")[1]
    planes = said or _usual(layout, size)
    if layout == "BGR":
        ((start, pitch),) = planes
        shape, strides = (size[1], size[0], 3), (pitch, 3, 1)
        return lambda data: np.ndarray(shape, np.uint8, data, start, strides).copy()
    return _planar(planes, size, colours_of(structure.get_string("colorimetry"), size[1]))


def _usual(layout: str, size: tuple[int, int]) -> Planes:
    """GStreamer's own layout: planes of even sides one after the other, rows of a multiple of 4 bytes."""
    if layout == "BGR":
        return ((0, _pitch(3 * size[0])),)
    width, height = _even(size)
    luma, small = _pitch(width), _pitch(width // 2)
    end = luma * height
    if layout == "NV12":
        return (0, luma), (end, luma)
    return (0, luma), (end, small), (end + small * height // 2, small)


def _pitch(columns: int) -> int:
    return (columns + 3) // 4 * 4


def _even(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] + size[0] % 2, size[1] + size[1] % 2


def _planar(planes: Planes, size: tuple[int, int], colours: Colours) -> Callable[[U8], U8]:
    """Of I420, which has three planes, and NV12, which has two."""
    width, height = _even(size)
    shape = (height // 2, width // 2)
    convert = ToBgr((width, height), colours)

    def read(data: U8) -> U8:
        (start, pitch), *rest = planes
        luma = np.ndarray((height, width), np.uint8, data, start, (pitch, 1))
        if len(rest) == 1:
            ((start, pitch),) = rest
            chroma = [np.ndarray((*shape, 2), np.uint8, data, start, (pitch, 2, 1))]
        else:
            chroma = [np.ndarray(shape, np.uint8, data, start, (pitch, 1)) for start, pitch in rest]
        return np.ascontiguousarray(convert(luma, *chroma)[: size[1], : size[0]])

    return read


def colours_of(colorimetry: str | None, height: int) -> Colours:
    """Of GStreamer's `colorimetry`, a name or range:matrix:transfer:primaries, of a picture of `height`."""
    text = _NAMED.get(colorimetry or "", colorimetry or "")
    span, _, rest = text.partition(":")
    usual = "bt709" if height > _TALLEST_SD else "bt601"
    return Colours(_MATRICES.get(rest.partition(":")[0], usual), span == _FULL_RANGE)
