"""What poses are expected to reach: the fit against data made by its own formula, the rest in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from told_people import Told, World

from edgepose.export.gauging import WIDEST, fitted, gauged, reached
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.skeleton import COCO17


@given(st.floats(0, WIDEST[0]), st.floats(0, WIDEST[1]))
@example(0.0, 2.2823911004942485)
@settings(max_examples=20)
def test_the_exponents_that_made_the_data_are_found(a: float, b: float) -> None:
    generator = np.random.default_rng(3)
    first, quality = generator.uniform(0.25, 1, 300), generator.uniform(0.6, 1, 300)
    assert fitted(first, quality, first**a * quality**b) == pytest.approx((a, b), abs=2e-3)


def test_noise_moves_them_no_further_than_its_size_allows() -> None:
    generator = np.random.default_rng(4)
    first, quality = generator.uniform(0.25, 1, 4000), generator.uniform(0.5, 1, 4000)
    oks = (first**0.5 * quality**3 + generator.normal(0, 0.1, 4000)).clip(0, 1)
    assert fitted(first, quality, oks) == pytest.approx((0.5, 3), rel=0.06)


def test_people_are_gauged_by_what_both_looks_reach() -> None:
    world = World([0.2, *np.linspace(0.3, 0.9, 12).tolist()], [0.5, *np.linspace(1.1, 0.6, 12).tolist()])
    told = Told(world)
    seen = reached(world.pair(9.0), told, 0.25)
    assert len(seen.first) == 3 * 12  # pictures, people of 0.25 or more
    np.testing.assert_allclose(seen.first[:12], world.scores[1:], atol=1e-6)
    np.testing.assert_allclose(seen.quality[:12], np.minimum(world.qualities[1:], 1), atol=1e-6)
    # The second look is right; the first one is a heatmap pixel, 29/23 of the frame's, too far to the left.
    np.testing.assert_allclose(seen.fine, 1, atol=1e-5)
    terms = np.exp(-((29 / 23) ** 2) / (2 * 100 * (2 * COCO17.sigma_array()) ** 2))
    np.testing.assert_allclose(seen.coarse, terms.mean(), atol=1e-4)
    gauge = gauged(seen)
    assert gauge.fine == pytest.approx((0, 0), abs=1e-3)  # always 1, whatever is promised
    assert max(gauge.coarse) > 0.1


def test_people_who_are_not_there_reach_nothing() -> None:
    world = World([0.5] * 12, [0.9] * 12)
    told = Told(world)
    told.everyone = told.everyone[:6]
    seen = reached(world.pair(9.0), told, 0.25)
    assert (seen.fine > 0.99).tolist() == ([True] * 6 + [False] * 6) * 3
    assert seen.fine[6:12].max() < 1e-6


def test_too_few_people() -> None:
    world = World([0.5] * 9, [0.9] * 9)
    with pytest.raises(EdgeposeError, match="finds 27 people in it, 30 are the fewest"):
        reached(world.pair(9.0), Told(world), 0.25)
