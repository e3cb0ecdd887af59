"""The public surface of each TensorRT release edgepose supports, as its real Python bindings have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# The last has no wheel: 8.6 less what NVIDIA's own binding sources of tag 8.5.2 lack.
RELEASES = (*json.loads((HERE / "wheels.json").read_text()), "8.5")

_NOT_IN_8_5: dict[str, tuple[str, ...]] = {
    "IBuilderConfig": (
        "builder_optimization_level",
        "max_aux_streams",
        "hardware_compatibility_level",
        "get_preview_feature",
        "set_preview_feature",
    ),
    "BuilderFlag": ("VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "FP8"),
    "OnnxParser": ("set_flag", "get_flag", "clear_flag", "flags"),
    "INetworkDefinition": ("add_cast", "add_normalization"),
    "Runtime": ("engine_host_code_allowed", "load_runtime", "temporary_directory", "tempfile_control_flags"),
    "ICudaEngine": ("hardware_compatibility_level", "num_aux_streams"),
}
_CLASSES_NOT_IN_8_5 = ("HardwareCompatibilityLevel", "OnnxParserFlag", "INormalizationLayer", "ICastLayer")


def surface(release: str) -> dict[str, Any]:
    """`version` and `names` of a release; the form is that of `extract.py`."""
    if release != "8.5":
        return dict(json.loads((HERE / f"{release}.json").read_text()))
    names = {n: c for n, c in surface("8.6")["names"].items() if n not in _CLASSES_NOT_IN_8_5}
    return {"version": "8.5.2", "names": {n: _without(c, _NOT_IN_8_5.get(n, ())) for n, c in names.items()}}


def _without(entry: dict[str, Any], gone: tuple[str, ...]) -> dict[str, Any]:
    parts = ("methods", "readable", "writable", "values")
    return {
        k: {n: v for n, v in part.items() if n not in gone} if k in parts else part
        for k, part in entry.items()
    }
