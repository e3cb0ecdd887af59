"""What lies between a sensor and the network: 4:2:0 colours, a codec, and the stream's decoder."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from edgepose.runtime.colours import Colours
from edgepose.runtime.errors import EdgeposeError, HardwareError
from edgepose.runtime.preprocess import U8
from edgepose.runtime.stream import gst
from edgepose.runtime.stream.capture import DECODE, converter
from edgepose.runtime.stream.grammar import SMALLEST
from edgepose.runtime.stream.pixels import Pixels, buffer_of

EXAMPLES = "nv12, mjpeg:85 or h264:28"
BLOCK = 16  # pixels of a side of what codecs cut pictures into
_PATIENCE_S = 10.0  # for one picture
_COLORIMETRY = {False: "2:4:0:0", True: "1:4:0:0"}  # range and matrix (BT.601), as GStreamer numbers them


@dataclass(frozen=True, slots=True)
class _Kind:
    """How one sort of camera sends a picture."""

    elements: tuple[str, ...]  # of GStreamer, which have to be installed
    description: str  # of the pipeline from I420 on; {level} is what the user gives
    levels: range | None  # which are possible
    full_range: bool = False  # of that I420


_KINDS = {
    "nv12": _Kind((), "videoconvert ! video/x-raw,format=NV12", None),  # a sensor on the board's own bus
    # JPEG has the full range (JFIF); the exact transform, for a camera's chip takes no shortcut.
    "mjpeg": _Kind(
        ("jpegenc", "jpegdec"),
        f"jpegenc idct-method=islow quality={{level}} ! {DECODE}",
        range(1, 101),
        full_range=True,
    ),
    # Each picture a key frame of one quantizer, as H.264 numbers it (ITU-T H.264, QP).
    "h264": _Kind(
        ("x264enc", "h264parse"),
        "x264enc speed-preset=veryfast threads=1 pass=quant quantizer={level} ! "
        f"video/x-h264,profile=high ! h264parse ! {DECODE}",
        range(1, 51),  # all that x264enc takes
    ),
}


@dataclass(frozen=True, slots=True)
class CameraPath:
    """A way from the sensor to the network, ending in the decoder and converter of `edgepose stream`."""

    name: str  # as the user wrote it
    description: str  # GStreamer's elements from I420 on
    full_range: bool = False

    @classmethod
    def parse(cls, text: str) -> CameraPath:
        """Raises EdgeposeError when `text` is no camera, MissingLibrary when its codec is not installed."""
        name, colon, level = text.partition(":")
        kind = _KINDS.get(name)
        if kind is None:
            raise EdgeposeError(f"{text!r} is no camera; give {EXAMPLES}")
        if kind.levels is None and colon:
            raise EdgeposeError(f"{text!r}: {name} has no levels; give {name}")
        if kind.levels is not None and not (
            level.isascii() and level.isdigit() and int(level) in kind.levels
        ):
            first, last = kind.levels[0], kind.levels[-1]
            raise EdgeposeError(f"{text!r}: {name} needs a level from {first} to {last}, such as {EXAMPLES}")
        gst.require_elements(*kind.elements)
        return cls(text, kind.description.format(level=level), kind.full_range)

    def through(self, image: U8) -> U8:
        """The (H, W, 3) BGR picture as it comes out at the other end, of the same size.

        By itself, in a pipeline of its own: so it depends on no other picture, and a codec holds none back.
        Raises HardwareError when GStreamer gives no picture.
        """
        height, width = image.shape[:2]
        framed = _framed(image)
        rows, columns = framed.shape[:2]
        caps = f"video/x-raw,format=I420,width={columns},height={rows},framerate=25/1"
        pipeline = gst.launch(
            f"appsrc name=sensor format=time caps={caps},colorimetry={_COLORIMETRY[self.full_range]} ! "
            f"{self.description} ! {converter()} ! appsink name=frames sync=false"
        )
        sensor, frames = pipeline.get_by_name("sensor"), pipeline.get_by_name("frames")
        try:
            pipeline.set_state(gst.namespace("Gst").State.PLAYING)
            buffer = buffer_of(framed, Colours(full_range=self.full_range))
            buffer.pts = 0
            sensor.push_buffer(buffer)
            sensor.emit("end-of-stream")
            sample = frames.try_pull_sample(round(_PATIENCE_S * 1e9))
            if sample is None:
                reason = gst.fault_of(pipeline) or f"no picture came in {_PATIENCE_S:g} s"
                raise HardwareError(f"the camera path {self.name} is broken: {reason}")
            return Pixels()(sample)[:height, :width]
        finally:
            pipeline.set_state(gst.namespace("Gst").State.NULL)


def _framed(image: U8) -> U8:
    """With its last row and column repeated up to whole blocks.

    GStreamer's jpegenc (1.22) fills the last block with what happens to lie in memory.
    """
    below, right = (max(SMALLEST, side + -side % BLOCK) - side for side in image.shape[:2])
    return np.asarray(cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE), np.uint8)
