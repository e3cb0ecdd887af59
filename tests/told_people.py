"""People made of colours, and networks that know them: what a test says is what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from edgepose.calibration.sample import Person, Sample
from edgepose.runtime.backend import Array
from edgepose.runtime.poses import Poses, boxes_of
from edgepose.runtime.skeleton import COCO17
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.cascade import COARSE, FINE, Cascade, Dial
from edgepose.runtime.topdown.gauge import Gauge
from edgepose.runtime.topdown.pair import Pair
from edgepose.runtime.topdown.twostage import TwoStage

SIDE = 40  # pixels between people, who stand on a grid of COLUMNS
COLUMNS = 15
PLAIN = Gauge(coarse=(0.0, 1.0), fine=(0.0, 1.0))  # the quality is the OKS to expect
SPEC = Spec(
    "sharpose", "told", 96, 96, graphs=("coarse", "fine"), resize="crop", mean=(0, 0, 0), std=(1, 1, 1)
)
JOINTS = np.arange(17)
# x, y of the joints in a heatmap, by the look that finds them there.
PLACES = {
    stage: np.stack([stage + 7 + JOINTS % 3 * 4, 7 + JOINTS // 3 % 4 * 3], 1).astype(float)
    for stage in (COARSE, FINE)
}


@dataclass
class World:
    """People with the first model's score and the quality that the second one sees, and what looks take."""

    scores: list[float]
    qualities: list[float]
    costs: tuple[float, float] = (0.0, 0.0)  # seconds of a run, and of each of its crops
    first_s: float = 0.0
    factors: list[float] = field(default_factory=list)  # by which the next runs take longer
    now: float = 0.0
    runs: list[tuple[int, list[int]]] = field(default_factory=list)  # look and whom, in order

    def frame(self) -> np.ndarray:
        """Everybody is a square of their own colour."""
        rows = -(-max(1, len(self.scores)) // COLUMNS)
        frame = np.full((rows * SIDE, COLUMNS * SIDE, 3), 255, np.uint8)
        for person in range(len(self.scores)):
            x, y = corner(person)
            frame[y : y + SIDE, x : x + SIDE] = person
        return frame

    def first(self, frame: np.ndarray) -> Poses:
        self.now += self.first_s
        joints = np.linspace(10, 30, 17, dtype=np.float32)
        keypoints = np.array([np.stack([joints, joints], 1) + corner(p) for p in range(len(self.scores))])
        keypoints = keypoints.reshape(-1, 17, 2).astype(np.float32)
        sure = np.full(keypoints.shape[:2], 0.5, np.float32)
        return Poses(keypoints, sure, np.array(self.scores, np.float32), boxes_of(keypoints))

    def pair(self, limit: float, gauge: Gauge = PLAIN) -> Pair:
        return Pair(self.first, TwoStage(Look(self, COARSE), Look(self, FINE), SPEC, limit), gauge)

    def cascade(
        self, policy: str = "auto", budget_s: float = np.inf, limit: float = 0.8, least: float = 0.0
    ) -> Cascade:
        cascade = Cascade(self.pair(limit), Dial(policy, budget_s, least), lambda: self.now)
        self.runs.clear()
        return cascade

    def looked_at(self, stage: int) -> list[int]:
        return [person for look, people in self.runs for person in people if look == stage]


def corner(person: int) -> tuple[int, int]:
    return person % COLUMNS * SIDE, person // COLUMNS * SIDE


@dataclass
class Look:
    """A graph that knows from a crop's middle who is in it."""

    world: World
    stage: int

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        world = self.world
        people = np.rint(255 * np.asarray(feeds["images"])[:, 0, 48, 48]).astype(int)
        world.runs.append((self.stage, people.tolist()))
        each = world.costs[0] + world.costs[1] * len(people)
        world.now += each * (world.factors.pop(0) if world.factors else 1)
        heatmaps = np.zeros((len(people), 17, 24, 24), np.float32)
        x, y = PLACES[self.stage].astype(int).T
        heatmaps[:, JOINTS, y, x] = 1
        quality = np.array(
            [([*world.qualities, 0.0])[min(p, len(world.qualities))] for p in people], np.float32
        )
        if self.stage == FINE:
            return {"heatmaps": heatmaps}
        return {"coarse_heatmaps": heatmaps, "quality": quality, **context(len(people))}

    def close(self) -> None: ...

    def __enter__(self) -> Look:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def context(count: int) -> dict[str, Array]:
    nothing = np.zeros((count, 1), np.float32)
    return {"region_order": nothing, "reuse_features": nothing, "coarse_embedding": nothing}


class Told:
    """Three times the same picture. Its people are where the second look sees them."""

    source = name = "told"
    skeleton = COCO17

    def __init__(self, world: World) -> None:
        self.image = world.frame()
        # What `first` finds spans 20 pixels from 10 on; a margin of 8 % and a quarter around make 29 pixels.
        places = [np.array(corner(p)) + 5.5 + PLACES[FINE] * 29 / 23 for p in range(len(world.scores))]
        seen = np.full(17, 2, np.uint8)
        self.everyone = tuple(
            Person(place.astype(np.float32), seen, (*map(float, corner(p)), SIDE, SIDE), 100.0)
            for p, place in enumerate(places)
        )

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        return Sample(index, self.image, self.everyone)

    def people(self, index: int) -> tuple[Person, ...]:
        return self.everyone

    def size(self, index: int) -> tuple[int, int]:
        return COLUMNS * SIDE, SIDE

    def fingerprint(self, index: int) -> str:
        return "told"
