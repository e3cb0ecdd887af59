"""An articulated 3-D body: proportions, joint angles with limits, and the solid parts they give.

Body frame: x to the person's left, y up, z forward, metres, origin on the floor. World frame: x right, y up,
z towards the camera; both right-handed, so a person with yaw 0 looks at the camera.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

# Degrees. Sides are mirror images of each other: abduction is always outwards, twist always inwards.
_TRUNK_LIMITS = {
    "pelvis_pitch": (-25.0, 95.0),  # forward
    "pelvis_roll": (-25.0, 25.0),  # to the left
    "spine_pitch": (-20.0, 50.0),
    "spine_roll": (-25.0, 25.0),
    "spine_yaw": (-40.0, 40.0),
    "head_pitch": (-35.0, 45.0),
    "head_roll": (-30.0, 30.0),
    "head_yaw": (-75.0, 75.0),
}
_SIDE_LIMITS = {
    "shoulder_flexion": (-55.0, 178.0),  # forward
    "shoulder_abduction": (-15.0, 175.0),
    "shoulder_twist": (-90.0, 90.0),
    "elbow": (2.0, 148.0),
    "hip_flexion": (-30.0, 122.0),
    "hip_abduction": (-15.0, 48.0),
    "hip_twist": (-40.0, 40.0),
    "knee": (2.0, 150.0),
    "ankle": (-40.0, 25.0),  # toes up
}
ANGLES: tuple[str, ...] = (
    *_TRUNK_LIMITS,
    *(f"{side}_{name}" for side in ("left", "right") for name in _SIDE_LIMITS),
)
LIMITS: F64 = np.deg2rad([*_TRUNK_LIMITS.values(), *_SIDE_LIMITS.values(), *_SIDE_LIMITS.values()])  # (26, 2)
_SIDE = len(_SIDE_LIMITS)
_TRUNK = len(_TRUNK_LIMITS)

PARTS: tuple[str, ...] = (
    *("pelvis", "belly", "chest", "skirt", "head", "neck", "hair", "nose", "bag"),
    *(f"{side}_{name}" for name in ("ear", "upper_arm", "forearm", "hand") for side in ("left", "right")),
    *(f"{side}_{name}" for name in ("thigh", "shin", "foot") for side in ("left", "right")),
)
PART = {name: index for index, name in enumerate(PARTS)}
SLABS = ("pelvis", "belly", "chest", "skirt")
_RING = np.linspace(0, 2 * math.pi, 12, endpoint=False)
RING: F64 = np.stack([np.sin(_RING), np.cos(_RING)], axis=1)  # (12, 2) sideways, forward


@dataclass(frozen=True, slots=True)
class Shape:
    """Lengths and radii of one person in metres."""

    stature: float  # when standing upright
    thigh: float
    shin: float
    foot: float  # heel to toe
    hip: float  # half distance of the hip joints
    trunk: float  # hips to shoulder line
    shoulder: float  # half distance of the shoulder joints
    upper_arm: float
    forearm: float
    hand: float
    neck: float  # shoulder line to the centre of the head
    head: tuple[float, float, float]  # half width, half height, half depth
    girth: float  # 1 is average; scales every radius
    belly: float  # 1 is flat
    skirt: float = 0.0  # length below the hips, 0 is none
    hair: float = 0.0  # length below the head, 0 is short
    bag: bool = False  # a rucksack


def make_shape(stature: float, childness: float, girth: float, belly: float) -> Shape:
    """Proportions of a person; `childness` from 0 (adult) to 1 (small child): larger head, shorter legs."""
    s = stature
    leg, head = 1 - 0.16 * childness, 1 + 0.55 * childness
    broad = (0.6 + 0.4 * girth) * (1 - 0.08 * childness)
    # Fractions of stature after the usual anthropometric tables, rounded.
    half_head = 0.066 * s * head
    thigh, shin, ankle = 0.245 * s * leg, 0.246 * s * leg, 0.039 * s
    trunk = 0.288 * s
    neck = s - thigh - shin - ankle - trunk - half_head
    return Shape(
        *(s, thigh, shin, 0.15 * s, 0.052 * s * broad, trunk, 0.108 * s * broad),
        *(0.172 * s, 0.152 * s, 0.095 * s, min(neck, 1.6 * half_head)),
        head=(0.68 * half_head, half_head, 0.84 * half_head),
        girth=girth,
        belly=belly,
    )


@dataclass(frozen=True, slots=True)
class Figure:
    """A posed body in the world frame, metres."""

    joints: F64  # (17, 3) in the order of COCO17
    start: F64  # (P, 3) one end of each part's axis, in the order of PARTS
    end: F64  # (P, 3)
    radius: F64  # (P, 2) at start and end
    rings: F64  # (4, 3, 12, 3) outline points of the SLABS: three rings each
    present: npt.NDArray[np.bool_]  # (P,)
    chest_turn: F64  # (3, 3) columns: left, up, forward of the chest
    hip_turn: F64  # (3, 3)
    head_turn: F64  # (3, 3)
    head_centre: F64  # (3,)
    head_size: F64  # (3,) half width, height, depth


def rotation(axis: int, angle: float) -> F64:
    """(3, 3) right-handed turn by `angle` rad about x, y or z."""
    c, s = math.cos(angle), math.sin(angle)
    if axis == 0:
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    if axis == 1:
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _cross(a: F64, b: F64) -> F64:
    """Of two (3,): numpy's own takes twelve times as long, for it takes any shape."""
    (x, y, z), (u, v, w) = a, b
    return np.array([y * w - z * v, z * u - x * w, x * v - y * u])


def limited(angles: F64) -> F64:
    """The nearest angles (26,) rad within the joint limits."""
    return np.clip(angles, LIMITS[:, 0], LIMITS[:, 1])


def mirrored(angles: F64) -> F64:
    """The same pose with left and right exchanged."""
    out = angles.copy()
    out[_TRUNK : _TRUNK + _SIDE] = angles[_TRUNK + _SIDE :]
    out[_TRUNK + _SIDE :] = angles[_TRUNK : _TRUNK + _SIDE]
    for name in ("pelvis_roll", "spine_roll", "spine_yaw", "head_roll", "head_yaw"):
        out[ANGLES.index(name)] *= -1
    return out


def _limb(turn: F64, angles: F64, sign: float) -> F64:
    """Turn of an upper limb by flexion, abduction and twist; `sign` is 1 for left, -1 for right."""
    flexion, abduction, twist = angles
    return turn @ rotation(2, sign * abduction) @ rotation(0, -flexion) @ rotation(1, -sign * twist)


def _arm(shape: Shape, shoulder: F64, turn: F64, angles: F64) -> tuple[F64, F64, F64]:
    """Elbow, wrist and finger tip (each (3,)), from the upper arm's turn and the elbow angle."""
    elbow = shoulder - shape.upper_arm * turn[:, 1]
    fore = turn @ rotation(0, -float(angles))
    wrist = elbow - shape.forearm * fore[:, 1]
    hand = fore @ rotation(0, -0.15)
    return elbow, wrist, wrist - shape.hand * hand[:, 1]


def _leg(shape: Shape, hip: F64, turn: F64, angles: F64) -> tuple[F64, F64, F64, F64]:
    """Knee, ankle, heel and toe (each (3,)), from the thigh's turn and the angles of knee and ankle."""
    knee_angle, ankle_angle = angles
    knee = hip - shape.thigh * turn[:, 1]
    shank = turn @ rotation(0, knee_angle)
    ankle = knee - shape.shin * shank[:, 1]
    foot = shank @ rotation(0, -ankle_angle)
    sole = ankle - 0.023 * shape.stature * foot[:, 1]
    return knee, ankle, sole - 0.2 * shape.foot * foot[:, 2], sole + 0.62 * shape.foot * foot[:, 2]


# Longitude (to the left) and latitude in degrees, and height above the skin, of nose, eyes and ears.
FACE = {"nose": (0, -14, 1.16), "left_eye": (23, 7, 1.0), "right_eye": (-23, 7, 1.0)}
EARS = {"left_ear": (97, -4, 1.06), "right_ear": (-97, -4, 1.06)}


def on_head(longitude: float, latitude: float) -> F64:
    """(3,) point of the unit sphere: left, up, forward; degrees."""
    lon, lat = math.radians(longitude), math.radians(latitude)
    return np.array([math.sin(lon) * math.cos(lat), math.sin(lat), math.cos(lon) * math.cos(lat)])


_FACE_POINTS: F64 = np.array([on_head(lon, lat) * up for lon, lat, up in (FACE | EARS).values()])  # (5, 3)


class _Builder:
    """Collects the parts of one body in the body frame."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.start = np.zeros((len(PARTS), 3))
        self.end = np.zeros((len(PARTS), 3))
        self.radius = np.zeros((len(PARTS), 2))
        self.rings = np.zeros((len(SLABS), 3, len(RING), 3))
        self.joints = np.zeros((17, 3))

    def capsule(self, name: str, ends: tuple[F64, F64], radii: tuple[float, float]) -> None:
        """A tapered capsule; radii are fractions of the stature for an average girth."""
        index = PART[name]
        self.start[index], self.end[index] = ends
        scale = self.shape.stature * self.shape.girth
        self.radius[index] = radii[0] * scale, radii[1] * scale

    def slab(
        self, name: str, centres: tuple[F64, F64, F64], widths: F64, turns: tuple[F64, F64, F64]
    ) -> None:
        """The hull of three elliptic rings with half `widths` (3, 2) sideways and forward."""
        index = PART[name]
        self.start[index], self.end[index] = centres[0], centres[2]
        for ring, (centre, width, turn) in enumerate(zip(centres, widths, turns, strict=True)):
            self.rings[index, ring] = centre + (RING * width) @ turn[:, [0, 2]].T
        self.radius[index] = widths[0, 0], widths[2, 0]


def _trunk(build: _Builder, angles: F64, hips: F64) -> tuple[F64, F64, F64]:
    """Pelvis, belly, chest and skirt. Returns the shoulder line's centre and the turns of chest and hips."""
    shape = build.shape
    pelvis = rotation(2, -angles[1]) @ rotation(0, angles[0])
    chest = pelvis @ rotation(1, angles[4]) @ rotation(2, -angles[3]) @ rotation(0, angles[2])
    waist = hips + 0.36 * shape.trunk * pelvis[:, 1]
    line = waist + 0.64 * shape.trunk * chest[:, 1]
    bust = waist + 0.40 * shape.trunk * chest[:, 1]
    top = line + 0.016 * shape.stature * chest[:, 1]
    throat = line + 0.056 * shape.stature * chest[:, 1]
    crotch = hips - 0.11 * shape.trunk * pelvis[:, 1]
    s, g = shape.stature, shape.girth
    waist_ring = np.array([0.076 * s * g * shape.belly, 0.058 * s * g * shape.belly])
    bust_ring = np.array([shape.shoulder * 0.86 + 0.008 * s * (g - 1), 0.068 * s * g])
    hip_ring = np.array([shape.hip + 0.040 * s * g, 0.064 * s * g])
    top_ring = np.array([shape.shoulder * 1.02, 0.042 * s * g])
    throat_ring = np.array([0.044 * s, 0.036 * s])
    crotch_ring = hip_ring * (0.92, 0.85)
    forward = 0.03 * s * (shape.belly - 1) * pelvis[:, 2]
    build.slab("pelvis", (waist, hips, crotch), np.array([waist_ring, hip_ring, crotch_ring]), (pelvis,) * 3)
    low = hips + 0.12 * shape.trunk * pelvis[:, 1]  # the shirt hangs over the belt
    belly = np.array([bust_ring, waist_ring, hip_ring * 0.97])
    build.slab("belly", (bust, waist + forward, low), belly, (chest, pelvis, pelvis))
    build.slab("chest", (throat, top, bust), np.array([throat_ring, top_ring, bust_ring]), (chest,) * 3)
    return line, chest, pelvis


def _head(build: _Builder, angles: F64, line: F64, chest: F64) -> tuple[F64, F64]:
    """Head, neck, hair, ears, nose and rucksack. Returns the head's centre and turn."""
    shape = build.shape
    turn = chest @ rotation(1, angles[7]) @ rotation(2, -angles[6]) @ rotation(0, angles[5])
    size = np.array(shape.head)
    base = line + 0.25 * shape.neck * chest[:, 1]
    centre = base + 0.75 * shape.neck * turn[:, 1] + 0.12 * shape.head[1] * turn[:, 2]
    points = centre + (_FACE_POINTS * size) @ turn.T
    build.joints[:5] = points
    s, wide = shape.stature, shape.head[0]
    unit = wide / (s * shape.girth)  # capsule radii follow the head here, not the girth
    build.capsule(
        "neck", (line + 0.2 * shape.neck * chest[:, 1], centre - 0.35 * size[1] * turn[:, 1]), (0.032, 0.030)
    )
    crown = centre + 0.22 * size[1] * turn[:, 1] - 0.34 * size[2] * turn[:, 2]
    tips = crown - (0.3 * size[1] + shape.hair) * (0.5 * turn[:, 1] + 0.5 * chest[:, 1])
    build.capsule("hair", (crown, tips), (1.10 * unit, (1.05 if shape.hair else 0.9) * unit))
    bridge = centre + on_head(0, 4) * size * 0.97 @ turn.T
    build.capsule("nose", (bridge, points[0] - 0.1 * size[2] * turn[:, 2]), (0.10 * unit, 0.19 * unit))
    for side, point in zip(("left", "right"), points[3:], strict=True):
        lobe = 0.13 * size[1] * turn[:, 1]
        build.capsule(f"{side}_ear", (point + lobe, point - lobe), (0.21 * unit, 0.14 * unit))
    build.capsule("head", (centre + size[1] * turn[:, 1], centre - size[1] * turn[:, 1]), (unit, unit))
    back = 0.105 * s * shape.girth * chest[:, 2]
    build.capsule(
        "bag", (line - 0.05 * s * chest[:, 1] - back, line - 0.2 * s * chest[:, 1] - back), (0.062, 0.07)
    )
    return centre, turn


def _arms(build: _Builder, angles: F64, line: F64, chest: F64) -> None:
    shape = build.shape
    for offset, (side, sign) in enumerate((("left", 1.0), ("right", -1.0))):
        a = angles[_TRUNK + offset * _SIDE :]
        shoulder = line + sign * shape.shoulder * chest[:, 0]
        elbow, wrist, tip = _arm(shape, shoulder, _limb(chest, a[:3], sign), a[3])
        build.joints[5 + offset], build.joints[7 + offset], build.joints[9 + offset] = shoulder, elbow, wrist
        build.capsule(f"{side}_upper_arm", (shoulder, elbow), (0.031, 0.024))
        build.capsule(f"{side}_forearm", (elbow, wrist), (0.025, 0.016))
        build.capsule(
            f"{side}_hand", (wrist + 0.25 * (tip - wrist), wrist + 0.8 * (tip - wrist)), (0.020, 0.016)
        )


def _legs(build: _Builder, angles: F64, hips: F64, pelvis: F64) -> None:
    shape = build.shape
    knees = []
    for offset, (side, sign) in enumerate((("left", 1.0), ("right", -1.0))):
        a = angles[_TRUNK + offset * _SIDE + 4 :]
        hip = hips + sign * shape.hip * pelvis[:, 0]
        turn = _limb(pelvis, a[:3], sign)
        knee, ankle, heel, toe = _leg(shape, hip, turn, a[3:5])
        knees.append(knee)
        build.joints[11 + offset], build.joints[13 + offset], build.joints[15 + offset] = hip, knee, ankle
        build.capsule(f"{side}_thigh", (hip, knee), (0.052, 0.033))
        build.capsule(f"{side}_shin", (knee, ankle), (0.034, 0.022))
        build.capsule(f"{side}_foot", (heel, toe), (0.022, 0.019))
    _skirt(build, hips, pelvis, knees)


def _skirt(build: _Builder, hips: F64, pelvis: F64, knees: list[F64]) -> None:
    """A cone from the waist along the thighs; its hem is as wide as the stride."""
    shape = build.shape
    middle = 0.5 * (knees[0] + knees[1])
    down = (middle - hips) / max(float(np.linalg.norm(middle - hips)), 1e-6)
    hem = hips + max(shape.skirt, 0.1) * down
    stride = 0.5 * float(np.linalg.norm(knees[0] - knees[1])) * shape.skirt / shape.thigh
    s = shape.stature * shape.girth
    flare = 0.06 * s + 0.12 * shape.skirt
    widths = np.array([[0.08 * s, 0.065 * s], [shape.hip + 0.048 * s, 0.07 * s], [flare, flare]])
    widths[2] = np.maximum(widths[2], stride + 0.03 * s)
    across = pelvis[:, 0]
    fore = _cross(across, -down)
    hem_turn = np.stack([across, -down, fore / max(float(np.linalg.norm(fore)), 1e-6)], axis=1)
    waist = hips + 0.25 * shape.trunk * pelvis[:, 1]
    build.slab("skirt", (waist, hips, hem), widths, (pelvis, pelvis, hem_turn))


def pose_body(shape: Shape, angles: F64, place: tuple[float, float], yaw: float) -> Figure:
    """The body with joint `angles` (26,) rad, hips above `place` (x, z) metres, lowest foot on the floor."""
    build = _Builder(shape)
    angles = limited(angles)
    hips = np.zeros(3)
    line, chest, pelvis = _trunk(build, angles, hips)
    centre, head = _head(build, angles, line, chest)
    _arms(build, angles, line, chest)
    _legs(build, angles, hips, pelvis)
    feet = [PART["left_foot"], PART["right_foot"]]
    soles = [build.start[feet, 1] - build.radius[feet, 0], build.end[feet, 1] - build.radius[feet, 1]]
    shift = np.array([place[0], -float(np.min(soles)), place[1]])
    turn = rotation(1, yaw)
    present = np.ones(len(PARTS), np.bool_)
    present[PART["skirt"]], present[PART["bag"]] = shape.skirt > 0, shape.bag
    return Figure(
        joints=build.joints @ turn.T + shift,
        start=build.start @ turn.T + shift,
        end=build.end @ turn.T + shift,
        radius=build.radius,
        rings=build.rings @ turn.T + shift,
        present=present,
        chest_turn=turn @ chest,
        hip_turn=turn @ pelvis,
        head_turn=turn @ head,
        head_centre=turn @ centre + shift,
        head_size=np.array(shape.head),
    )
