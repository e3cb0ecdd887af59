"""The trtexec lines: only options the release's own trtexec knows, written down by hand from its sources."""

from __future__ import annotations

import shlex

import pytest

from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.trt.build import Settings
from edgepose.runtime.trt.trtexec import BINARY, RELEASES, commands

INPUTS = {"images": (None, 3, 256, 192)}
COMMON = {
    *("--onnx", "--saveEngine", "--minShapes", "--optShapes", "--maxShapes", "--memPoolSize"),
    *("--profilingVerbosity", "--sparsity", "--useDLACore", "--allowGPUFallback", "--noTF32"),
}
LEVEL = {"--builderOptimizationLevel"}
PRECISION = {"--int8", "--fp16"}
TIMES = {"--includeDataTransfers", "--noSpinWait", "--noCudaGraph"}
KNOWN = {
    "8.5": COMMON | PRECISION,
    "8.6": COMMON | PRECISION | LEVEL,
    **dict.fromkeys(("10.3", "10.7", "10.13", "10.16"), COMMON | PRECISION | LEVEL | {"--stronglyTyped"}),
    **dict.fromkeys(("11.0", "11.4"), COMMON | LEVEL | TIMES),
}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
def test_every_option_is_known_to_the_release(release: str, precision: str) -> None:
    settings = Settings((1, 2, 4), 512, 4, sparsity=True, dla_core=1)
    for line in commands(release, precision, "pose", INPUTS, settings):
        binary, *words = shlex.split(line)
        assert binary == BINARY
        assert {word.partition("=")[0] for word in words} <= KNOWN[release]


def test_the_lines_say_what_was_asked() -> None:
    lines = commands("10.3", "int8", "pose", INPUTS, Settings((1, 2, 4), 512))
    assert lines[0] == (
        f"{BINARY} --onnx=pose.int8.trt-typed.onnx --saveEngine=pose.int8.plan "
        "--minShapes=images:1x3x256x192 --optShapes=images:2x3x256x192 "
        "--maxShapes=images:4x3x256x192 --memPoolSize=workspace:512 "
        "--profilingVerbosity=detailed --stronglyTyped --builderOptimizationLevel=3"
    )
    assert "--onnx=pose.int8.trt.onnx" in lines[1]
    assert "--int8 --fp16" in lines[1]
    assert "--int8" not in commands("11.4", "int8", "pose", INPUTS, Settings())[0]
    assert "--onnx=pose.fp32.onnx" in commands("8.6", "fp16", "pose", INPUTS, Settings())[0]


def test_an_unknown_release_is_refused() -> None:
    with pytest.raises(EdgeposeError, match=r"--print-trtexec 9\.1: choose one of 8\.5"):
        commands("9.1", "int8", "pose", INPUTS, Settings())
