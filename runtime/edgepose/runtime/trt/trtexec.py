"""The `trtexec` command that builds what `edgepose build` builds, per release."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.trt.build import Settings
from edgepose.runtime.trt.precision import Attempt, Typing, attempts

BINARY = "/usr/src/tensorrt/bin/trtexec"  # where JetPack puts it; the pip package has none
RELEASES = ("8.5", "8.6", "10.3", "10.7", "10.13", "10.16", "11.0", "11.4")
# Unless told otherwise 11.x times with CUDA graphs, spinning and no copies: not comparable with 10.x.
_AS_BEFORE_11 = ("--includeDataTransfers", "--noSpinWait", "--noCudaGraph")
Shape = tuple[int | None, ...]  # None for the batch


def ways(release: str) -> tuple[Typing, ...]:
    """As `precision.typings`, without the library. Raises EdgeposeError for a release not known here."""
    if release not in RELEASES:
        raise EdgeposeError(f"--print-trtexec {release}: choose one of {', '.join(RELEASES)}")
    return {"8": ("weak",), "10": ("strong", "weak"), "11": ("strong",)}[release.partition(".")[0]]  # type: ignore[return-value]


def command(
    release: str, attempt: Attempt, files: tuple[str, str], inputs: Mapping[str, Shape], settings: Settings
) -> str:
    """One line for a shell. `files`: the ONNX file and the plan; `inputs`: shapes with None for the batch."""
    words = [BINARY, f"--onnx={files[0]}", f"--saveEngine={files[1]}"]
    for name, batch in zip(("min", "opt", "max"), settings.batches, strict=True):
        shapes = (f"{n}:{'x'.join(str(size or batch) for size in shape)}" for n, shape in inputs.items())
        words.append(f"--{name}Shapes={','.join(shapes)}")
    words += [f"--memPoolSize=workspace:{settings.workspace_mib}", "--profilingVerbosity=detailed"]
    words += [f"--{flag.lower()}" for flag in attempt.flags]
    if attempt.typing == "strong" and release.startswith("10."):
        words.append("--stronglyTyped")
    if attempt.precision == "fp32":
        words.append("--noTF32")
    if release != "8.5":
        words.append(f"--builderOptimizationLevel={settings.level}")
    if settings.sparsity:
        words.append("--sparsity=enable")
    if settings.dla_core is not None:
        words += [f"--useDLACore={settings.dla_core}", "--allowGPUFallback"]
    words += _AS_BEFORE_11 if release.startswith("11.") else ()
    return shlex.join(words)


def commands(
    release: str, precision: str, name: str, inputs: Mapping[str, Shape], settings: Settings
) -> list[str]:
    """What `edgepose build` tries for a graph's precision, in its order."""
    return [
        command(release, way, (f"{name}.{way.view}.onnx", f"{name}.{precision}.plan"), inputs, settings)
        for way in attempts(precision, ways(release))
    ]
