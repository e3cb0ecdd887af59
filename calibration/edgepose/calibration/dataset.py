"""One way to open labelled pictures: made on the spot, or from COCO annotations on disk."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from edgepose.calibration.coco import Coco, CocoImage, read_coco
from edgepose.calibration.images import read_image
from edgepose.calibration.sample import Person, Sample
from edgepose.calibration.synthetic import scene, sticks
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.preprocess import U8
from edgepose.runtime.skeleton import COCO17, Skeleton

SYNTHETIC = "synthetic:"
PEOPLE: Mapping[str, Callable[[int, int, tuple[int, int]], Sample]] = {"bodies": scene, "sticks": sticks}
SYNTHETIC_DEFAULTS = {"count": "300", "seed": "0", "size": "256", "people": "bodies"}
EXAMPLE = "synthetic:count=300,seed=7,size=256, an annotation file .json, or a folder with annotations.json"
RECENT = (
    8  # samples kept, so that labels, fingerprint and pixels of one picture cost one rendering or decoding
)


class Dataset(Protocol):
    """Labelled pictures in a fixed order; every question about picture i is answered on demand."""

    @property
    def source(self) -> str:
        """What `open_dataset` was given."""

    @property
    def name(self) -> str:
        """Short name for tables."""

    @property
    def skeleton(self) -> Skeleton:
        """The joints of every person."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def people(self, index: int) -> tuple[Person, ...]:
        """The people of a picture, without decoding its file."""

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) in pixels, without decoding its file."""

    def fingerprint(self, index: int) -> str:
        """sha256 of the decoded pixels: the same for a lossless copy under any name or format."""


def fingerprint_of(image: U8) -> str:
    """sha256 of the size and the pixels of a (H, W, 3) picture."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def open_dataset(source: str) -> Dataset:
    """Open `synthetic:count=…,seed=…,size=…`, a COCO keypoint file, or a folder with annotations.json."""
    if source.startswith(SYNTHETIC):
        return SyntheticDataset.parse(source)
    path = Path(source)
    if path.is_dir():
        path = path / "annotations.json"
    if not path.is_file():
        raise EdgeposeError(f"{path}: no such file; a dataset is {EXAMPLE}")
    return CocoDataset(source, read_coco(path))


class SyntheticDataset:
    """Pictures of the generator; the same seed always gives the same pictures."""

    skeleton = COCO17

    def __init__(self, count: int, seed: int, size: tuple[int, int], people: str = "bodies") -> None:
        """`size` is (width, height) in pixels, `people` one of PEOPLE."""
        self._count, self._seed, self._size, self._scene = count, seed, size, PEOPLE[people]
        kind = "" if people == SYNTHETIC_DEFAULTS["people"] else f",people={people}"
        self.source = f"{SYNTHETIC}count={count},seed={seed},size={size[0]}x{size[1]}{kind}"
        self.name = f"synthetic {'people' if not kind else people}, seed {seed}"
        self._sample = lru_cache(RECENT)(self._make)
        self._people: dict[int, tuple[Person, ...]] = {}  # labels are small and asked for again and again
        self._fingerprint = lru_cache(None)(lambda index: fingerprint_of(self[index].image))  # so are these

    @classmethod
    def parse(cls, source: str) -> SyntheticDataset:
        """From `synthetic:key=value,…`; an unknown key or a value that is no number is refused."""
        options = dict(SYNTHETIC_DEFAULTS)
        for item in filter(None, source.removeprefix(SYNTHETIC).split(",")):
            key, _, value = item.partition("=")
            if key not in options:
                near = difflib.get_close_matches(key, options, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(options)}"
                raise EdgeposeError(f"{source}: unknown key {key!r}; {hint}")
            options[key] = value
        if options["people"] not in PEOPLE:
            raise EdgeposeError(f"{source}: people={options['people']!r} is none of {', '.join(PEOPLE)}")
        return cls(
            _whole(source, "count", options["count"], 1),
            _whole(source, "seed", options["seed"], 0),
            _size(source, options["size"]),
            options["people"],
        )

    def _make(self, index: int) -> Sample:
        sample = self._scene(self._seed, index, self._size)
        self._people[index] = sample.people
        return sample

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        return self._sample(range(self._count)[index])

    def people(self, index: int) -> tuple[Person, ...]:
        found = self._people.get(index)
        return self[index].people if found is None else found

    def size(self, index: int) -> tuple[int, int]:
        return self._size

    def fingerprint(self, index: int) -> str:
        return self._fingerprint(index)


def _whole(source: str, key: str, text: str, least: int) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < least:
        raise EdgeposeError(f"{source}: {key}={text!r} is not a whole number from {least} on")
    return int(text)


def _size(source: str, text: str) -> tuple[int, int]:
    """(width, height) of `256` or `320x240`."""
    match = re.fullmatch(r"(\d{2,4})(?:x(\d{2,4}))?", text)
    if not match or min(int(side) for side in match.groups(match[1])) < 32:
        raise EdgeposeError(
            f"{source}: size={text!r} is no size; write size=256 or size=320x240 (32 to 9999 pixels)"
        )
    return int(match[1]), int(match[2] or match[1])


class CocoDataset:
    """COCO pictures on disk, with the pixels as stored: COCO's labels refer to those, so EXIF is ignored."""

    def __init__(self, source: str, coco: Coco) -> None:
        self.source = source
        self.name = coco.path.parent.name if coco.path.name == "annotations.json" else coco.path.stem
        self.skeleton = coco.skeleton
        self._coco = coco
        self._folder = _image_folder(coco)
        self._sample = lru_cache(RECENT)(self._read)

    def _read(self, index: int) -> Sample:
        entry = self._coco.images[index]
        path = self._folder / entry.file_name
        image = read_image(path, upright=False)
        _require_size(path, image, entry)
        return Sample(entry.image_id, image, entry.people, entry.file_name)

    def __len__(self) -> int:
        return len(self._coco.images)

    def __getitem__(self, index: int) -> Sample:
        return self._sample(range(len(self))[index])

    def people(self, index: int) -> tuple[Person, ...]:
        return self._coco.images[index].people

    def size(self, index: int) -> tuple[int, int]:
        return self._coco.images[index].width, self._coco.images[index].height

    def fingerprint(self, index: int) -> str:
        return fingerprint_of(self[index].image)


class Chosen:
    """Some pictures of a dataset."""

    def __init__(self, whole: Dataset, places: Sequence[int]) -> None:
        """`places` of the pictures in the `whole`, in their new order."""
        self.source, self.name, self.skeleton = whole.source, whole.name, whole.skeleton
        self._whole, self._places = whole, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        return self._whole[self._places[index]]

    def people(self, index: int) -> tuple[Person, ...]:
        return self._whole.people(self._places[index])

    def size(self, index: int) -> tuple[int, int]:
        return self._whole.size(self._places[index])

    def fingerprint(self, index: int) -> str:
        return self._whole.fingerprint(self._places[index])


def _image_folder(coco: Coco) -> Path:
    """Where the pictures lie: beside the file, in images/, or (COCO's own layout) in ../val2017/."""
    here = coco.path.parent
    split = coco.path.stem.rpartition("_")[2]
    candidates = (here / "images", here, here.parent / split, here.parent / "images", here.parent)
    first = coco.images[0].file_name
    for folder in candidates:
        if (folder / first).is_file():
            return folder
    places = ", ".join(str(folder) for folder in candidates[:3])
    raise EdgeposeError(
        f"{coco.path}: its first picture {first} lies neither in {places}; put the pictures there"
    )


def _require_size(path: Path, image: U8, entry: CocoImage) -> None:
    height, width = image.shape[:2]
    if (width, height) == (entry.width, entry.height):
        return
    turned = (
        " (they seem to describe it as its EXIF tag turns it; save it upright, without the tag)"
        if read_image(path).shape[:2] == (entry.height, entry.width)
        else ""
    )
    raise EdgeposeError(
        f"{path}: stored as {width}x{height} pixels, the annotations say {entry.width}x{entry.height}{turned}"
    )
