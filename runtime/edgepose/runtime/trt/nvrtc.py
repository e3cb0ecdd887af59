"""The CUDA kernel compiled on the machine it runs on, by NVIDIA's own run-time compiler: no nvcc needed."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from edgepose.runtime.errors import EdgeposeError, MissingLibrary

# Newest first. JetPack 5 has 11, JetPack 6 has 12, JetPack 7 has 13.
NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so")
TOOLKITS = (Path("/usr/local/cuda/lib64"), Path("/usr/local/cuda/targets/aarch64-linux/lib"))


def load() -> ctypes.CDLL:
    """The compiler's library: of the loader's path, of the CUDA toolkit, or of a wheel.

    Raises MissingLibrary when there is none.
    """
    for candidate in _candidates():
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    raise MissingLibrary(
        f"no {NAMES[-1]} on this machine, which compiles the preprocessing kernel; on a Jetson: sudo apt-get "
        "install cuda-nvrtc-12-6 (the CUDA release of its JetPack), elsewhere: pip install "
        "nvidia-cuda-nvrtc-cu12"
    )


def _candidates() -> Iterator[str]:
    yield from NAMES
    wheels = getattr(importlib.util.find_spec("nvidia"), "submodule_search_locations", None) or []
    for name in NAMES:
        yield from (str(folder / name) for folder in TOOLKITS if (folder / name).is_file())
        yield from (str(path) for wheel in wheels for path in Path(wheel).rglob(name))


def compiled(source: bytes, sm: int, library: ctypes.CDLL | None = None) -> bytes:
    """The machine code (a cubin) of CUDA source for GPUs of compute capability `sm` / 10.

    Raises MissingLibrary without the compiler, EdgeposeError with its words when it refuses.
    """
    compiler, program = library or load(), ctypes.c_void_p()
    create = compiler.nvrtcCreateProgram
    if create(ctypes.byref(program), source, b"prepare.cu", 0, None, None):
        raise EdgeposeError("NVRTC makes no program of the preprocessing kernel")
    try:
        options = (ctypes.c_char_p * 2)(f"--gpu-architecture=sm_{sm}".encode(), b"--std=c++17")
        if compiler.nvrtcCompileProgram(program, len(options), options):
            said = _text(compiler, program, "ProgramLog").decode(errors="replace").strip("\0\n ")
            raise EdgeposeError(f"NVRTC cannot compile the preprocessing kernel for sm_{sm}: {said}")
        return _text(compiler, program, "CUBIN")
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


def _text(compiler: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(compiler, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    content = ctypes.create_string_buffer(size.value)
    getattr(compiler, f"nvrtcGet{what}")(program, content)
    return content.raw
