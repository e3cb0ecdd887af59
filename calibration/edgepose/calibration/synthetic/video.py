"""An endless scene before a fixed camera: people walk to and fro, wave, stand, sit; with random access."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from edgepose.calibration.sample import Sample
from edgepose.calibration.synthetic.backdrop import STREET, make_backdrop
from edgepose.calibration.synthetic.body import PART, Figure, Shape, pose_body
from edgepose.calibration.synthetic.camera import Camera, make_camera, pitch_for
from edgepose.calibration.synthetic.draw import NOBODY, Canvas, Light
from edgepose.calibration.synthetic.furniture import Box, chair, thing
from edgepose.calibration.synthetic.label import label
from edgepose.calibration.synthetic.lens import add_grain, tone_curve
from edgepose.calibration.synthetic.look import U8, Look
from edgepose.calibration.synthetic.motion import Style, sit, stand, stride_m, walk, wave
from edgepose.calibration.synthetic.scene import Actor, make_light, make_person, paint_shadows, paint_stage

_LANE_M = 1.2  # each person keeps to a strip of floor of this depth
_TURN_M = 0.45  # radius of a walker's about-turn
_VIDEO_STREAM = 1  # keeps a video's random numbers apart from those of the pictures of the same seed


@dataclass(frozen=True, slots=True)
class Track:
    """A closed way on the floor: straight there, half a circle, straight back, half a circle."""

    middle: tuple[float, float]  # x, z metres
    half_m: float  # of the straights, along x

    def at(self, way_m: float) -> tuple[tuple[float, float], float]:
        """Place (x, z) and yaw after `way_m` metres."""
        straight, bend = 2 * self.half_m, math.pi * _TURN_M
        way = way_m % (2 * (straight + bend))
        second, way = way >= straight + bend, way % (straight + bend)
        if way < straight:
            x, z, yaw = way - self.half_m, _TURN_M, math.pi / 2
        else:
            angle = (way - straight) / _TURN_M
            x, z = self.half_m + _TURN_M * math.sin(angle), _TURN_M * math.cos(angle)
            yaw = math.pi / 2 + angle
        sign = -1 if second else 1  # the way back is the way there, turned by half a turn
        place = (self.middle[0] + sign * x, self.middle[1] + sign * z)
        return place, yaw + (math.pi if second else 0.0)


@dataclass(frozen=True, slots=True)
class Role:
    """One person of the video and what they do all the time."""

    shape: Shape
    look: Look
    style: Style
    what: str  # walk, wave, stand or sit
    track: Track  # who does not walk stays in the middle of it
    yaw: float
    offset_s: float
    furniture: tuple[Box, ...] = ()

    def figure(self, time_s: float) -> Figure:
        """The posed body at a time."""
        time = time_s + self.offset_s
        if self.what == "walk":
            stride = stride_m(self.style, self.shape.thigh + self.shape.shin)
            cycles = time * self.style.between(0, 0.8, 1.0)
            place, yaw = self.track.at(cycles * stride)
            return pose_body(self.shape, walk(self.style, 2 * math.pi * cycles), place, yaw)
        if self.what == "sit":
            angles = sit(self.style, time)
        else:
            share = min(max(1.5 * math.sin(0.5 * time) + 0.5, 0.0), 1.0) if self.what == "wave" else 0.0
            share = share * share * (3 - 2 * share)  # waves for some seconds, rests for some
            angles = (1 - share) * stand(self.style, 0.9 * time) + share * wave(self.style, 3.2 * time)
        return pose_body(self.shape, angles, self.track.middle, self.yaw)


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """Frames 0, 1, 2, ... without an end; made by `video`."""

    size: tuple[int, int]  # width, height
    fps: int
    camera: Camera
    light: Light
    backdrop: U8  # (H, W, 3)
    boxes: tuple[Box, ...]
    roles: tuple[Role, ...]
    curve: U8  # (1, 256, 3) exposure and colour
    grain: float  # standard deviation of the sensor's noise

    def figures(self, i: int) -> list[Figure]:
        """The posed bodies of frame `i`, seen or not, always in the same order."""
        return [role.figure(i / self.fps) for role in self.roles]

    def frame(self, i: int) -> Sample:
        """Frame `i` (its image_id) with the people that are seen in it; their order never changes."""
        canvas = Canvas(self.backdrop.copy(), np.full(self.backdrop.shape[:2], NOBODY, np.uint8))
        figures = self.figures(i)
        paint_shadows(canvas.image, figures, self.camera, 0.35)
        actors = [
            Actor(figure, role.look, role.furniture) for figure, role in zip(figures, self.roles, strict=True)
        ]
        painted = paint_stage(canvas, actors, list(self.boxes), (self.camera, self.light))
        people = (label(canvas, one, self.camera) for one in painted)
        image = np.asarray(cv2.LUT(canvas.image, self.curve), np.uint8)
        offset = ((i * 29) % 64, (i * 47 + i // 64) % 64)
        image = add_grain(image, self.grain, offset)
        return Sample(i, image, tuple(person for person in people if person is not None))


def _role(rng: np.random.Generator, camera: Camera, distance: float, what: str, side: float) -> Role:
    """Somebody in the lane at `distance`: on one `side` (-1 or 1), or walking beyond the view at both."""
    shape, look = make_person(rng)
    half_view = distance * camera.size[0] / (2 * camera.focal_px)
    style = Style(tuple(rng.random(16).tolist()))
    walks = what == "walk"
    middle = (0.0 if walks else side * rng.uniform(0.15, 0.75) * half_view, -distance)
    track = Track(middle, half_view * rng.uniform(0.5, 1.1))
    yaw = math.atan2(-middle[0], -middle[1]) + rng.uniform(-1.0, 1.0)
    role = Role(shape, look, style, what, track, yaw, rng.uniform(0, 60))
    if what != "sit":
        return role
    figure = role.figure(0.0)
    seat = float(figure.joints[11:13, 1].mean()) - float(figure.radius[PART["left_thigh"], 0])
    furniture = tuple(chair(rng, middle, max(seat, 0.1), yaw))
    return replace(role, furniture=furniture)


def _roles(rng: np.random.Generator, camera: Camera, distance: float) -> tuple[Role, ...]:
    """Three to five people, one in each lane, at least two of them walking."""
    cast = ["walk", "walk", "wave", "sit" if rng.random() < 0.6 else "stand", "walk"][
        : int(rng.integers(3, 6))
    ]
    order = rng.permutation(len(cast))
    side = float(rng.choice((-1, 1)))  # who waves has the other side than who sits or stands
    return tuple(
        _role(rng, camera, distance + lane * _LANE_M, cast[who], side if cast[who] == "wave" else -side)
        for lane, who in enumerate(order)
    )


def video(seed: int, size: tuple[int, int], fps: int = 25) -> Video:
    """The endless video number `seed` of (width, height); `fps` says how far apart its frames are in time."""
    rng = np.random.default_rng(np.random.SeedSequence((seed, _VIDEO_STREAM)))
    focal, tallest = rng.uniform(0.9, 1.4), rng.uniform(0.5, 0.72)
    distance = focal * 1.7 / tallest
    height = rng.uniform(1.1, 2.2)
    pitch = pitch_for(height - 0.87, distance + 1.0, 0.06 / focal)
    camera = make_camera(size, focal, height, (pitch, rng.normal(0, 0.01)))
    light = make_light(rng)
    roles = _roles(rng, camera, distance)
    behind = distance + len(roles) * _LANE_M
    boxes = [
        box
        for _ in range(int(rng.integers(0, 3)))
        for box in thing(rng, (rng.uniform(-0.5, 0.5) * behind * size[0] / camera.focal_px, -behind))
    ]
    backdrop = make_backdrop(rng, camera, behind + rng.uniform(0.5, 4), rng.uniform(0, STREET))
    return Video(
        size, fps, camera, light, backdrop, tuple(boxes), roles, tone_curve(rng), rng.uniform(0.5, 4)
    )
