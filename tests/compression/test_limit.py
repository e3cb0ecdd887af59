"""The limit of the quantized network: as many people as the float one's, ties and extremes included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepose.compression.limit import matched_limit

QUALITIES = st.lists(st.floats(-0.125, 1.5, width=32), min_size=1, max_size=40)


@given(QUALITIES, st.floats(-0.3, 1.6), st.integers(0, 2**32 - 1))
def test_as_many_people_as_before_when_no_two_are_equal(before: list[float], limit: float, seed: int) -> None:
    qualities = np.array(before, np.float32)
    after = np.random.default_rng(seed).permutation(len(before)).astype(np.float32) * np.float32(0.01)
    found = matched_limit(limit, qualities, after)
    assert (after < found).sum() == (qualities < limit).sum()
    assert float(np.float32(found)) == found  # what the comparison in float32 will see


@given(
    QUALITIES, st.floats(-0.3, 1.6), st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=40, max_size=40)
)
def test_with_ties_the_nearest_number_and_rather_more(
    before: list[float], limit: float, values: list[float]
) -> None:
    qualities, after = np.array(before, np.float32), np.array(values[: len(before)], np.float32)
    wanted = int((qualities < limit).sum())
    found = int((after < matched_limit(limit, qualities, after)).sum())
    possible = [int((after < value).sum()) for value in (*after, 9)]
    best = min(abs(number - wanted) for number in possible)
    assert abs(found - wanted) == best
    assert found == max(number for number in possible if abs(number - wanted) == best)


def test_half_way_between_the_two_about_it() -> None:
    before = np.array([0.1, 0.3, 0.5, 0.7], np.float32)
    assert matched_limit(0.4, before, before + np.float32(0.25)) == pytest.approx(0.65)


@pytest.mark.parametrize(("limit", "found"), [(1.2, 1.15), (-0.9, -0.95)])
def test_everybody_and_nobody_stay_so_by_the_same_margin(limit: float, found: float) -> None:
    """The authors' 384 model looks again at everybody by a limit that no quality reaches."""
    before = np.array([0.2, 0.5, 0.9], np.float32)
    assert matched_limit(limit, before, before - np.float32(0.05)) == pytest.approx(found)


def test_neighbours_in_float32_are_told_apart() -> None:
    low = np.float32(0.5)
    after = np.array([low, np.nextafter(low, np.float32(1))], np.float32)
    assert (after < matched_limit(0.3, np.array([0.1, 0.4], np.float32), after)).tolist() == [True, False]
