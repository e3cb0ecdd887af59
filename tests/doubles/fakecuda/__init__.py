"""Builds `fakecuda.c` into a libcuda.so.1, and looks into it as `standin_gpu.Gpu` is looked into."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import host_kernel

HERE = Path(__file__).parent
NAME = "libcuda.so.1"
_UNSUPPORTED, _ILLEGAL = 801, 700


def compiler() -> str | None:
    """A C compiler of this machine."""
    return shutil.which("cc")


def build(folder: Path, users: list[Path]) -> Path:
    """The library in `folder`; what `users` (shared objects) need beyond it is refused at run time."""
    source = (HERE / "fakecuda.c").read_text()
    defined = set(re.findall(r"^int (cu\w+)\(", source, re.MULTILINE))
    needed = {name for user in users for name in _undefined(user)} - defined
    rest = folder / "refused.c"
    rest.write_text("".join(f"int {name}(void) {{ return {_UNSUPPORTED}; }}\n" for name in sorted(needed)))
    library = folder / NAME
    options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror", f"-Wl,-soname,{NAME}", "-lpthread", "-ldl"]
    subprocess.check_call([str(compiler()), "-o", library, HERE / "fakecuda.c", rest, *options])
    return library


def _undefined(user: Path) -> list[str]:
    text = subprocess.check_output(["nm", "-D", "--undefined-only", user], text=True)
    return re.findall(r" U (cu[A-Z]\w+)", text)


class FakeGpu:
    """The fake driver's memory and faults, under the names of `standin_gpu.Gpu`."""

    dla_cores = 0

    def __init__(self, library: ctypes.CDLL) -> None:
        library.fake_free.restype = ctypes.c_size_t
        library.fake_owns.argtypes = [ctypes.c_ulonglong, ctypes.c_size_t]
        library.fake_allocate.restype = ctypes.c_void_p
        library.fake_allocate.argtypes = [ctypes.c_size_t]
        library.fake_release.argtypes = [ctypes.c_void_p]
        library.fake_is_recording.argtypes = [ctypes.c_void_p]
        library.fake_queue.argtypes = [ctypes.c_void_p, _WORK]
        library.fake_reset()
        object.__setattr__(self, "_library", library)
        object.__setattr__(self, "capturing", Capturing(library))
        object.__setattr__(self, "_kept", [launcher(self, library)])  # callbacks live as long as the GPU
        object.__setattr__(self, "faults", Faults(library))

    def __getattr__(self, name: str) -> Any:
        return _variable(self._library, name).value

    def __setattr__(self, name: str, value: Any) -> None:
        _variable(self._library, name).value = value

    @property
    def blocks(self) -> Any:
        """As many as there are on the device; only counted, and emptied by `pop`."""
        return Blocks(self._library, 0)

    @property
    def pinned(self) -> Any:
        """As many as there are of the host."""
        return Blocks(self._library, 1)

    def allocate(self, size: int, where: Any) -> int | None:
        found = self._library.fake_allocate(max(size, 1))
        return None if found is None else int(found)

    def free(self) -> int:
        return int(self._library.fake_free())

    def owns(self, address: int, size: int) -> bool:
        return bool(self._library.fake_owns(address, size))

    def queue(self, stream: int, work: Any) -> None:
        """Done at once, or part of the graph that the stream is being recorded into."""
        if stream in self.capturing:
            self._kept.append(_WORK(work))
            self._library.fake_queue(stream, self._kept[-1])
        else:
            work()

    def ready(self) -> bool:
        return not self.faults.no_driver

    def has_context(self) -> bool:
        return bool(self._library.fake_depth() > 0)


_WORK = ctypes.CFUNCTYPE(None)
_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_char)
)
_ARGUMENTS = ((0, 8), (8, 16), (16, 24), (24, 132), (136, 144))  # of prepare.cu, by offset


def launcher(gpu: FakeGpu, library: ctypes.CDLL) -> Any:
    """Does the launches of `library` by the kernel's host build; to be kept while it may launch."""

    def launch(name: bytes, shape: Any, memory: Any) -> int:
        arguments = [memory[start:end] for start, end in _ARGUMENTS]
        image = host_kernel.MAGIC + f" sm={gpu.sm} ".encode()
        try:
            host_kernel.function(gpu, image, name.decode())(tuple(shape[:3]), tuple(shape[3:6]), arguments)
        except host_kernel.Refused:
            return _ILLEGAL
        return 0

    callback = _LAUNCH(launch)
    ctypes.c_void_p.in_dll(library, "fake_launch").value = ctypes.cast(callback, ctypes.c_void_p).value
    return callback


class Capturing:
    """The streams that are being recorded; equal to {} when there are none."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __contains__(self, stream: int) -> bool:
        return bool(self._library.fake_is_recording(stream))

    def __eq__(self, other: object) -> bool:
        return other == {} and _variable(self._library, "recordings").value == 0

    __hash__ = None  # type: ignore[assignment]


class Blocks:
    """Live allocations; equal to {} when there are none."""

    def __init__(self, library: ctypes.CDLL, on_host: int) -> None:
        self._library, self._count = library, library.fake_count(on_host)

    def pop(self, address: int) -> None:
        """Give one back."""
        self._library.fake_release(address)

    def __eq__(self, other: object) -> bool:
        return self._count == 0 and other == {}

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self._count} blocks>"


class Faults(SimpleNamespace):
    """`lost` and `no_driver` are the library's, the rest are the stand-in's for TensorRT."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(strong_int8_fails=False, wrong_precisions=set(), unbuildable=set())
        self.__dict__["_library"] = library

    def __getattr__(self, name: str) -> Any:
        return bool(_variable(self._library, _FAULTS[name]).value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FAULTS:
            _variable(self._library, _FAULTS[name]).value = int(value)
        else:
            super().__setattr__(name, value)


_FAULTS = {"lost": "lost", "no_driver": "no_device", "unrecordable": "unrecordable"}


def _variable(library: ctypes.CDLL, name: str) -> Any:
    kind = ctypes.c_size_t if name == "total" else ctypes.c_int
    try:
        return kind.in_dll(library, f"fake_{name}")
    except ValueError as error:
        raise AttributeError(name) from error
