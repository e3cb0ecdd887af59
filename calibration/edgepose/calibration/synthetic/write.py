"""Writes synthetic pictures and videos with their truth for other tools: JPEG, MP4 and COCO JSON."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2

from edgepose.calibration.coco_json import Frame, to_coco
from edgepose.calibration.sample import Sample
from edgepose.calibration.synthetic.scene import scene
from edgepose.calibration.synthetic.video import Video, video
from edgepose.runtime.drafts import draft_folder, write_json
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.progress import track
from edgepose.runtime.skeleton import COCO17

_JPEG_QUALITY = 95


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise EdgeposeError(f"synthetic people: {name} is {value}; give a number above 0")


def write_dataset(folder: Path, count: int, seed: int, size: tuple[int, int] = (256, 256)) -> None:
    """`count` pictures as images/000000.jpg ... and annotations.json; `folder` appears when complete."""
    _require_positive(count=count, width=size[0], height=size[1])
    frames: list[Frame] = []
    with draft_folder(folder) as draft:
        (draft / "images").mkdir()
        for index in track(range(count), "synthetic people", count):
            sample = scene(seed, index, size)
            name = f"{index:06d}.jpg"
            _write_jpeg(draft / "images" / name, sample)
            frames.append((index, name, size, sample.people))
        write_json(draft / "annotations.json", to_coco(frames, COCO17))


def _write_jpeg(path: Path, sample: Sample) -> None:
    done, content = cv2.imencode(".jpg", sample.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise RuntimeError(f"OpenCV could not write a picture of shape {sample.image.shape} as JPEG")
    path.write_bytes(content.tobytes())  # unlike cv2.imwrite this says when the disk is full


def _open_writer(folder: Path, size: tuple[int, int], fps: int) -> tuple[Path, cv2.VideoWriter]:
    """An MP4 (MPEG-4 part 2) writer, or where OpenCV lacks that encoder an AVI (Motion JPEG) writer."""
    for name, four in (("video.mp4", "mp4v"), ("video.avi", "MJPG")):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*four), fps, size)
        if writer.isOpened():
            return folder / name, writer
    raise EdgeposeError(
        f"{folder}: this OpenCV writes neither MP4 nor AVI; install opencv-python-headless from PyPI"
    )


def _record(writer: cv2.VideoWriter, source: Video, frames: Iterable[int], name: str) -> dict[str, Any]:
    """Writes the frames and returns their truth."""
    labels: list[Frame] = []
    for i in frames:
        sample = source.frame(i)
        writer.write(sample.image)
        labels.append((i, name, source.size, sample.people))
    truth = to_coco(labels, COCO17)
    for image in truth["images"]:
        image["frame"] = image["id"]
    return truth


def write_video(
    folder: Path, seconds: float, seed: int, size: tuple[int, int] = (640, 480), fps: int = 25
) -> None:
    """video.mp4 (or video.avi) and truth.json, one COCO image with its `frame` number for every frame."""
    _require_positive(seconds=seconds, width=size[0], height=size[1], fps=fps)
    count = max(1, round(seconds * fps))
    with draft_folder(folder) as draft:
        path, writer = _open_writer(draft, size, fps)
        try:
            frames = track(range(count), "synthetic video", count)
            truth = _record(writer, video(seed, size, fps), frames, path.name)
        finally:
            writer.release()
        write_json(draft / "truth.json", truth)
