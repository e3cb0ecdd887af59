"""The preprocessing kernel, built by a host compiler and run on a GPU if there is one, beside the CPU's."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import host_kernel
import numpy as np
import pytest

from edgepose.runtime import preprocess
from edgepose.runtime.errors import EdgeposeError, HardwareError, MissingLibrary
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown import crop
from edgepose.runtime.topdown.crop import Regions
from edgepose.runtime.trt import nvrtc
from edgepose.runtime.trt.cuda import any_library, open_cuda
from edgepose.runtime.trt.driver import require_gpu
from edgepose.runtime.trt.kernel import SOURCE, Source, blocks, crop_task, letterbox_task
from edgepose.runtime.trt.nvrtc import compiled

SPEC = Spec("qrpose", "qrpose_tiny", 96, 64)
LIMIT = 1.5  # of 255, before normalising: the issue's own


Run = Callable[..., Any]


def on_host() -> Iterator[Run]:
    """By a compiler of this machine, called with numpy's memory."""
    if host_kernel.compiler() is None:
        pytest.skip("no C++ compiler (c++) to build the kernel for the host")
    library = ctypes.CDLL(str(host_kernel.build()))

    def run(planes: tuple[Any, Any], task: bytes, inverses: Any, out: Any) -> None:
        pointers = [
            None if p is None else p.ctypes.data_as(ctypes.c_void_p) for p in (*planes, out, inverses)
        ]
        library.prepare_on_host(*pointers[:3], ctypes.c_char_p(task), pointers[3], len(out))

    yield run


def on_gpu() -> Iterator[Run]:
    """By NVRTC, on the device; needs no TensorRT."""
    try:
        gpu = require_gpu()
        cuda = open_cuda(any_library())
        cubin = compiled(SOURCE.read_bytes(), gpu.sm)
    except (HardwareError, MissingLibrary) as error:
        pytest.skip(f"no GPU to run the kernel on: {error}")

    def run(planes: tuple[Any, Any], task: bytes, inverses: Any, out: Any) -> None:
        spec = dataclasses.replace(SPEC, width=out.shape[3], height=out.shape[2])
        with cuda.current(), ExitStack() as freed:
            stream, addresses, buffers = cuda.stream(), [], []
            for array in (*planes, out, inverses):
                if array is None:
                    addresses.append(0)
                    continue
                buffer = cuda.allocate(array.nbytes, mapped=False)
                freed.callback(cuda.free, buffer)
                buffer.host[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                cuda.upload(buffer, array.nbytes, stream)
                addresses.append(buffer.address)
                buffers.append(buffer)
            arguments = (*addresses[:3], task, addresses[3])
            cuda.launch(cuda.kernel(cubin, "prepare_f32"), blocks(spec, len(out)), arguments, stream)
            made = next(buffer for buffer in buffers if buffer.address == addresses[2])
            cuda.download(made, out.nbytes, stream)
            cuda.wait(stream)
            out.reshape(-1).view(np.uint8)[:] = made.host

    yield run
    cuda.close()


@pytest.fixture(scope="module", params=[on_host, on_gpu], ids=["host", "gpu"])
def kernel(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Fills `out` from planes, a task and inverses."""
    yield from request.param()


def run(kernel: Run, planes: tuple[Any, Any], task: bytes, spec: Spec, inverses: Any = None) -> Any:
    """(B, 3, height, width), filled with not-a-number first: a pixel left out is seen."""
    batch = 1 if inverses is None else len(inverses)
    out = np.full((batch, 3, spec.height, spec.width), np.nan, np.float32)
    kernel(planes, task, inverses, out)
    return out


def frame(width: int, height: int, seed: int = 0) -> Any:
    """(H, W, 3) BGR with soft shapes, hard edges and noise."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (max(2, height // 12), max(2, width // 12), 3), np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    cv2.rectangle(image, (width // 4, height // 4), (width // 2, height // 2), (255, 0, 40), -1)
    return np.clip(image.astype(np.int16) + generator.integers(-6, 7, image.shape), 0, 255).astype(np.uint8)


def apart(found: Any, expected: Any, spec: Spec) -> float:
    """The largest difference in 0..255."""
    return float((np.abs(found - expected) * np.array(spec.std).reshape(3, 1, 1) * 255).max())


SIZES = [(192, 128), (96, 64), (100, 120), (61, 47), (640, 360), (50, 33), (333, 217), (1920, 1080), (7, 200)]


@pytest.mark.parametrize("colour", ["RGB", "BGR"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_letterbox_is_the_references(size: tuple[int, int], colour: str, kernel) -> None:
    """Shrunk by areas, by lines, enlarged; padded on either side."""
    spec = dataclasses.replace(SPEC, colour=colour)
    image = frame(*size)
    task, box = letterbox_task(Source(*size, 3 * size[0], "BGR"), spec)
    expected, same = preprocess.prepare(image, spec)
    assert box == same
    assert apart(run(kernel, (image, None), task, spec), expected, spec) <= LIMIT


def test_rows_may_be_longer_than_the_picture_and_rgba_is_read(kernel) -> None:
    image = frame(120, 90)
    wide = np.full((90, 640), 7, np.uint8)  # a pitch of 640 bytes
    wide[:, : 4 * 120] = cv2.cvtColor(image, cv2.COLOR_BGR2RGBA).reshape(90, -1)
    task, _ = letterbox_task(Source(120, 90, 640, "RGBA"), SPEC)
    assert apart(run(kernel, (wide, None), task, SPEC), preprocess.prepare(image, SPEC)[0], SPEC) <= LIMIT


def nv12(image: Any, pitch: int) -> tuple[Any, Any]:
    """Planes of a BGR image by OpenCV's BT.601 limited conversion, in rows of `pitch` bytes."""
    height, width = image.shape[:2]
    planar = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420)
    u, v = (plane.reshape(height // 2, width // 2) for plane in np.split(planar[height:].reshape(-1), 2))
    luma, chroma = np.zeros((height, pitch), np.uint8), np.zeros((height // 2, pitch), np.uint8)
    luma[:, :width] = planar[:height]
    chroma[:, :width] = np.stack([u, v], -1).reshape(height // 2, width)
    return luma, chroma


@pytest.mark.parametrize("size", [(192, 128), (640, 360), (64, 48)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_nv12_is_what_opencv_makes_of_it(size: tuple[int, int], kernel) -> None:
    width, height = size
    luma, chroma = nv12(frame(*size), width + 64)
    packed = np.concatenate([luma[:, :width], chroma[:, :width]])
    image = cv2.cvtColor(np.ascontiguousarray(packed), cv2.COLOR_YUV2BGR_NV12)
    task, _ = letterbox_task(Source(width, height, width + 64), SPEC)
    assert apart(run(kernel, (luma, chroma), task, SPEC), preprocess.prepare(image, SPEC)[0], SPEC) <= LIMIT


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(
    ("matrix", "red", "blue"),
    [("bt601", 0.299, 0.114), ("bt709", 0.2126, 0.0722), ("bt2020", 0.2627, 0.0593)],
)
def test_colours_come_back_from_their_standard(matrix, red, blue, full_range, kernel) -> None:
    """ITU's own forward equations: RGB -> Y'CbCr, rounded, and back by the kernel."""
    colours = np.random.default_rng(2).integers(0, 256, (32, 48, 3)).astype(np.float64)  # RGB of 2 x 2 blocks
    luma = colours @ [red, 1 - red - blue, blue]
    u, v = (colours[..., 2] - luma) / (2 - 2 * blue), (colours[..., 0] - luma) / (2 - 2 * red)
    if not full_range:
        luma, u, v = 16 + luma * 219 / 255, u * 224 / 255, v * 224 / 255
    y, u, v = (np.rint(a).clip(0, 255).astype(np.uint8) for a in (luma, u + 128, v + 128))
    plane = np.repeat(np.repeat(y, 2, 0), 2, 1)
    chroma = np.stack([u, v], -1).reshape(32, 96)
    task, _ = letterbox_task(Source(96, 64, 96, matrix=matrix, full_range=full_range), SPEC)
    found = run(kernel, (plane, chroma), task, SPEC)[0].transpose(1, 2, 0)
    values = (found * SPEC.std + SPEC.mean) * 255
    expected = np.repeat(np.repeat(colours, 2, 0), 2, 1)
    # Rounding Y, Cb and Cr costs up to half a step each, times the largest coefficients.
    assert np.abs(values - expected).max() < 0.5 * (255 / 219 + 2.2) + 1


def test_crops_of_a_batch_are_the_references(kernel) -> None:
    """Enlarged, shrunk, turned, and reaching beyond every side of the frame."""
    image = frame(320, 240)
    centres = np.array([[160, 120], [20.5, 30.25], [310, 230], [160, 120], [-40, 120]], np.float64)
    sides = np.array([[90, 60], [120, 80], [60, 40], [300, 200], [45, 30]], np.float64)
    regions = Regions(centres, sides, np.array([0.0, 0, 30, -75, 10]))
    task, inverses = crop_task(Source(320, 240, 960, "BGR"), regions, SPEC)
    expected = crop.prepare(image, regions, SPEC)
    assert apart(run(kernel, (image, None), task, SPEC, inverses), expected, SPEC) <= LIMIT


@pytest.mark.parametrize("change", [{"format": "YUYV"}, {"matrix": "smpte240m"}])
def test_frames_the_kernel_does_not_read_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(EdgeposeError, match="choose one of NV12, RGBA, BGR and of bt601, bt709, bt2020"):
        Source(64, 48, 64, **change)


# The boards: Xavier 72, Orin 87, Thor 101 or 110, and two workstations. CUDA 13 dropped 72 and renamed 101.
NVRTC = {"libnvrtc.so.12": (72, 75, 87, 90, 101), "libnvrtc.so.13": (75, 87, 90, 110)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NVRTC)
def test_nvidias_compiler_takes_it_for_every_board(name: str) -> None:
    """Without any header, as on a board that has only the library."""
    places = getattr(importlib.util.find_spec("nvidia"), "submodule_search_locations", None) or []
    found = [path for place in places for path in Path(place).rglob(name)]
    if not found:
        pytest.skip(f"{name} is not installed; `make test-cuda` installs it")
    library = ctypes.CDLL(str(found[0]))
    for sm in NVRTC[name]:
        cubin = compiled(SOURCE.read_bytes(), sm, library)
        assert all(kernel in cubin for kernel in (b"prepare_f32", b"prepare_f16"))
    with pytest.raises(EdgeposeError, match=r"cannot compile the preprocessing kernel for sm_87: .*error"):
        compiled(b"not CUDA", 87, library)


class Compiler:
    """NVRTC's functions, as far as the declared steps go: a program that compiles, or does not."""

    def __init__(self, code: int) -> None:
        self.code, self.calls = code, []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name.endswith("Size"):
                arguments[1]._obj.value = 6
            elif name.startswith("nvrtcGet"):
                arguments[1].value = b"error"
            return self.code if name == "nvrtcCompileProgram" else 0

        return call


@pytest.mark.parametrize("code", [0, 6])
def test_the_compilers_program_is_given_back_whatever_comes_of_it(code: int) -> None:
    compiler: Any = Compiler(code)
    if code:
        with pytest.raises(EdgeposeError, match=r"for sm_87: error$"):
            compiled(b"", 87, compiler)
    else:
        assert compiled(b"", 87, compiler) == b"error\0"
    assert (compiler.calls[0], compiler.calls[-1]) == ("nvrtcCreateProgram", "nvrtcDestroyProgram")


def test_without_the_compiler_it_is_said_where_it_comes_from(monkeypatch) -> None:
    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(["libnvrtc-not-here.so.1"]))
    with pytest.raises(MissingLibrary, match="apt-get install cuda-nvrtc"):
        compiled(b"", 87)


def test_the_source_is_in_the_package() -> None:
    assert SOURCE.is_file()
    assert SOURCE.parent == Path(preprocess.__file__).parent / "trt"
