"""The gauge: its formula, its file, and what a cascade does by it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from told_people import World

from edgepose.runtime.bundle import Bundle, publish
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.cascade import COARSE, FINE, FIRST, Cascade, Dial
from edgepose.runtime.topdown.gauge import FILE, Gauge, gauge_of

GAUGE = Gauge(coarse=(0.5, 2.0), fine=(0.25, 1.0))


def test_the_formula() -> None:
    first = np.array([0.64, 0.64, 0.0625, 0.3, 0.3], np.float32)
    quality = np.array([0.5, 0.5, 1.3, -0.1, np.nan], np.float32)
    stages = np.array([FIRST, COARSE, FINE, FINE, COARSE], np.uint8)
    expected = GAUGE.expected(first, quality, stages)
    np.testing.assert_allclose(expected, [0.64, 0.8 * 0.25, 0.5, 0, np.nan], atol=1e-6)


def test_who_is_looked_at_and_twice_goes_by_what_is_expected() -> None:
    """By first score s and quality; the limit is 0.9: a first look reaches s ^ 0.5 * 0.81 at best."""
    people = {
        (0.70, 0.85): (0, 0),  # 0.7 ^ 0.5 * 0.81 = 0.68 at best: nothing to gain
        (0.60, 0.95): (1, 0),  # promises enough: 0.77 * 0.9 = 0.70
        (0.50, 0.80): (1, 1),  # a second look is expected to reach 0.84 * 0.8 = 0.67
        (0.55, 0.60): (1, 0),  # it is expected to reach 0.86 * 0.6 = 0.52: it would be for nothing
    }
    world = World([s for s, _ in people], [q for _, q in people])
    result = Cascade(world.pair(0.9, GAUGE), Dial("auto"))(world.frame())
    looked, again = (world.looked_at(stage) for stage in (COARSE, FINE))
    for person, times in enumerate(people.values()):
        # The blank crop that it learns by is the first person's colour: four looks more.
        assert (looked.count(person) - 4 * (person == 0), again.count(person) - 4 * (person == 0)) == times
    scores = np.sort(result.poses.scores)[::-1]
    np.testing.assert_allclose(scores, [0.7, 0.6**0.5 * 0.95**2, 0.5**0.25 * 0.8, 0.55], atol=1e-5)


def bundle_with(tmp_path: Path, text: str | None) -> Bundle:
    content = tmp_path / "content"
    content.mkdir()
    if text is not None:
        (content / FILE).write_text(text)
    return publish(content, tmp_path / "bundle", Spec("sharpose", "x", 96, 128), {})


def test_a_bundle_carries_its_gauge(tmp_path: Path) -> None:
    values = {"version": 1, "coarse": [0.5, 2], "fine": [0.25, 1], "people": 99}
    assert gauge_of(bundle_with(tmp_path, json.dumps(values))) == GAUGE


def test_a_bundle_without_one_has_the_default(tmp_path: Path) -> None:
    assert gauge_of(bundle_with(tmp_path, None)) == Gauge()


@pytest.mark.parametrize(
    "values",
    [
        {"version": 2, "coarse": [1, 1], "fine": [1, 1]},
        {"version": 1, "coarse": [1, 1]},
        {"version": 1, "coarse": [1], "fine": [1, 1]},
        {"version": 1, "coarse": [1, -1], "fine": [1, 1]},
        {"version": 1, "coarse": ["a", 1], "fine": [1, 1]},
        [1],
    ],
)
def test_a_damaged_or_newer_gauge_is_refused(tmp_path: Path, values: object) -> None:
    with pytest.raises(EdgeposeError, match=r"gauge\.json cannot be read .*measure it again"):
        gauge_of(bundle_with(tmp_path, json.dumps(values)))
