"""The one place that imports GStreamer: namespaces loaded on demand, pixels in and out of its buffers."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgepose.runtime.errors import SOURCE, MissingLibrary, require
from edgepose.runtime.preprocess import U8

# PyGObject has no annotations: everything that comes out of it is Any, and stays inside this package.
_LONGEST_CAUSE = 120  # characters: longer ones are for developers
_READ, _WRITE = 1, 2  # GstMapFlags
_importing = threading.RLock()  # PyGObject's importer: a second thread finds a namespace half loaded


@functools.cache
def namespace(name: str) -> Any:
    """`Gst`, `GstRtspServer`, ... initialised. Raises MissingLibrary with the command that installs it."""
    # Debian's GStreamer brings libunwind into the process, whose _Unwind_* functions then stand in for the
    # compiler's: the first C++ exception of ONNX Runtime or OpenCV ended the process. The first one binds.
    with contextlib.suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1", mode=ctypes.RTLD_GLOBAL)
    gi = require("gi")
    try:
        with _importing:
            gi.require_version(name, "2.0" if name == "GLib" else "1.0")
            module = getattr(__import__("gi.repository", fromlist=[name]), name)
    except (ValueError, ImportError, AttributeError) as error:
        raise MissingLibrary(
            f"GStreamer's {name} is missing ({error}); install it: {SOURCE['gi']}"
        ) from error
    if name == "Gst":
        module.init(None)
        namespace("GstApp")  # gives appsrc and appsink their methods
    return module


def has_element(name: str) -> bool:
    """Whether GStreamer here knows this element."""
    return namespace("Gst").ElementFactory.find(name) is not None


def require_elements(*names: str) -> None:
    """Raises MissingLibrary naming the elements that are not installed."""
    missing = [name for name in names if not has_element(name)]
    if missing:
        raise MissingLibrary(f"GStreamer elements are missing: {', '.join(missing)}; install: {SOURCE['gi']}")


def launch(description: str) -> Any:
    """A pipeline made from its description. Raises MissingLibrary when a plug-in is not installed."""
    Gst = namespace("Gst")
    try:
        return Gst.parse_launch(description)
    except namespace("GLib").Error as error:
        if error.matches(Gst.parse_error_quark(), Gst.ParseError.NO_SUCH_ELEMENT):
            raise MissingLibrary(f"GStreamer: {error.message}; install: {SOURCE['gi']}") from error
        raise


def fault_of(pipeline: Any) -> str | None:
    """The first error that the pipeline reported since the last call, or None."""
    Gst = namespace("Gst")
    message = pipeline.get_bus().pop_filtered(Gst.MessageType.ERROR)  # throws other messages away
    if not message:
        return None
    error, details = message.parse_error()
    reason = str(error.message).strip().rstrip(".")
    # The message is often as general as "Unhandled error"; the last line of the details then has the cause.
    cause = str(details or "").rpartition("\n")[2].strip().rstrip(".")
    return f"{reason}: {cause}" if cause and cause not in reason and len(cause) < _LONGEST_CAUSE else reason


class _MapInfo(ctypes.Structure):
    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("maxsize", ctypes.c_size_t),
        ("user_data", ctypes.c_void_p * 4),
        ("reserved", ctypes.c_void_p * 4),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    namespace("Gst")
    library = ctypes.CDLL("libgstreamer-1.0.so.0")
    library.gst_buffer_map.restype = ctypes.c_int
    library.gst_buffer_map.argtypes = [ctypes.c_void_p, ctypes.POINTER(_MapInfo), ctypes.c_int]
    library.gst_buffer_unmap.restype = None
    library.gst_buffer_unmap.argtypes = [ctypes.c_void_p, ctypes.POINTER(_MapInfo)]
    return library


@contextlib.contextmanager
def mapped(buffer: Any, *, write: bool = False) -> Iterator[U8]:
    """The bytes of a GstBuffer (N,), without a copy; valid inside the block only.

    By ctypes, because PyGObject alone maps a read-only copy, and the gst-python overrides are not everywhere.
    """
    library, info, address = _library(), _MapInfo(), hash(buffer)  # PyGObject: hash is the C pointer
    if not library.gst_buffer_map(address, ctypes.byref(info), _READ | _WRITE if write else _READ):
        raise RuntimeError("a GstBuffer could not be mapped")
    try:
        raw = (ctypes.c_uint8 * info.size).from_address(info.data) if info.size else b""
        yield np.frombuffer(raw, np.uint8)
    finally:
        library.gst_buffer_unmap(address, ctypes.byref(info))


def bytes_of(buffer: Any) -> bytes:
    """A copy of a GstBuffer's bytes."""
    with mapped(buffer) as data:
        return data.tobytes()


def _structure(sample: Any) -> Any:
    # From text: get_structure() of 1.26 returns a wrapper without get_value.
    return namespace("Gst").Structure.new_from_string(sample.get_caps().to_string())


def size_of(sample: Any) -> tuple[int, int]:
    """Width and height in pixels."""
    structure = _structure(sample)
    return structure.get_int("width")[1], structure.get_int("height")[1]


def rate_of(sample: Any) -> float:
    """Frames per second by the caps; 0 when they do not say."""
    known, numerator, denominator = _structure(sample).get_fraction("framerate")
    return numerator / denominator if known and denominator else 0.0


def running_time_ns(sample: Any) -> int | None:
    """Running time of a sample; not its PTS, which x264enc shifts by 1000 hours. None when it has none."""
    Gst = namespace("Gst")
    pts = sample.get_buffer().pts
    if pts == Gst.CLOCK_TIME_NONE:
        return None
    time = sample.get_segment().to_running_time(Gst.Format.TIME, pts)
    return None if time == Gst.CLOCK_TIME_NONE else int(time)


def stream_time_ns(sample: Any) -> int | None:
    """Position in the file that a sample comes from; None when it has none."""
    Gst = namespace("Gst")
    pts = sample.get_buffer().pts
    if pts == Gst.CLOCK_TIME_NONE:
        return None
    time = sample.get_segment().to_stream_time(Gst.Format.TIME, pts)
    return None if time == Gst.CLOCK_TIME_NONE else int(time)
