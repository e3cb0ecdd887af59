"""`prepare.cu` built by a host compiler, behind what the stand-ins for CUDA load as compiled code."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgepose.runtime.trt.kernel import SOURCE

MAGIC = b"HOSTCUBIN"
TASK_BYTES = 108
_SIZES = {"prepare_f32": 4, "prepare_f16": 2}


def compiler() -> str | None:
    """A C++ compiler of this machine."""
    return shutil.which("c++")


@functools.cache
def build() -> Path:
    """The shared object, once for the process."""
    library = Path(tempfile.mkdtemp(prefix="edgepose-kernel-")) / "prepare.so"
    options = ["-x", "c++", "-std=c++17", "-O2", "-Wall", "-Werror", "-DEDGEPOSE_HOST", "-shared", "-fPIC"]
    subprocess.check_call([str(compiler()), *options, str(SOURCE), "-o", str(library)])
    return library


def cubin(source: bytes, sm: int) -> bytes:
    """What the stand-in for NVRTC makes: a note where the host's build lies, good for one `sm` alone."""
    assert source == SOURCE.read_bytes()
    return MAGIC + f" sm={sm} {build()}".encode() + b"\0"


class Refused(Exception):
    """What the driver says of code or arguments that are not right."""


def function(gpu: Any, image: bytes, name: str) -> Any:
    """The kernel `name` of a cubin: called with (blocks, threads, the arguments' bytes as a list)."""
    if not image.startswith(MAGIC) or f" sm={gpu.sm} ".encode() not in image:
        raise Refused("no kernel image is available for execution on the device")
    if name not in _SIZES:
        raise Refused("named symbol not found")

    def run(blocks: tuple[int, int, int], threads: tuple[int, int, int], arguments: list[bytes]) -> None:
        if [len(argument) for argument in arguments] != [8, 8, 8, TASK_BYTES, 8]:
            raise Refused("invalid argument: the kernel takes three addresses, a Task and an address")
        _run(gpu, _SIZES[name], (blocks, threads), arguments)

    return run


def _run(gpu: Any, size: int, launch: tuple[Any, Any], arguments: list[bytes]) -> None:
    plane, chroma, target = (int.from_bytes(argument, "little") for argument in arguments[:3])
    inverses, task = int.from_bytes(arguments[4], "little"), arguments[3]
    _, height, pitch, form = np.frombuffer(task, np.int32)[:4]
    out_w, out_h = np.frombuffer(task, np.int32)[10:12]
    (blocks, threads), batch = launch, launch[0][2]
    seen = {"frame": (plane, pitch * height), "input": (target, batch * 3 * out_w * out_h * size)}
    if form == 0:
        seen["chroma"] = (chroma, pitch * height // 2)
    for what, (address, length) in seen.items():
        if not gpu.owns(address, int(length)):
            raise Refused(f"an illegal memory access was encountered ({what})")
    made = np.empty((batch, 3, out_h, out_w), np.float32)
    library = ctypes.CDLL(str(build()))
    pointers = (ctypes.c_void_p(plane), ctypes.c_void_p(chroma), made.ctypes.data_as(ctypes.c_void_p))
    library.prepare_on_host(*pointers, ctypes.c_char_p(task), ctypes.c_void_p(inverses or None), batch)
    kind = np.float32 if size == 4 else np.float16
    memory = (ctypes.c_char * (made.size * size)).from_address(target)
    there = np.frombuffer(memory, kind).reshape(made.shape)
    rows, columns = blocks[1] * threads[1], blocks[0] * threads[0]  # the rest nobody wrote
    there[:, :, :rows, :columns] = made[:, :, :rows, :columns]
