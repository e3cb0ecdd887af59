"""Synthetic people: seeded pictures and videos of 3-D bodies with exact COCO-17 labels.

`scene(seed, index, size)` is one picture of an endless set: 0 to 8 articulated bodies (body.py: tapered
capsules, an elliptic trunk, an ellipsoid head, joint limits) in motion (motion.py), dressed (look.py), seen
by a perspective camera (camera.py) before a backdrop (backdrop.py) among furniture (furniture.py), painted
from far to near (draw.py) and photographed (lens.py). The same outlines go onto a mask of who is seen where,
from which label.py takes visibility, box and area; joints are projected from 3-D. label.py says what counts
as seen.

`video(seed, size, fps)` is an endless film with random access to its frames; `write_dataset` and
`write_video` put both on disk with their truth as COCO JSON.

`sticks(seed, index, size)` is such a set of stick figures, for experiments of minutes (sticks.py).

The shipped weights were trained on `scene` and results name its seeds: what it returns is not to be changed.
"""

from __future__ import annotations

from edgepose.calibration.synthetic.scene import scene
from edgepose.calibration.synthetic.sticks import sticks
from edgepose.calibration.synthetic.video import Video, video
from edgepose.calibration.synthetic.write import write_dataset, write_video

__all__ = ["Video", "scene", "sticks", "video", "write_dataset", "write_video"]
