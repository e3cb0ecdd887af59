"""The fixtures that the compression and export tests share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_NAME = "edgepose_tests_fixtures"
if _NAME not in sys.modules:
    _found = importlib.util.spec_from_file_location(
        _NAME, Path(__file__).parent.parent / "compression" / "fixtures.py"
    )
    assert _found is not None
    assert _found.loader is not None
    sys.modules[_NAME] = importlib.util.module_from_spec(_found)
    _found.loader.exec_module(sys.modules[_NAME])

_fixtures = sys.modules[_NAME]
spec, images, feeds, standin = _fixtures.spec, _fixtures.images, _fixtures.feeds, _fixtures.standin
raw, traced, quantized = _fixtures.raw, _fixtures.traced, _fixtures.quantized
