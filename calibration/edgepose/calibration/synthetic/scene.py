"""One picture of 0 to 8 people, fixed by seed, index and size alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from edgepose.calibration.sample import Sample
from edgepose.calibration.synthetic.backdrop import make_backdrop
from edgepose.calibration.synthetic.body import F64, PART, Figure, Shape, make_shape, pose_body
from edgepose.calibration.synthetic.camera import Camera, make_camera, pitch_for
from edgepose.calibration.synthetic.draw import NOBODY, Canvas, Light, covers, paint_person
from edgepose.calibration.synthetic.furniture import Box, chair, paint_box, thing
from edgepose.calibration.synthetic.label import Painted, label
from edgepose.calibration.synthetic.lens import photograph
from edgepose.calibration.synthetic.look import U8, Look, make_look
from edgepose.calibration.synthetic.motion import MOTIONS, Style

MOST_PEOPLE = 8
SMALLEST, TALLEST = 0.08, 0.9  # standing height of a person, fraction of the picture's height
_HOW_MANY = np.cumsum((0.05, 0.25, 0.22, 0.16, 0.11, 0.08, 0.05, 0.04, 0.04))
_WHAT = ("walk", "run", "stand", "wave", "sit", "crouch", "bend", "exercise")
_HOW_OFTEN = np.cumsum((0.26, 0.08, 0.26, 0.1, 0.13, 0.05, 0.04, 0.08))


@dataclass(frozen=True, slots=True)
class Actor:
    """A person on the stage."""

    figure: Figure
    look: Look
    furniture: tuple[Box, ...]


def make_person(rng: np.random.Generator) -> tuple[Shape, Look]:
    """Somebody: one in five a child, thin to stout, in trousers or a skirt."""
    child = rng.uniform(0.2, 1) if rng.random() < 0.2 else 0.0
    stature = rng.uniform(1.52, 1.95) * (1 - 0.45 * child)
    girth = float(np.clip(rng.normal(1.02, 0.14), 0.78, 1.45))
    shape = make_shape(stature, child, girth, float(np.clip(rng.normal(1.0, 0.12), 0.85, 1.4)))
    skirt = rng.uniform(0.2, 0.5) * stature if rng.random() < 0.16 else 0.0
    hair = rng.uniform(0.04, 0.2) * stature if rng.random() < 0.4 else 0.0
    shape = replace(shape, skirt=skirt, hair=hair, bag=rng.random() < 0.1)
    return shape, make_look(rng, skirt > 0)


def make_light(rng: np.random.Generator) -> Light:
    """A lamp from above and before the people, from a soft to a hard one."""
    direction = np.array([rng.uniform(-0.9, 0.9), rng.uniform(-1.0, -0.1), rng.uniform(-1.0, -0.25)])
    ambient = rng.uniform(0.35, 0.8)
    return Light(direction / np.linalg.norm(direction), ambient, rng.uniform(1.0, 1.25) - ambient)


def _stage(rng: np.random.Generator, size: tuple[int, int], tallest: float) -> tuple[Camera, float]:
    """A camera, and the distance at which an adult fills the fraction `tallest` of the picture's height."""
    focal = math.exp(rng.uniform(math.log(0.8), math.log(2.2)))
    distance = max(focal * 1.7 / tallest, 1.3)
    height = rng.uniform(0.5, 1.9) if rng.random() < 0.7 else rng.uniform(1.9, 4.0)
    height = min(height, 0.45 + 0.65 * distance)  # not down onto somebody's head
    room = max(1 - tallest, 0.08) / 2
    row = rng.uniform(-room, room) + (rng.uniform(-0.3, 0.3) if rng.random() < 0.15 else 0.0)
    pitch = pitch_for(height - 0.87, distance, row / focal)
    return make_camera(size, focal, height, (pitch, rng.normal(0, 0.05))), distance


def _place(
    rng: np.random.Generator, camera: Camera, distance: float, taken: list[F64]
) -> tuple[float, float] | None:
    """A free place (x, z) on the floor at about `distance`, in view."""
    w, h = camera.size
    cut = -0.05 if rng.random() < 0.2 else 0.12  # how near the upper and lower border a body's middle may be
    for _ in range(8):
        column = rng.uniform(0.04, 0.96) * w
        x = (column - w / 2) * distance / camera.focal_px
        spot = np.array([x, -math.sqrt(max(distance**2 - x * x, 0.6 * distance**2))])
        middle = camera.project(np.array([spot[0], 0.8, spot[1]]))
        visible = 0 <= middle[0] < w and cut * h <= middle[1] < (1 - cut) * h
        if visible and all(np.hypot(*(spot - other)) > 0.55 for other in taken):
            return float(spot[0]), float(spot[1])
    return None


def _act(rng: np.random.Generator, place: tuple[float, float]) -> Actor:
    shape, look = make_person(rng)
    what = _WHAT[int(np.searchsorted(_HOW_OFTEN, rng.random() * 0.9999, side="right"))]
    style = Style(tuple(rng.random(16).tolist()))
    yaw = rng.normal(0, 0.9) if rng.random() < 0.5 else rng.uniform(-math.pi, math.pi)
    yaw += math.atan2(-place[0], -place[1])
    figure = pose_body(shape, MOTIONS[what](style, rng.uniform(0, 2 * math.pi)), place, yaw)
    if what != "sit":
        return Actor(figure, look, ())
    seat = float(figure.joints[11:13, 1].mean()) - float(figure.radius[PART["left_thigh"], 0])
    return Actor(figure, look, tuple(chair(rng, place, max(seat, 0.1), yaw)))


def _cast(rng: np.random.Generator, camera: Camera, distance: float, count: int) -> list[Actor]:
    """Up to `count` people, the first one at `distance`."""
    taken: list[F64] = []
    actors = []
    nearest, farthest = camera.focal_px / camera.size[1] * np.array([1.7 / TALLEST, 1.7 / SMALLEST])
    spread = rng.uniform(0.1, 0.9)
    for number in range(count):
        at = distance if number == 0 else distance * math.exp(abs(rng.normal(0, spread)) - 0.15)
        place = _place(rng, camera, float(np.clip(at, nearest, farthest * 0.98)), taken)
        if place is None:
            continue
        taken.append(np.array(place))
        actors.append(_act(rng, place))
    return actors


def _set_pieces(rng: np.random.Generator, camera: Camera, distance: float) -> list[Box]:
    """Furniture among and before the people."""
    boxes: list[Box] = []
    for _ in range(int(rng.integers(0, 5)) if rng.random() < 0.6 else 0):
        at = distance * math.exp(rng.normal(0.25, 0.5))
        x = rng.uniform(-0.6, 0.6) * at * camera.size[0] / camera.focal_px
        boxes += thing(rng, (x, -max(at, 0.9)))
    return boxes


def paint_shadows(image: U8, figures: list[Figure], camera: Camera, strength: float) -> None:
    """Darkens the floor around feet and seats."""
    h, w = image.shape[:2]
    small = np.full((max(h // 4, 1), max(w // 4, 1)), 255, np.uint8)
    angle = np.linspace(0, 2 * math.pi, 12, endpoint=False)
    for figure in figures:
        feet = figure.joints[[15, 16, 11, 12]].mean(axis=0)
        ring = np.stack([feet[0] + 0.34 * np.cos(angle), 0 * angle, feet[2] + 0.34 * np.sin(angle)], axis=1)
        if camera.to_camera(ring)[:, 2].min() > 0.3:
            outline = np.rint(camera.project(ring) * 2).astype(
                np.int32
            )  # 3 fractional bits of a quarter pixel grid
            cv2.fillConvexPoly(small, outline, (int(255 * (1 - strength)),), cv2.LINE_AA, 3)
    soft = cv2.resize(cv2.blur(small, (3, 3)), (w, h), interpolation=cv2.INTER_LINEAR)
    cv2.multiply(image, cv2.merge([soft, soft, soft]), image, 1 / 255)


def paint_stage(
    canvas: Canvas, actors: list[Actor], boxes: list[Box], setting: tuple[Camera, Light]
) -> list[Painted]:
    """Paints people and things from far to near. The result is in the order of `actors`."""
    camera, light = setting
    where = [actor.figure.joints[[5, 6, 11, 12]].mean(axis=0) for actor in actors]
    things = [*boxes, *(box for actor in actors for box in actor.furniture)]
    distances = [camera.to_camera(point)[2] for point in (*where, *(box.middle() for box in things))]
    painted: dict[int, Painted] = {}
    for index in np.argsort(distances, kind="stable")[::-1]:
        if index >= len(actors):
            paint_box(canvas, things[index - len(actors)], camera, light)
            continue
        number = int(index)
        actor = actors[number]
        paint_person(canvas, actor.figure, camera, (actor.look, light), number)
        painted[number] = Painted(actor.figure, number, cv2.countNonZero(covers(canvas, number)))
    return [painted[number] for number in range(len(actors))]


def _near_things(rng: np.random.Generator, canvas: Canvas) -> None:
    """Sometimes something close to the lens hides a part of the view."""
    h, w = canvas.seen.shape
    for _ in range(int(rng.integers(1, 3)) if rng.random() < 0.2 else 0):
        middle = rng.uniform(0, 1, 2) * (w, h)
        angle = np.sort(rng.uniform(0, 2 * math.pi, 6))
        reach = rng.uniform(0.04, 0.14) * h
        outline = middle + reach * np.stack([rng.uniform(0.4, 1.8) * np.cos(angle), np.sin(angle)], axis=1)
        corners = np.rint(outline).astype(np.int32)
        colour = rng.uniform(0, 230, 3).tolist()
        cv2.fillConvexPoly(canvas.image, corners, colour, cv2.LINE_AA)
        cv2.fillConvexPoly(canvas.seen, corners, (255,))


def scene(seed: int, index: int, size: tuple[int, int] = (256, 256)) -> Sample:
    """The picture number `index` (its image_id) of the endless set `seed`; `size` is width, height.

    The same arguments give the same bytes (with the same versions of numpy and OpenCV).
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, index, *size)))
    count = int(np.searchsorted(_HOW_MANY, rng.random() * 0.9999, side="right"))
    low = 0.3 if rng.random() < 0.8 else SMALLEST
    tallest = math.exp(rng.uniform(math.log(low), math.log(TALLEST)))
    camera, distance = _stage(rng, size, tallest)
    light = make_light(rng)
    actors = _cast(rng, camera, distance, count)
    image = make_backdrop(rng, camera, distance * rng.uniform(1.2, 3.0), rng.random())
    canvas = Canvas(image, np.full(image.shape[:2], NOBODY, np.uint8))
    if rng.random() < 0.7:
        paint_shadows(image, [actor.figure for actor in actors], camera, rng.uniform(0.15, 0.6))
    painted = paint_stage(canvas, actors, _set_pieces(rng, camera, distance), (camera, light))
    _near_things(rng, canvas)
    people = (label(canvas, one, camera) for one in painted)
    return Sample(index, photograph(rng, image), tuple(person for person in people if person is not None))
