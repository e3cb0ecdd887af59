"""The examination behind `edgepose doctor`: libraries, GStreamer elements, GPU, board."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from edgepose.runtime.backend_onnxruntime import adds_in_32_bits
from edgepose.runtime.errors import SOURCE, HardwareError, MissingLibrary, require
from edgepose.runtime.stream import gst
from edgepose.runtime.stream.encoder import CODECS, choose
from edgepose.runtime.trt.board import jetson_linux, power_mode
from edgepose.runtime.trt.cuda import DRIVERS, any_library
from edgepose.runtime.trt.driver import require_gpu

# The distribution's name where it differs from the module's.
DISTRIBUTION = {
    "cv2": "opencv-python-headless",
    "yaml": "PyYAML",
    "ansible": "ansible-core",
    "lightning_fabric": "lightning-fabric",
    "gi": "PyGObject",
    "cuda": "cuda-bindings",
}
STREAM = ("cv2", "onnxruntime", "gi")
FLEET = "ansible"
WORKSTATION = tuple(m for m, source in SOURCE.items() if "workstation" in source and m != FLEET)

# Elements by what a stream needs them for.
ELEMENTS = {
    "cameras, files": ("v4l2src", "rtspsrc", "decodebin", "videoconvert", "appsink"),
    "RTSP server": ("appsrc", "h264parse", "rtph264pay", "rtpklvpay"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the examination.

    `status`: ok, missing (can be installed here) or absent (hardware, a board's own software).
    """

    purpose: str
    what: str
    status: str
    detail: str = ""
    remedy: str = ""


def examine() -> list[Finding]:
    """Everything that decides which verbs work here, in the order of the work."""
    return [
        _python(),
        *_libraries(),
        _products_of_8_bits(),
        *_gstreamer(),
        _cameras(),
        *_cuda(),
        _tensorrt(),
        _services(),
        _library("deploy", FLEET),
        _jetpack(),
        _power_mode(),
    ]


def _python() -> Finding:
    fits = (3, 10) <= sys.version_info[:2] <= (3, 13)
    return Finding(
        "all verbs",
        "Python",
        "ok" if fits else "missing",
        platform.python_version(),
        "" if fits else "3.10 to 3.13",
    )


def _libraries() -> list[Finding]:
    return [
        *(_library("train … verify", module) for module in WORKSTATION),
        *(_library("stream", module) for module in STREAM),
    ]


def _library(purpose: str, module: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(purpose, module, "missing", "", SOURCE[module])
    return Finding(purpose, module, "ok", _version(module))


def _version(module: str) -> str:
    try:
        return version(DISTRIBUTION.get(module, module))
    except PackageNotFoundError:  # a distribution's package without pip metadata
        return "of the system"


def _products_of_8_bits() -> Finding:
    """Whether INT8 gains time where ONNX Runtime computes; not a board's concern."""
    purpose, what = "stream", "INT8 on the CPU"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return Finding(purpose, what, "ok", "its speed here has not been measured")
    if adds_in_32_bits():
        return Finding(purpose, what, "ok", "VNNI: faster than FP32")
    return Finding(purpose, what, "absent", "no VNNI: INT8 is about as fast as FP32, with the same poses")


def _gstreamer() -> list[Finding]:
    remedy = SOURCE["gi"]
    try:
        Gst = gst.namespace("Gst")
        gst.namespace("GstRtspServer")
    except MissingLibrary as error:
        return [Finding("stream", "GStreamer", "missing", str(error).partition(";")[0], remedy)]
    found = [Finding("stream", "GStreamer", "ok", ".".join(map(str, Gst.version()[:3])))]
    for purpose, names in ELEMENTS.items():
        lacking = " ".join(name for name in names if not gst.has_element(name))
        found.append(
            Finding("stream", purpose, "missing" if lacking else "ok", lacking, remedy if lacking else "")
        )
    return [*found, _encoder()]


def _encoder() -> Finding:
    """The encoder that a stream would take: tried, because one that is installed may not work."""
    try:
        return Finding("stream", "H.264 encoder", "ok", choose(CODECS).element)
    except (MissingLibrary, HardwareError) as error:
        return Finding("stream", "H.264 encoder", "missing", str(error).partition(";")[0], SOURCE["gi"])


def _cuda() -> list[Finding]:
    try:
        gpu = require_gpu()
    except HardwareError as error:
        return [Finding("build", "CUDA driver", "absent", str(error))]
    driver = Finding("build", "CUDA driver", "ok", f"CUDA {gpu.cuda}, {gpu.name} sm_{gpu.sm}")
    return [driver, _cuda_library()]


def _cuda_library() -> Finding:
    """What an engine reaches the GPU through: imported, as one compiled for another CUDA is found too."""
    library = any_library()
    module = DRIVERS[library].partition(".")[0]
    try:
        require(DRIVERS[library])
    except MissingLibrary as error:
        return Finding("build", library, "missing", str(error).partition(";")[0], SOURCE[module])
    return Finding("build", library, "ok", _version(module))


def _tensorrt() -> Finding:
    if importlib.util.find_spec("tensorrt") is None:
        return Finding("build", "TensorRT", "absent", "", SOURCE["tensorrt"])
    return Finding("build", "TensorRT", "ok", _version("tensorrt"))


def _services() -> Finding:
    """What a deployed stream is started by, again after a power cut."""
    return Finding("deploy", "systemd", "ok" if shutil.which("systemctl") else "absent")


def _jetpack() -> Finding:
    found = jetson_linux()
    return Finding("board", "Jetson Linux", "ok" if found else "absent", found or "")


def _power_mode() -> Finding:
    mode = power_mode()
    return Finding("board", "power mode", "absent" if mode is None else "ok", mode or "")


def _cameras(devices: Path = Path("/dev")) -> Finding:
    cameras = sorted(str(path) for path in devices.glob("video*"))
    return Finding("stream", "cameras", "ok" if cameras else "absent", " ".join(cameras))
