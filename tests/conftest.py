"""What all tests share: hypothesis without deadlines, because a loaded machine is no fault of the code."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # for the modules here: pytest's importlib mode adds no folder

settings.register_profile("edgepose", deadline=None)
settings.load_profile("edgepose")
