"""The quality below which the quantized network looks again: as many people as the float one."""

from __future__ import annotations

import numpy as np

from edgepose.runtime.poses import F32


def matched_limit(limit: float, before: F32, after: F32) -> float:
    """The limit for qualities `after` (N,) that chooses as many people as `limit` does `before` (N,).

    Between the two qualities about it, half way. Where equal qualities leave no limit for that number, the
    nearest number, rather more people than fewer. Where `limit` chooses nobody or everybody, it is moved as
    the median quality was, and by no more than keeps choosing so: the calibration says nothing about where.
    """
    wanted = int((before < limit).sum())
    values, counts = np.unique(after, return_counts=True)
    chosen = np.concatenate([[0], np.cumsum(counts)])  # by a limit just above the first 0, 1, … values
    place = len(chosen) - 1 - int(np.abs(chosen - wanted)[::-1].argmin())
    lowest = values[place - 1] if place > 0 else -np.inf
    highest = values[place] if place < len(values) else np.inf
    if np.isfinite(lowest) and np.isfinite(highest):
        middle = (float(lowest) + float(highest)) / 2
    else:
        middle = limit + float(np.median(after) - np.median(before))
    return float(np.clip(np.float32(middle), np.nextafter(lowest, np.float32(np.inf)), highest))
