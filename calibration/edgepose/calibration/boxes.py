"""Where the people of a picture are, for networks that see one person at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Protocol

import numpy as np

from edgepose.calibration.coco_json import PERSON
from edgepose.calibration.sample import FAR, Sample
from edgepose.runtime.backend import CPU_VIEWS, open_backend
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.decode import DECODERS
from edgepose.runtime.drafts import read_json
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.estimator import Estimator
from edgepose.runtime.oks import F64
from edgepose.runtime.poses import Poses
from edgepose.runtime.preprocess import U8
from edgepose.runtime.topdown.crop import visible
from edgepose.runtime.topdown.people import boxes_around

WHAT = "COCO-format detections"
FORM = '[{"image_id": 1, "category_id": 1, "bbox": [x, y, width, height], "score": 0.9}, …]'
Key = int | str  # a picture's id, or its file's name without folders


class Boxes(NamedTuple):
    """The people of one picture. Boxes are cut off at its edges, and none is empty."""

    boxes: F64  # (P, 4) x, y, width, height in pixels of the picture
    scores: F64  # (P,)


class Finder(Protocol):
    """Something that knows where people are."""

    def find(self, samples: Iterable[Sample]) -> list[Boxes]:
        """For each picture. Raises EdgeposeError when there is nobody in all of them."""


def size_of(sample: Sample) -> tuple[int, int]:
    """(width, height) of the picture."""
    return sample.image.shape[1], sample.image.shape[0]


def require_somebody(found: list[Boxes], source: str) -> list[Boxes]:
    """What was found, if anything was."""
    if not sum(len(one.boxes) for one in found):
        raise EdgeposeError(
            f"{source}: finds nobody in any of the {len(found)} pictures; name another source of boxes"
        )
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """The labelled boxes, each of score 1; crowds and people without a labelled joint have none."""

    def find(self, samples: Iterable[Sample]) -> list[Boxes]:
        """As `Finder`."""
        return require_somebody([_labelled(sample) for sample in samples], "the labels")


def _labelled(sample: Sample) -> Boxes:
    shown = [person.box for person in sample.people if person.visibility.any() and not person.crowd]
    boxes, _ = visible(np.array(shown, np.float64), size_of(sample))
    return Boxes(boxes, np.ones(len(boxes)))


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What a detector wrote into a file."""

    path: Path
    by_picture: Mapping[Key, Boxes]
    least: float = field(default=0.0)  # score of a box that counts

    def find(self, samples: Iterable[Sample]) -> list[Boxes]:
        """As `Finder`; also refused when the file is about other pictures altogether."""
        found, met = [], False
        for sample in samples:
            known = self._of(sample)
            met = met or known is not None
            found.append(_sure(known, self.least, size_of(sample)))
        if not met:
            raise EdgeposeError(
                f"{self.path}: is about other pictures: none of its {len(self.by_picture)} (such as "
                f"{next(iter(self.by_picture))!r}) is among the {len(found)} given; name detections in these"
            )
        return require_somebody(found, f"{self.path} (scores of {self.least:g} and more)")

    def _of(self, sample: Sample) -> Boxes | None:
        by_name = self.by_picture.get(PurePath(sample.file_name).name) if sample.file_name else None
        return self.by_picture.get(sample.image_id, by_name)


def _sure(known: Boxes | None, least: float, size: tuple[int, int]) -> Boxes:
    if known is None:
        return Boxes(np.zeros((0, 4)), np.zeros(0))
    sure = known.scores >= least
    boxes, kept = visible(known.boxes[sure], size)
    return Boxes(boxes, known.scores[sure][kept])


def read_detections(path: Path, least: float = 0.0) -> Detections:
    """The people in a file of COCO-format detections; those of a score below `least` do not count.

    Each has an `image_id` or `file_name`, a `category_id`, a `bbox` and a `score`. Raises EdgeposeError when
    the file is missing or foreign, or has no person in it.
    """
    content = read_json(path, WHAT)
    if not isinstance(content, list):
        raise EdgeposeError(f"{path}: not {WHAT}: a list {FORM} was expected")
    gathered: dict[Key, list[tuple[float, ...]]] = {}
    for place, item in enumerate(content):
        key, category, numbers = _detection(path, place, item)
        if category == PERSON:
            gathered.setdefault(key, []).append(numbers)
    if not gathered:
        raise EdgeposeError(f"{path}: no person (category_id {PERSON}) is in these {len(content)} detections")
    tables = {key: np.array(rows, np.float64) for key, rows in gathered.items()}
    return Detections(path, {key: Boxes(rows[:, :4], rows[:, 4]) for key, rows in tables.items()}, least)


def _detection(path: Path, place: int, item: Any) -> tuple[Key, Any, tuple[float, ...]]:
    """The picture, the category, and x, y, width, height and score of one entry."""
    values = item if isinstance(item, dict) else {}
    key = values.get("image_id")
    if key is None and isinstance(values.get("file_name"), str):
        key = PurePath(values["file_name"]).name
    missing = [name for name in ("category_id", "bbox", "score") if name not in values]
    if missing or not isinstance(key, int | str):
        wanted = missing[0] if missing else "image_id or file_name"
        raise EdgeposeError(f"{path}: detection {place} has no {wanted}; {FORM} was expected")
    box = values["bbox"]
    numbers = [*(box if isinstance(box, list) else [box]), values["score"]]
    real = all(isinstance(number, int | float) and abs(number) < FAR for number in numbers)
    if len(numbers) != 5 or not real:
        raise EdgeposeError(
            f"{path}: the bbox and score of detection {place} are not five numbers; {FORM} was expected"
        )
    return key, values["category_id"], tuple(float(number) for number in numbers)


@dataclass(frozen=True, slots=True, eq=False)
class Detector:
    """A single-stage network: boxes around the poses that a stream would show."""

    source: Path
    estimate: Callable[[U8], Poses]
    threshold: float

    def find(self, samples: Iterable[Sample]) -> list[Boxes]:
        """As `Finder`."""
        return require_somebody([self._in(sample) for sample in samples], str(self.source))

    def _in(self, sample: Sample) -> Boxes:
        poses = self.estimate(sample.image).above(self.threshold)
        boxes, kept = boxes_around(poses, size_of(sample))
        return Boxes(boxes, poses.scores[kept].astype(np.float64))


@contextmanager
def open_detector(path: Path, threads: int = 1) -> Iterator[Detector]:
    """The bundle of a single-stage network as a finder, in INT8 where it has that.

    Raises EdgeposeError for a bundle of another kind.
    """
    bundle = Bundle.open(path)
    if bundle.spec.family not in DECODERS:
        raise EdgeposeError(
            f"{path}: {bundle.spec.model} cannot find people, it needs their boxes itself; name the bundle "
            "of a network that sees whole pictures, such as qrpose_tiny"
        )
    own = [name for name, view in CPU_VIEWS.items() if f"{bundle.spec.graphs[0]}.{view}.onnx" in bundle.files]
    with open_backend(bundle, own[-1] if own else "fp32", threads=threads) as backend:
        yield Detector(path, Estimator(backend, bundle.spec), bundle.spec.score_threshold)
