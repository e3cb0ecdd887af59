"""What an engine is tied to: the TensorRT release, the GPU and the board's Jetson Linux."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from edgepose.runtime.errors import EdgeposeError, HardwareError, require
from edgepose.runtime.trt.driver import require_gpu

ROOT = Path("/")  # where the board tells about itself, below /proc and /sys
RELEASE_FILE = Path("/etc/nv_tegra_release")
NO_JETSON = "none"
OLDEST, TOO_NEW = (8, 5), (12,)
NOT_ON_JETSON = (
    (11,),
    (11, 4, 1),
)  # from, and the first that works again: NVIDIA's migration notes for Jetson


@dataclass(frozen=True, slots=True)
class Board:
    """Where engines are built and run. An engine of another board is never run."""

    tensorrt: str  # such as "10.3.0"
    sm: int  # compute capability times ten
    l4t: str  # Jetson Linux, such as "36.4.3"; "none" off a Jetson
    gpu: str
    integrated: bool  # GPU and CPU share one memory

    @property
    def release(self) -> tuple[int, ...]:
        """TensorRT's numbers, major first."""
        return tuple(int(part) for part in re.findall(r"\d+", self.tensorrt))


def require_board() -> Board:
    """This board. Raises HardwareError without a GPU, MissingLibrary without TensorRT, EdgeposeError for an
    unknown release."""
    gpu = require_gpu()
    tensorrt = require("tensorrt").__version__
    board = Board(tensorrt, gpu.sm, jetson_linux() or NO_JETSON, gpu.name, gpu.integrated)
    if not OLDEST <= board.release < TOO_NEW:
        raise EdgeposeError(
            f"TensorRT {tensorrt}: edgepose is written for {_dotted(OLDEST)} up to but not including "
            f"{_dotted(TOO_NEW)}; JetPack 5.1 to 7 bring such a release"
        )
    if board.l4t != NO_JETSON and NOT_ON_JETSON[0] <= board.release < NOT_ON_JETSON[1]:
        raise HardwareError(
            f"TensorRT {tensorrt} does not support Jetson boards (11.4.1 is the first 11 that does, on "
            "JetPack 7.2.2); use the one of this JetPack: sudo apt-get install tensorrt python3-libnvinfer"
        )
    return board


def _dotted(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))


def jetson_linux(file: Path | None = None) -> str | None:
    """The release of Jetson Linux, such as "36.4.3"; None off a Jetson, "unreadable" for an unknown file."""
    file = file or RELEASE_FILE
    if not file.is_file():
        return None
    found = re.search(r"R(\d+).*?REVISION: ([\d.]+)", file.read_text())
    return f"{found[1]}.{found[2]}" if found else "unreadable"


def power_mode() -> str | None:
    """What `nvpmodel` calls it, such as MAXN or 15W; None where there is no nvpmodel."""
    if shutil.which("nvpmodel") is None:
        return None
    answer = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=10, check=False)
    match = re.search(r"NV Power Mode: (\S+)", answer.stdout)
    return match[1] if match else answer.stderr.strip() or "unreadable"


def conditions(board: Board) -> dict[str, str]:
    """What figures of the board depend on; clocks as now/most in MHz. What is unknown is left out."""
    found = {
        "board": _text(ROOT / "proc/device-tree/model"),
        "gpu": board.gpu,
        "sm": str(board.sm),
        "tensorrt": board.tensorrt,
        "jetson_linux": board.l4t,
        "power_mode": power_mode(),
        "gpu_mhz": _gpu_mhz(),
        "cpu_mhz": _mhz(
            ROOT / "sys/devices/system/cpu/cpu0/cpufreq", ("scaling_cur_freq", "cpuinfo_max_freq"), 1e3
        ),
    }
    return {name: value for name, value in found.items() if value is not None}


_GPUS = ("*.gpu", "*.ga10b", "*.gv11b", "*.gpu-gpc*")  # Orin, Orin and Xavier of older kernels, Thor


def _gpu_mhz() -> str | None:
    places = (path for name in _GPUS for path in sorted((ROOT / "sys/class/devfreq").glob(name)))
    return next((clock for place in places if (clock := _mhz(place, ("cur_freq", "max_freq"), 1e6))), None)


def _mhz(folder: Path, names: tuple[str, str], unit: float) -> str | None:
    """Two clocks, which the files give in 1/`unit` MHz."""
    values = [_text(folder / name) for name in names]
    if not all(value and value.isdigit() for value in values):
        return None
    return "/".join(f"{int(value or 0) / unit:.0f}" for value in values)


def _text(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None
