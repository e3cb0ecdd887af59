"""Y'CbCr with one colour for four pixels, as cameras and decoders give it, to BGR and back."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.runtime.preprocess import U8

# Share of red and blue in the luma: ITU-R BT.601, BT.709, BT.2020.
LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


@dataclass(frozen=True, slots=True)
class Colours:
    """What the 8 bits of luma and chroma mean."""

    matrix: str = "bt601"  # of LUMA
    full_range: bool = False  # luma 0..255 instead of 16..235

    @property
    def span(self) -> tuple[int, int, int]:
        """The lowest luma, and the spans of luma and of chroma, whose middle is 128."""
        return (0, 255, 255) if self.full_range else (16, 219, 224)


_OPENCVS = Colours()


class ToBgr:
    """Pictures of one size and one kind of colours to BGR.

    By OpenCV, which takes a fifth of GStreamer's time and is not three levels too dark, but knows one kind of
    colours alone; others are brought to that first, within two levels or so of 255. What is needed in between
    is kept: new memory for each picture would take as long as the work.
    """

    def __init__(self, size: tuple[int, int], colours: Colours) -> None:
        """`size` is (width, height) in pixels, both even."""
        width, height = size
        self._size = size
        self._pair = np.empty((height // 2, width // 2, 2), np.uint8)
        self._colours = colours
        if colours != _OPENCVS:
            self._change, self._levels = _change(colours)
            self._luma, self._more = (np.empty((height, width), np.uint8) for _ in range(2))
            self._parts = [np.empty((height // 2, width // 2), np.uint8) for _ in range(5)]

    def __call__(self, luma: U8, *chroma: U8) -> U8:
        """(H, W) and blue and red, either (H/2, W/2, 2) or each (H/2, W/2) -> (H, W, 3), new."""
        if self._colours != _OPENCVS:
            luma, chroma = self._as_opencvs(luma, *chroma)
        pair = chroma[0] if len(chroma) == 1 else cv2.merge(chroma, self._pair)
        return np.asarray(cv2.cvtColorTwoPlane(luma, pair, cv2.COLOR_YUV2BGR_NV12), np.uint8)

    def _as_opencvs(self, luma: U8, *chroma: U8) -> tuple[U8, tuple[U8, ...]]:
        given, new, more = self._parts[:2], self._parts[2:4], self._parts[4]
        blue, red = cv2.split(chroma[0], given) if len(chroma) == 1 else chroma
        for (b, r, rest), part in zip(self._change[:2], new, strict=True):
            cv2.addWeighted(blue, b, red, r, rest, part)
        if self._levels is not None:
            luma = np.asarray(cv2.LUT(luma, self._levels, self._luma), np.uint8)
        b, r, rest = self._change[2]
        if b or r:
            cv2.addWeighted(blue, b, red, r, rest + 128, more)  # of luma: -33 to 33, so that 8 bits hold it
            cv2.resize(more, self._size, self._more, interpolation=cv2.INTER_NEAREST)
            cv2.addWeighted(luma, 1, self._more, 1, -128, self._luma)
            luma = self._luma
        return luma, tuple(new)


def from_bgr(image: U8, colours: Colours) -> tuple[U8, U8, U8]:
    """(H, W, 3) BGR of even sides -> luma (H, W), blue and red (H/2, W/2), each the mean of four pixels.

    Within a level; the kind of colours that OpenCV knows takes half of GStreamer's time, others more.
    """
    height, width = image.shape[:2]
    if colours == _OPENCVS:
        half = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        _, red, blue = cv2.split(cv2.cvtColor(half, cv2.COLOR_BGR2YCrCb))  # of full range
        share = colours.span[2] / 255
        scaled = (cv2.convertScaleAbs(plane, None, share, 128 - 128 * share) for plane in (blue, red))
        lit = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420)[:height]  # the rest has one pixel's colour of four
        y, blue, red = (np.asarray(plane, np.uint8) for plane in (lit, *scaled))
        return y, blue, red
    lowest, luma, chroma = colours.span
    parts = cv2.transform(image.astype(np.float32) / 255, _from_rgb(colours.matrix)[:, ::-1])
    small = cv2.resize(parts[..., 1:], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    planes = (lowest + luma * parts[..., 0], *(128 + chroma * small[..., plane] for plane in (0, 1)))
    y, blue, red = (np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in planes)
    return y, blue, red


def _change(colours: Colours) -> tuple[list[list[float]], U8 | None]:
    """(3, 3): blue, red and more luma from blue, red and 1; and (256,) luma for luma where it is scaled."""
    lowest, luma, chroma = colours.span
    base, wide, colour = _OPENCVS.span
    turned = _from_rgb(_OPENCVS.matrix) @ np.linalg.inv(_from_rgb(colours.matrix))
    change = np.zeros((3, 3))
    change[:2, :2] = turned[1:, 1:] * colour / chroma
    change[2, :2] = turned[0, 1:] * wide / chroma
    change[:, 2] = (128, 128, 0) - 128 * change[:, :2].sum(axis=1)
    levels = base + (np.arange(256) - lowest) * wide / luma
    scaled = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return change.round(9).tolist(), None if colours.full_range == _OPENCVS.full_range else scaled


def _from_rgb(matrix: str) -> npt.NDArray[np.float64]:
    """(3, 3) of luma, blue and red differences over red, green, blue."""
    red, blue = LUMA[matrix]
    luma = np.array([red, 1 - red - blue, blue])
    return np.stack([luma, ([0, 0, 1] - luma) / (2 - 2 * blue), ([1, 0, 0] - luma) / (2 - 2 * red)])
