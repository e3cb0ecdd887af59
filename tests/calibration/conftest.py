"""Small COCO folders on disk, written without the package's own writer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgepose.runtime.skeleton import COCO17

FolderMaker = Callable[..., Path]
K = len(COCO17)


def picture(seed: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A soft random picture, unlike those of other seeds."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def annotation(number: int, image_id: int, box: Sequence[float], seen: int = K) -> dict[str, Any]:
    """A person whose first `seen` joints are visible and the others hidden."""
    x, y, width, height = box
    grid = np.random.default_rng(number).uniform(size=(K, 2)) * (width, height) + (x, y)
    flags = np.where(np.arange(K) < seen, 2, 1)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": 1,
        "keypoints": np.column_stack([grid, flags]).ravel().tolist(),
        "num_keypoints": K,
        "bbox": [float(v) for v in box],
        "area": float(width * height * 0.5),
        "iscrowd": 0,
    }


def boxes_for(index: int) -> list[tuple[tuple[float, ...], int]]:
    """(box, visible joints) in picture `index` of 96 x 64: nobody, one large, two together, two small."""
    kinds: list[list[tuple[tuple[float, ...], int]]] = [
        [],
        [((20, 5, 30, 50), 17)],
        [((20, 5, 30, 40), 12), ((30, 5, 30, 40), 5)],
        [((5, 5, 8, 12), 17), ((60, 40, 4, 8), 3)],
    ]
    return kinds[index % 4]


@pytest.fixture
def coco_folder(tmp_path: Path) -> FolderMaker:
    """Makes `tmp_path/name` with annotations.json and images/*.png of the given seeds."""

    def make(name: str, seeds: Sequence[int], **changes: Any) -> Path:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        annotations: list[dict[str, Any]] = []
        for index, seed in enumerate(seeds):
            cv2.imwrite(str(folder / "images" / f"{index:03d}.png"), picture(seed))
            for box, seen in boxes_for(index):
                annotations.append(annotation(len(annotations) + 1, index, box, seen))
        content = {
            "images": [
                {"id": i, "file_name": f"{i:03d}.png", "width": 96, "height": 64} for i in range(len(seeds))
            ],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.joints), "skeleton": []}],
        }
        (folder / "annotations.json").write_text(json.dumps({**content, **changes}))
        return folder

    return make
