"""Training tests run on one thread and from one seed: the same every time, and no quarrel over the cores."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def calm() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
