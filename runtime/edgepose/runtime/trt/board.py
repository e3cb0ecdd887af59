"""What an engine is tied to: the TensorRT release, the GPU and the board's Jetson Linux."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgepose.runtime.errors import require
from edgepose.runtime.trt.driver import require_gpu

RELEASE_FILE = Path("/etc/nv_tegra_release")
NO_JETSON = "none"


@dataclass(frozen=True, slots=True)
class Board:
    """Where engines are built and run. An engine of another board is never run."""

    tensorrt: str  # such as "10.3.0"
    sm: int  # compute capability times ten
    l4t: str  # Jetson Linux, such as "36.4.3"; "none" off a Jetson
    gpu: str
    integrated: bool  # GPU and CPU share one memory

    @property
    def release(self) -> tuple[int, int]:
        """TensorRT's major and minor number."""
        major, minor, *_ = (int(part) for part in re.findall(r"\d+", self.tensorrt))
        return major, minor


def require_board() -> Board:
    """This board. Raises HardwareError without a GPU, MissingLibrary without TensorRT."""
    gpu = require_gpu()
    tensorrt = require("tensorrt").__version__
    return Board(tensorrt, gpu.sm, jetson_linux() or NO_JETSON, gpu.name, gpu.integrated)


def jetson_linux(file: Path | None = None) -> str | None:
    """The release of Jetson Linux, such as "36.4.3"; None off a Jetson, "unreadable" for an unknown file."""
    file = file or RELEASE_FILE
    if not file.is_file():
        return None
    found = re.search(r"R(\d+).*?REVISION: ([\d.]+)", file.read_text())
    return f"{found[1]}.{found[2]}" if found else "unreadable"
