"""The ledger's rows: artefacts whose error is known in advance get the figures that closed forms say."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgepose.calibration import measure
from edgepose.calibration.dataset import Dataset, open_dataset
from edgepose.calibration.evaluation import Shown
from edgepose.calibration.ledger import Gates
from edgepose.calibration.measure import Artefact, Run, ledger_of, run_all
from edgepose.export import plots
from edgepose.export.verification import TorchBackend
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.preprocess import U8, Letterbox
from edgepose.runtime.skeleton import COCO17
from edgepose.runtime.spec import Spec

SPEC = Spec("qrpose", "qrpose_tiny", 256, 256)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return open_dataset("synthetic:count=8,seed=5,size=320x240")


def knows_the_truth(dataset: Dataset, shift_px: float = 0.0, again: float = 0.0) -> Callable[[U8], Poses]:
    """An estimator that gives the labels back, every joint moved to the right; and once more, if `again` is
    the score for that."""
    answers = {}
    for index in range(len(dataset)):
        people = dataset.people(index)
        keypoints = np.stack([p.keypoints for p in people]) if people else np.zeros((0, 17, 2), np.float32)
        moved = keypoints + np.array([shift_px, 0], np.float32)
        scores = np.full(len(people), 0.9, np.float32)
        if again:
            moved = np.concatenate([moved, moved + 1])
            scores = np.concatenate([scores, np.full(len(people), again, np.float32)])
        answers[dataset[index].image.tobytes()] = Poses(
            moved, np.ones(moved.shape[:2], np.float32), scores, boxes_of(moved)
        )
    return lambda image: answers[image.tobytes()]


def test_a_perfect_artefact_scores_one_and_a_shifted_one_drifts_by_its_shift(dataset: Dataset) -> None:
    found = [
        Artefact("torch FP32", knows_the_truth(dataset), 100),
        Artefact("same", knows_the_truth(dataset), 100),
        Artefact("shifted", knows_the_truth(dataset, shift_px=4.0), 50),
    ]
    runs = run_all(found, Shown(dataset))
    ledger = ledger_of(runs, Shown(dataset), SPEC, Gates(max_ap_loss=0.01, max_median_drift_px=1.0), 0.0)
    first, same, shifted = ledger.rows
    assert first.score.ap == pytest.approx(1.0)
    assert (same.drift.p50_px, same.difference.low, same.difference.high) == (0.0, 0.0, 0.0)
    # Drift is in pixels of the network input: 320 source pixels become 256.
    assert shifted.drift.p50_px == pytest.approx(4.0 * 256 / 320, abs=1e-3)
    assert shifted.score.ap < 1.0
    assert any("shifted" in failure for failure in ledger.verdict())
    assert not any("same" in failure for failure in ledger.verdict())
    assert ledger.data["evaluation"] == dataset.source


def test_planted_duplicates_fail_their_gate_and_no_other(dataset: Dataset) -> None:
    found = [
        Artefact("torch FP32", knows_the_truth(dataset), 100),
        Artefact("twice", knows_the_truth(dataset, again=0.5), 100),
        Artefact("hardly twice", knows_the_truth(dataset, again=0.05), 100),
    ]
    ledger = ledger_of(run_all(found, Shown(dataset)), Shown(dataset), SPEC, Gates(), 0.0)
    people = ledger.baseline.score.people
    assert people == sum(len(dataset.people(index)) for index in range(len(dataset))) > 5
    # The copies score less than everybody, so AP, AR and drift do not see them.
    assert ledger.verdict() == [
        f"twice: {people} duplicates (poses of a person already found), 2 are allowed: "
        f"0 of the baseline and 2 more among {people} people"
    ]
    assert (
        ledger_of(
            run_all(found, Shown(dataset)), Shown(dataset), SPEC, Gates(max_more_duplicates=1), 0.0
        ).verdict()
        == []
    )


def test_every_row_says_what_its_scores_are_worth(dataset: Dataset) -> None:
    found = [Artefact("torch FP32", knows_the_truth(dataset), 1), Artefact("nobody", nobody, 1)]
    first, second = ledger_of(run_all(found, Shown(dataset)), Shown(dataset), SPEC, Gates(), 0.0).rows
    assert first.quality.matched == first.quality.poses == first.score.people
    assert first.quality.ece == pytest.approx(0.1, abs=1e-6)  # all reach 1 and say 0.9
    assert (first.quality.rho, first.quality.ap_gap) == (None, 0.0)
    assert (second.quality.poses, second.quality.ece) == (0, None)
    low = ledger_of(run_all(found, Shown(dataset)), Shown(dataset), SPEC, Gates(), 100.0).baseline
    assert low.quality.poses == low.score.people < first.score.people


def test_ranks_are_compared_with_the_baselines_in_its_favour_or_against_it(dataset: Dataset) -> None:
    """The same poses, some far off, scored by how near they are, or the other way round."""
    near, far = (knows_the_truth(dataset, shift_px=shift) for shift in (0.0, 4.0))
    large = np.median([p.box[3] for index in range(len(dataset)) for p in dataset.people(index)])

    def scored(honest: bool) -> Callable[[U8], Poses]:
        def estimate(image: U8) -> Poses:
            good, bad = near(image), far(image)
            high = good.boxes[:, 3] - good.boxes[:, 1] > large
            keypoints = np.where(high[:, None, None], good.keypoints, bad.keypoints)
            scores = np.where(high == honest, 0.9, 0.4).astype(np.float32)
            return replace(good, keypoints=keypoints, scores=scores, boxes=boxes_of(keypoints))

        return estimate

    found = [Artefact(str(honest), scored(honest), 1) for honest in (False, True)]
    for order, sign in ((found, 1), (found[::-1], -1)):
        row = ledger_of(run_all(order, Shown(dataset)), Shown(dataset), SPEC, Gates(), 0.0).rows[1]
        for interval in (row.rho_difference, row.tau_difference):
            assert sign * interval.low > 0.5
            assert sign * interval.high > 0.5


def test_the_reliability_plot_is_drawn_of_whatever_there_is(dataset: Dataset) -> None:
    found = [Artefact("torch FP32", knows_the_truth(dataset), 1), Artefact("nobody", nobody, 1)]
    ledger = ledger_of(run_all(found, Shown(dataset)), Shown(dataset), SPEC, Gates(), 0.0)
    first, second = ledger.rows
    unjudged = replace(first, quality=None)  # of an old ledger
    drawn = [
        plots.reliability(replace(ledger, rows=rows))
        for rows in ((first, first), (first, second), (second, first), (unjudged, unjudged))
    ]
    assert all(picture.startswith(b"\x89PNG") for picture in drawn)
    assert len(set(drawn)) == 4


def nobody(image: U8) -> Poses:
    return Poses.empty()


def test_behind_a_camera_the_same_artefact_sees_other_pictures_and_is_timed_as_before(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The camera takes an hour a picture, the network a second."""
    now, seen = [0.0], []
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Negative:
        name = "negative"

        def through(self, image: U8) -> U8:
            now[0] += 3600
            return 255 - image

    def estimate(image: U8, boxes: str) -> Poses:
        now[0] += 1
        seen.append((image.tobytes(), boxes))
        return Poses.empty()

    people = [f"people of {index}" for index in range(len(dataset))]
    shown = Shown(dataset, [(each,) for each in people])  # type: ignore[misc]
    plain = Artefact("INT8", estimate, 7)
    filmed = plain.behind(Negative())  # type: ignore[arg-type]
    runs = run_all([plain, filmed], shown)
    pictures = [dataset[index].image for index in range(len(dataset))]
    assert seen[2::2] == [(image.tobytes(), told) for image, told in zip(pictures, people, strict=True)]
    assert seen[3::2] == [
        ((255 - image).tobytes(), told) for image, told in zip(pictures, people, strict=True)
    ]
    assert runs[0].seconds == runs[1].seconds == [1.0] * len(dataset)
    assert filmed.stage == "negative, INT8"
    rows = ledger_of(runs, Shown(dataset), SPEC, Gates(), 0.0).rows
    assert [row.camera for row in rows] == [None, "negative"]


def test_every_artefact_sees_every_picture_and_is_timed(dataset: Dataset) -> None:
    seen: dict[str, list[bytes]] = {"a": [], "b": []}

    def spy(name: str) -> Callable[[U8], Poses]:
        def estimate(image: U8) -> Poses:
            seen[name].append(image.tobytes())
            return Poses.empty()

        return estimate

    runs = run_all([Artefact(name, spy(name), 0) for name in seen], Shown(dataset))
    pictures = [dataset[index].image.tobytes() for index in range(len(dataset))]
    assert seen["a"][1:] == seen["b"][1:] == pictures  # the first call of each only warms up
    assert all(isinstance(run, Run) and len(run.seconds) == len(run.poses) == len(dataset) for run in runs)


def test_the_torch_backend_answers_by_name() -> None:
    class Doubler(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"scores": images.mean((1, 2, 3)) * 2}

    with TorchBackend(Doubler()) as backend:
        out = backend.run({"images": np.full((1, 3, 4, 4), 1.5, np.float32)})
    np.testing.assert_allclose(out["scores"], [3.0])


def test_letterboxed_drift_uses_the_scale_of_each_picture() -> None:
    assert Letterbox.fit((320, 240), (256, 256)).scale_x == pytest.approx(0.8)


def test_the_plots_hold_the_baseline_against_what_came_of_it_not_against_a_camera(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        Artefact(name, knows_the_truth(dataset), 1) for name in ("torch FP32", "ONNX INT8 (CPU)", "nv12")
    ]
    ledger = ledger_of(run_all(found, Shown(dataset)), Shown(dataset), SPEC, Gates(), 0.0)
    *clean, filmed = ledger.rows
    ledger = replace(ledger, rows=(*clean, replace(filmed, camera="nv12")))
    legends: list[list[str]] = []

    def shown(figure: Any) -> bytes:
        legends.append([text.get_text() for text in figure.axes[0].get_legend().get_texts()])
        return b""

    monkeypatch.setattr(plots, "_png", shown)
    plots.per_joint(ledger, COCO17)
    plots.reliability(ledger)
    assert [[label.partition(":")[0] for label in labels] for labels in legends] == [
        ["torch FP32", "ONNX INT8 (CPU)"]
    ] * 2
