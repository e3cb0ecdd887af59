"""The parameters of `prepare.cu`, the GPU's way from a camera frame to the network's input."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepose.runtime.colours import LUMA, Colours
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.preprocess import Letterbox, pad_colour
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.crop import F64, Regions
from edgepose.runtime.trt.cuda import THREADS

SOURCE = Path(__file__).with_name("prepare.cu")
FORMATS = {"NV12": 0, "RGBA": 1, "BGR": 2}  # enum Format of prepare.cu
PIXEL = {"NV12": 1, "RGBA": 4, "BGR": 3}  # bytes a pixel in a row
_LAYOUT = struct.Struct("=4i6f4i2f2i9f")  # struct Task of prepare.cu


@dataclass(frozen=True, slots=True)
class Source:
    """How a frame lies in memory."""

    width: int  # pixels
    height: int
    pitch: int  # bytes a row, of both planes of NV12
    format: str = "NV12"
    matrix: str = "bt601"  # of NV12
    full_range: bool = False  # luma 0..255 instead of 16..235

    def __post_init__(self) -> None:
        """Raises EdgeposeError for what the kernel does not read."""
        if self.format not in FORMATS or self.matrix not in LUMA:
            raise EdgeposeError(
                f"frame format {self.format!r} with matrix {self.matrix!r}: choose one of "
                f"{', '.join(FORMATS)} and of {', '.join(LUMA)}"
            )

    @property
    def rows(self) -> int:
        """In memory: half as many again for NV12's chroma."""
        return self.height * 3 // 2 if self.format == "NV12" else self.height

    def coefficients(self) -> tuple[float, ...]:
        """Luma's offset and gain; red of V, green of U and of V, blue of U; on values 0..255."""
        red, blue = LUMA[self.matrix]
        green = 1 - red - blue
        offset, luma, chroma = Colours(self.matrix, self.full_range).span
        red_v, blue_u = 2 * (1 - red) * 255 / chroma, 2 * (1 - blue) * 255 / chroma
        return offset, 255 / luma, red_v, blue_u * blue / green, red_v * red / green, blue_u


def blocks(spec: Spec, count: int) -> tuple[int, int, int]:
    """Of THREADS, for so many pictures of the network's input."""
    return -(-spec.width // THREADS[0]), -(-spec.height // THREADS[1]), count


def letterbox_task(source: Source, spec: Spec) -> tuple[bytes, Letterbox]:
    """The kernel's Task for a letterbox of the whole frame, and the way back from its pixels."""
    box = Letterbox.fit((source.width, source.height), (spec.width, spec.height))
    fit = (box.width, box.height, 1 / box.scale_x, 1 / box.scale_y, int(box.scale_x < 0.5))
    return _task(source, spec, fit), box


def crop_task(source: Source, regions: Regions, spec: Spec) -> tuple[bytes, F64]:
    """The Task for crops of these regions, and their (B, 2, 3) maps from crop pixels to the frame's."""
    square = np.zeros((len(regions), 3, 3))
    square[:, :2] = regions.matrices((spec.width, spec.height))
    square[:, 2, 2] = 1
    inverses = np.linalg.inv(square)[:, :2]
    return _task(source, spec, (0, 0, 0.0, 0.0, 0)), np.ascontiguousarray(inverses)


def _task(source: Source, spec: Spec, fit: tuple[int, int, float, float, int]) -> bytes:
    width, height, step_x, step_y, area = fit
    scale = 1 / (255 * np.array(spec.std))
    shift = np.array(spec.mean) / np.array(spec.std)
    pad = pad_colour(spec) if spec.colour == "BGR" else pad_colour(spec)[::-1]
    return _LAYOUT.pack(
        *(source.width, source.height, source.pitch, FORMATS[source.format], *source.coefficients()),
        *(spec.width, spec.height, width, height, step_x, step_y, area, int(spec.colour == "BGR")),
        *scale,
        *shift,
        *pad,
    )
