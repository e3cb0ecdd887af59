"""`edgepose dial` on bundles, as a user runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner

from edgepose.export.dial import Curve
from edgepose.export.verb_dial import dial
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.topdown.gauge import FILE, gauge_of

DATA = "synthetic:count=3,seed=5"


def test_it_measures_and_draws(still_bundle: Path, still_refiner: Path, tmp_path: Path) -> None:
    plot = tmp_path / "curve.png"
    arguments = [still_bundle, still_refiner, "--data", DATA, "--budget-ms", "5000", "--plot", plot]
    result = CliRunner().invoke(dial, [*map(str, arguments), "--json"], catch_exceptions=False)
    values = json.loads(result.stdout)
    assert (values["first"], values["second"], values["precision"]) == ("still", "still", "int8")
    assert values["data"].startswith(DATA)
    curve = Curve.from_dict(values)
    assert [point.name for point in curve.points] == [
        *("never", "auto, 5000 ms", "auto", "always, 5000 ms", "always")
    ]
    assert [point.looked for point in curve.points] == [0, 1, 1, 1, 1]
    assert cv2.imread(str(plot)) is not None
    shown = CliRunner().invoke(dial, list(map(str, arguments[:4])), catch_exceptions=False).stdout
    assert all(len(line) <= 100 for line in shown.splitlines())
    assert "always" in shown


def test_a_gauge_is_kept_in_the_bundle(still_bundle: Path, still_refiner: Path, tmp_path: Path) -> None:
    refiner = Path(shutil.copy(still_refiner, tmp_path / "refiner.edgepose"))
    arguments = [still_bundle, refiner, "--data", DATA, "--gauge", "synthetic:count=30,seed=6", "--json"]
    values = json.loads(CliRunner().invoke(dial, list(map(str, arguments)), catch_exceptions=False).stdout)
    kept = Bundle.open(refiner).read(FILE, "a gauge")
    assert (kept["first"], kept["people"]) == ("still", 30)
    # The person that it always sees is hardly ever there: nothing is expected, so every pose stays.
    assert gauge_of(Bundle.open(refiner)).fine[0] > 1
    assert [point["score"]["ap"] for point in values["points"]] == [values["points"][0]["score"]["ap"]] * 9


@pytest.mark.parametrize("gauge", [DATA, "synthetic:count=1,seed=5,size=256x256", "synthetic:seed=5,count=5"])
def test_a_gauge_is_not_measured_on_a_picture_that_is_evaluated(
    still_bundle: Path, still_refiner: Path, gauge: str
) -> None:
    arguments = [still_bundle, still_refiner, "--data", DATA, "--gauge", gauge]
    refused = CliRunner().invoke(dial, list(map(str, arguments))).exception
    assert isinstance(refused, GateFailed)
    assert "its picture 0 is evaluated, too; gauge on others" in str(refused)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ("second twice", "cannot find people by itself"),
        ("first twice", "cannot refine poses; give a bundle of SHaRPose"),
    ],
)
def test_bundles_that_do_not_belong_together(
    still_bundle: Path, still_refiner: Path, order: str, said: str
) -> None:
    path = still_refiner if order == "second twice" else still_bundle
    result = CliRunner().invoke(dial, [str(path), str(path), "--data", DATA])
    assert isinstance(result.exception, EdgeposeError)
    assert said in str(result.exception)
