"""Poses as data: one JSON object for each frame, the same on the side channel and inside the RTSP session."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgepose.runtime.poses import STAGES, Poses, boxes_of

VERSION = 1  # rises when a reader of the older one would be misled; a key more does not mislead


@dataclass(frozen=True, slots=True)
class Stamp:
    """When and where a frame was taken, and how long its poses took."""

    seq: int  # frames since the stream began, those of "no signal" not counted
    frame: int | None  # index in the source, where it has one
    pts_ns: int  # capture time since the stream began
    t_ns: int  # capture time, UTC, nanoseconds since 1970
    width: int  # of the streamed picture, pixels
    height: int
    latency_ms: float  # capture -> poses known


def pose_line(stamp: Stamp, poses: Poses) -> str:
    """One line of JSON. A person's `keypoints` are x, y, score of every joint, flat, in the skeleton's order.

    Flat and rounded (0.1 pixel, 0.01 score), because 30 nested people cost more bytes than the video. A
    cascade's people have a `stage` too, one of `STAGES`.
    """
    people: list[dict[str, Any]] = [
        {"score": round(float(score), 3), "keypoints": _flat(poses, person)}
        for person, score in enumerate(poses.scores)
    ]
    if poses.stages is not None:
        people = [each | {"stage": STAGES[stage]} for each, stage in zip(people, poses.stages, strict=True)]
    return _line(_head(stamp) | {"latency_ms": round(stamp.latency_ms, 1), "people": people})


def no_signal_line(stamp: Stamp) -> str:
    """The message that goes with a "no signal" picture: a silent data stream would keep new viewers out."""
    return _line(_head(stamp) | {"signal": False, "people": []})


def not_estimated_line() -> str:
    """The message that lets a new viewer in before the first estimate is there."""
    return _line({"v": VERSION, "people": None})


def people_of(line: dict[str, Any]) -> Poses:
    """Poses from a parsed line. Raises KeyError, TypeError or ValueError when it is not one."""
    people = line["people"]
    if not people:
        return Poses.empty()
    triples = np.array([person["keypoints"] for person in people], np.float32).reshape(len(people), -1, 3)
    keypoints = np.ascontiguousarray(triples[..., :2])
    scores = np.array([person["score"] for person in people], np.float32)
    told = [STAGES.index(person["stage"]) for person in people if "stage" in person]
    stages = np.array(told, np.uint8) if told else None
    return Poses(keypoints, np.ascontiguousarray(triples[..., 2]), scores, boxes_of(keypoints), stages)


def _flat(poses: Poses, person: int) -> list[float]:
    joints = np.concatenate(  # (K, 2) and (K, 1) -> (K, 3)
        [np.round(poses.keypoints[person], 1), np.round(poses.keypoint_scores[person, :, None], 2)], axis=1
    )
    return [_short(value) for value in joints.ravel().tolist()]


def _short(value: float) -> float:
    rounded = round(value, 2)  # float32 0.1 would print as 0.10000000149
    return int(rounded) if rounded == int(rounded) else rounded


def _head(stamp: Stamp) -> dict[str, Any]:
    return {
        "v": VERSION,
        "seq": stamp.seq,
        "frame": stamp.frame,
        "pts_ns": stamp.pts_ns,
        "t_ns": stamp.t_ns,
        "w": stamp.width,
        "h": stamp.height,
    }


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
