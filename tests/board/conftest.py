"""Where the tests of this folder run: on a board with TensorRT, and on the stand-in, in every gate."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import host_kernel
import pytest

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.trt.board import require_board
from edgepose.runtime.trt.cuda import LIBRARIES, open_cuda
from edgepose.runtime.trt.engines import batches_for

BUNDLE = "EDGEPOSE_BOARD_BUNDLE"  # names a bundle with every view, exported on a workstation
ENGINES = "EDGEPOSE_BOARD_ENGINES"  # where they are kept; build/board-engines without it
RELEASES = ("10.3",)  # of the stand-in; tests/runtime/trt has all of them


@dataclass(frozen=True, slots=True)
class Place:
    """What the tests run on."""

    bundle: Bundle
    root: Path  # of the engines
    library: str  # of LIBRARIES
    data: str  # labelled pictures
    batches: tuple[int, int, int]


def _standins() -> None:
    """The fixtures of tests/runtime/trt, which need onnx: a board has none."""
    if importlib.util.find_spec("onnx") is None or "board_standins" in sys.modules:
        return
    path = Path(__file__).parents[1] / "runtime" / "trt" / "conftest.py"
    found = importlib.util.spec_from_file_location("board_standins", path)
    assert found is not None
    assert found.loader is not None
    sys.modules["board_standins"] = importlib.util.module_from_spec(found)
    found.loader.exec_module(sys.modules["board_standins"])


_standins()
if "board_standins" in sys.modules:
    _module = sys.modules["board_standins"]
    graphs, bundle, labelled, install = _module.graphs, _module.bundle, _module.labelled, _module.install
    two_graphs = _module.two_graphs


def _real(request: pytest.FixtureRequest) -> Bundle:
    try:
        require_board()
    except EdgeposeError as error:
        pytest.skip(f"not a board: {error}")
    if BUNDLE not in os.environ:
        pytest.skip(
            f"{BUNDLE} names no bundle; export one on a workstation with --compressed and copy it here"
        )
    return Bundle.open(os.environ[BUNDLE])


WHERE = [
    *RELEASES,
    *(pytest.param(library, marks=pytest.mark.board, id=f"board-{library}") for library in LIBRARIES),
]


@pytest.fixture(params=WHERE)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The board, by each CUDA library it has; and the stand-in for several releases."""
    monkeypatch.setenv("EDGEPOSE_ENGINES", str(tmp_path / "engines"))
    if request.param in LIBRARIES:
        real = _real(request)
        try:
            open_cuda(request.param).close()
        except EdgeposeError as error:
            pytest.skip(str(error))
        # Engines are kept from test to test, for a board builds for minutes.
        root = Path(os.environ.get(ENGINES) or request.config.rootpath / "build" / "board-engines")
        monkeypatch.setenv("EDGEPOSE_ENGINES", str(root))
        data = "synthetic:count=24,seed=7"
        return Place(real, root, request.param, data, batches_for(real.spec))
    if "board_standins" not in sys.modules:
        pytest.skip("no onnx, which the stand-in for TensorRT needs; the tests of the board are the others")
    request.getfixturevalue("install")(request.param)
    small: Bundle = request.getfixturevalue("bundle")
    pictures = str(request.getfixturevalue("labelled"))
    return Place(small, tmp_path / "engines", "pycuda", pictures, (1, 2, 4))


@pytest.fixture
def kernel(place: Place, request: pytest.FixtureRequest) -> None:
    """What runs the kernel: a GPU, or for the stand-in what a C++ compiler makes of it."""
    if request.node.callspec.params["place"] not in LIBRARIES and host_kernel.compiler() is None:
        pytest.skip("no C++ compiler (c++) to build the kernel for the host")


@pytest.fixture
def place_of_crops(place: Place, request: pytest.FixtureRequest) -> Place:
    """The same with a network that is shown people one by one."""
    if place.bundle.spec.resize == "crop":
        return place
    if request.node.callspec.params["place"] in LIBRARIES:
        pytest.skip("this network is shown whole pictures")
    small: Bundle = request.getfixturevalue("two_graphs")
    return replace(place, bundle=small, batches=batches_for(small.spec))
