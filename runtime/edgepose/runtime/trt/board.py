"""What an engine is tied to: the TensorRT release, the GPU and the board's Jetson Linux."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgepose.runtime.errors import EdgeposeError, HardwareError, require
from edgepose.runtime.trt.driver import require_gpu

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
