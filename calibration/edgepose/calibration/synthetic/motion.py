"""What people do: joint angles of walking, waving, sitting and more as smooth functions of a phase."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgepose.calibration.synthetic.body import ANGLES, F64, LIMITS, limited

_INDEX = {name: index for index, name in enumerate(ANGLES)}


@dataclass(frozen=True, slots=True)
class Style:
    """How one person moves: numbers in 0..1 that stay with them."""

    traits: tuple[float, ...]  # (16,)

    def between(self, trait: int, low: float, high: float) -> float:
        """The trait as a number from `low` to `high`."""
        return low + (high - low) * self.traits[trait % len(self.traits)]


def _angles(degrees: dict[str, float]) -> F64:
    """(26,) rad from degrees by name; the rest is the relaxed upright stance."""
    out = np.zeros(len(ANGLES))
    relaxed = {"shoulder_flexion": 2.0, "shoulder_abduction": 8.0, "shoulder_twist": 15.0, "elbow": 14.0}
    for side in ("left", "right"):
        for name, value in (relaxed | {"knee": 4.0, "hip_flexion": 2.0, "hip_abduction": 3.0}).items():
            out[_INDEX[f"{side}_{name}"]] = value
    for key, value in degrees.items():
        out[_INDEX[key]] = value
    return limited(np.deg2rad(out))


def _sway(style: Style, phase: float) -> dict[str, float]:
    """Nobody stands still: small slow turns of head and trunk."""
    slow, slower = math.sin(phase + 6 * style.traits[0]), math.sin(0.61 * phase + 6 * style.traits[1])
    return {
        "head_yaw": style.between(2, -38, 38) * (0.6 + 0.4 * slower) + 8 * slow,
        "head_pitch": style.between(3, -10, 24) + 4 * slow,
        "head_roll": 5 * slower,
        "spine_yaw": style.between(4, -10, 10) + 4 * slower,
        "spine_pitch": style.between(5, -3, 12) + 1.5 * slow,
        "pelvis_roll": 2 * slower,
    }


def _stride(degrees: dict[str, float], style: Style, phase: float, running: bool) -> F64:
    """One gait cycle is 2 pi of `phase`; the right side is half a cycle late."""
    reach = style.between(6, 38, 48) if running else style.between(6, 20, 30)
    lift = style.between(7, 75, 105) if running else style.between(7, 44, 60)
    bend = style.between(8, 70, 105) if running else style.between(8, 10, 38)
    swing = style.between(9, 28, 50) if running else style.between(9, 10, 32)
    for side, at in (("left", phase), ("right", phase + math.pi)):
        swing_phase = (
            0.5 + 0.5 * math.cos(at + 0.55)
        ) ** 2.2  # the foot leaves the floor and passes the other
        loading = (0.5 + 0.5 * math.cos(at - 2.4)) ** 4  # the knee gives a little when it takes the weight
        degrees[f"{side}_hip_flexion"] = 0.55 * reach * 0.4 + reach * math.sin(at)
        degrees[f"{side}_knee"] = 5 + lift * swing_phase + 14 * loading
        degrees[f"{side}_ankle"] = 6 * math.sin(at) - 10 * (0.5 - 0.5 * math.sin(at + 0.5)) ** 3
        degrees[f"{side}_shoulder_flexion"] = -swing * math.sin(at) + 3
        degrees[f"{side}_shoulder_abduction"] = style.between(10, 5, 14)
        degrees[f"{side}_elbow"] = bend - 0.4 * swing * math.sin(at)
        degrees[f"{side}_hip_abduction"] = 1.0
    degrees["pelvis_pitch"] = style.between(11, 6, 14) if running else style.between(11, 0, 5)
    degrees["spine_yaw"] = -6 * math.sin(phase)
    degrees["pelvis_roll"] = 3 * math.sin(phase + 0.5)
    return _angles(degrees)


def stride_m(style: Style, leg_m: float) -> float:
    """How far one gait cycle of `walk` carries a person with legs of `leg_m`."""
    return 4 * leg_m * math.sin(math.radians(style.between(6, 20, 30)))


def walk(style: Style, phase: float) -> F64:
    """Walking; one step of each foot per 2 pi."""
    head = {key: value for key, value in _sway(style, 0.3 * phase).items() if key.startswith("head")}
    return _stride(head, style, phase, running=False)


def run(style: Style, phase: float) -> F64:
    """Running."""
    return _stride({"head_pitch": style.between(3, -8, 12)}, style, phase, running=True)


def _arm_pose(style: Style, trait: int) -> tuple[float, ...]:
    """Flexion, abduction, twist, elbow in degrees of one of the things arms do when nothing else is asked."""
    poses = (
        (2, 8, 15, 14),  # hanging
        (-6, 10, 10, 22),
        (8, 42, 62, 96),  # hand on the hip
        (38, 6, 62, 104),  # folded before the chest
        (52, 8, 40, 118),  # holding a telephone
        (16, 10, 40, 72),
        (34, 12, 25, 70),  # carrying
        (82, 12, 10, 14),  # pointing
        (10, 84, 0, 12),  # stretched out sideways
        (10, 96, -62, 92),  # raised like a cactus
        (158, 16, 0, 18),  # raised
        (118, 20, 30, 110),  # hand on the head
        (-32, 14, 30, 60),  # behind the back
    )
    weights = (3, 2, 2, 1.4, 1.6, 1.6, 1.4, 1, 1, 0.8, 1, 0.8, 0.8)
    mark = style.between(trait, 0, sum(weights) * 0.9999)
    index = int(np.searchsorted(np.cumsum(weights), mark, side="right"))
    return tuple(float(value) for value in poses[index])


_ARM = ("shoulder_flexion", "shoulder_abduction", "shoulder_twist", "elbow")


def _gesture(style: Style, phase: float) -> dict[str, float]:
    """Both arms doing something, with slow changes."""
    out = {}
    for side, trait in (("left", 12), ("right", 13)):
        pose = _arm_pose(style, trait)
        same = style.traits[14] < 0.35  # often both arms do the same
        pose = _arm_pose(style, 12) if same else pose
        for name, value, wobble in zip(_ARM, pose, (7, 5, 6, 8), strict=True):
            out[f"{side}_{name}"] = value + wobble * math.sin(phase * (0.7 + 0.1 * trait) + trait + wobble)
    return out


def stand(style: Style, phase: float) -> F64:
    """Standing with the weight on one or both legs, arms as they like."""
    relief = style.between(6, -1, 1)
    legs = {
        "left_knee": 4 + 24 * max(relief, 0),
        "left_hip_flexion": 2 + 15 * max(relief, 0),
        "right_knee": 4 + 24 * max(-relief, 0),
        "right_hip_flexion": 2 + 15 * max(-relief, 0),
        "left_hip_abduction": style.between(7, 1, 14),
        "right_hip_abduction": style.between(8, 1, 14),
    }
    return _angles(_sway(style, phase) | legs | _gesture(style, phase))


def wave(style: Style, phase: float) -> F64:
    """Standing and waving with one hand or both."""
    beat = math.sin(2 * phase)
    raised = {
        "shoulder_flexion": style.between(9, 8, 30),
        "shoulder_abduction": style.between(10, 88, 135) + 8 * beat,
        "shoulder_twist": -70 + 16 * beat,
        "elbow": style.between(11, 45, 100) + 22 * beat,
    }
    sides = (
        ("left", "right") if style.traits[15] < 0.25 else ("left",) if style.traits[15] < 0.62 else ("right",)
    )
    arms = {f"{side}_{name}": value for side in sides for name, value in raised.items()}
    rest = {key: value for key, value in _gesture(style, phase).items() if not key.startswith(sides)}
    return _angles(_sway(style, phase) | rest | arms)


def sit(style: Style, phase: float) -> F64:
    """Sitting on something as high as the shin is long."""
    legs = {}
    for side, trait in (("left", 6), ("right", 7)):
        legs[f"{side}_hip_flexion"] = style.between(trait, 82, 94)
        legs[f"{side}_knee"] = style.between(trait + 2, 66, 104)
        legs[f"{side}_hip_abduction"] = style.between(10, 2, 22)
        legs[f"{side}_ankle"] = 0.0
    lap: dict[str, float] = {}
    for side in ("left", "right"):
        lap |= dict(zip((f"{side}_{name}" for name in _ARM), (28, 8, 35, 62), strict=True))
    arms = _gesture(style, phase) if style.traits[15] < 0.6 else lap
    trunk = {"pelvis_pitch": style.between(11, -14, 10), "spine_pitch": style.between(5, 0, 26)}
    return _angles(_sway(style, phase) | legs | arms | trunk)


def crouch(style: Style, phase: float) -> F64:
    """Squatting or kneeling down to something."""
    depth = style.between(6, 0.45, 1.0)
    legs = {}
    for side, trait in (("left", 7), ("right", 8)):
        legs[f"{side}_hip_flexion"] = depth * style.between(trait, 88, 116)
        legs[f"{side}_knee"] = depth * style.between(trait, 118, 138)
        legs[f"{side}_ankle"] = depth * 22
        legs[f"{side}_hip_abduction"] = style.between(9, 4, 26)
    trunk = {"pelvis_pitch": depth * style.between(10, 8, 32), "spine_pitch": depth * style.between(5, 8, 30)}
    reach = {
        "left_shoulder_flexion": 60.0,
        "right_shoulder_flexion": 66.0,
        "left_elbow": 40.0,
        "right_elbow": 50.0,
    }
    arms = reach if style.traits[15] < 0.5 else _gesture(style, phase)
    return _angles(_sway(style, phase) | legs | trunk | arms)


def bend(style: Style, phase: float) -> F64:
    """Bending forward, as when picking something up."""
    depth = style.between(6, 0.4, 1.0)
    trunk = {"pelvis_pitch": 62 * depth, "spine_pitch": 30 * depth}
    legs, arms = {}, {}
    for side in ("left", "right"):
        legs[f"{side}_hip_flexion"] = 62 * depth + 22 * depth  # the thighs stay nearly upright
        legs[f"{side}_knee"] = 24 * depth
        arms[f"{side}_shoulder_flexion"] = style.between(9, 40, 95) * depth + 5 * math.sin(phase)
        arms[f"{side}_elbow"] = style.between(10, 8, 50)
    return _angles(_sway(style, phase) | legs | trunk | arms)


def exercise(style: Style, phase: float) -> F64:
    """Anything the limits allow, moderately: sport, dance, play."""
    comfort = np.array([0.38] * 8 + [0.62, 0.62, 0.7, 0.7, 0.45, 0.5, 0.4, 0.5, 0.4] * 2)
    rest = _angles({})
    numbers = np.array([style.traits[i % 16] * (1 + i // 16) % 1.0 for i in range(len(ANGLES))])
    beat = 0.12 * np.sin(phase + np.arange(len(ANGLES)))
    target = LIMITS[:, 0] + (LIMITS[:, 1] - LIMITS[:, 0]) * np.clip(numbers + beat, 0, 1)
    return limited(rest + comfort * (target - rest))


Motion = Callable[[Style, float], F64]
MOTIONS: dict[str, Motion] = {
    "walk": walk,
    "run": run,
    "stand": stand,
    "wave": wave,
    "sit": sit,
    "crouch": crouch,
    "bend": bend,
    "exercise": exercise,
}
