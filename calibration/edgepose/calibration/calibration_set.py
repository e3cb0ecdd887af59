"""The pictures a quantizer calibrates on: chosen for coverage, hashed, proven apart from the evaluation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.calibration.dataset import Dataset, fingerprint_of
from edgepose.calibration.images import encode_png, read_image
from edgepose.calibration.sample import Person, Sample
from edgepose.runtime.drafts import draft_folder, read_json, sha256, write_json
from edgepose.runtime.errors import EdgeposeError, GateFailed
from edgepose.runtime.preprocess import U8
from edgepose.runtime.progress import track
from edgepose.runtime.spec import misfits

MANIFEST = "manifest.json"
VERSION = 2
FEWEST = 16  # below this an activation range is an accident of the pictures, however well they are chosen
WHAT = "an edgepose calibration set"

EMPTY = "nobody"
SCALES = (
    ("tiny", 0.0),
    ("small", 0.15),
    ("medium", 0.3),
    ("large", 0.6),
)  # from this share of the picture's height
CLOSE = 0.1  # share of a person's box under another's from which they are together


@dataclass(frozen=True, slots=True)
class Stratum:
    """How many pictures show at least one person of a kind."""

    source: int
    chosen: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One picture of the set."""

    file: str  # relative to the set's folder
    sha256: str  # of the file's bytes
    pixels: str  # sha256 of the decoded pixels, as in Dataset.fingerprint
    index: int  # in the source
    image_id: int  # there
    why: str  # the stratum it was chosen for
    strata: tuple[str, ...]  # all strata it shows
    people: int
    scales: tuple[float, ...]  # box height / picture height of each person


@dataclass(frozen=True, slots=True)
class Exclusion:
    """The proof that the set shares nothing with the evaluation data."""

    source: str
    compared: int  # evaluation pictures whose pixels were hashed
    digest: str  # sha256 over the sorted hashes of the evaluation pictures
    shared: int  # always 0 in a manifest: a set that shares pictures is refused
    near_duplicates: int  # look-alikes by difference hash and thumbnail; a warning, not a proof
    method: str = "sha256 of decoded pixels; 8x8 difference hash and 16x16 thumbnail for look-alikes"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in a set and why. JSON round-trips exactly."""

    source: str
    seed: int
    images: tuple[Entry, ...]
    coverage: dict[str, Stratum]
    exclusion: Exclusion
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any, origin: Path) -> Manifest:
        """Raises EdgeposeError naming `origin` when the values are no manifest of this version."""
        version = values.get("version") if isinstance(values, dict) else None
        if version != VERSION:
            raise EdgeposeError(
                f"{origin}: not the manifest of {WHAT} of version {VERSION} (its version is {version!r}); "
                "make the set again: edgepose calibrate"
            )
        try:
            images = tuple(
                Entry(**{**e, "strata": tuple(e["strata"]), "scales": tuple(e["scales"])})
                for e in values["images"]
            )
            coverage = {name: Stratum(**counts) for name, counts in values["coverage"].items()}
            exclusion = Exclusion(**values["exclusion"])
            rest = {"images": images, "coverage": coverage, "exclusion": exclusion}
            made = cls(**{**values, **rest})
        except (KeyError, TypeError, AttributeError) as error:
            raise EdgeposeError(f"{origin}: damaged manifest ({error!r}); make the set again") from error
        for part in (*images, *coverage.values(), exclusion):
            for name in misfits(part):
                raise EdgeposeError(
                    f"{origin}: damaged manifest ({name} is {getattr(part, name)!r}); make the set again"
                )
        return made


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """A set on disk whose every hash was verified."""

    folder: Path
    manifest: Manifest
    sha256: str  # of the manifest, which holds the hashes of the pictures

    def __len__(self) -> int:
        return len(self.manifest.images)

    def images(self) -> Iterator[U8]:
        """(H, W, 3) BGR pictures as a camera would give them, before preprocessing."""
        for entry in self.manifest.images:
            yield read_image(self.folder / entry.file, upright=False)

    def samples(self) -> Iterator[Sample]:
        """The same with their names, without labels: what calibrates has to be found in them."""
        for entry, image in zip(self.manifest.images, self.images(), strict=True):
            yield Sample(entry.image_id, image, (), entry.file)


# What a picture shows.


def strata_of(people: Sequence[Person], size: tuple[int, int]) -> tuple[str, ...]:
    """The kinds of people in a picture of (width, height): `scale visibility crowding` each, or `nobody`."""
    kinds = {
        f"{_scale(person, size[1])} {_visibility(person)} {_crowding(person, people)}"
        for person in people
        if not person.crowd and person.visibility.any()
    }
    return tuple(sorted(kinds)) or (EMPTY,)


def _scale(person: Person, height: int) -> str:
    return [name for name, least in SCALES if person.box[3] >= least * height][-1]


def _visibility(person: Person) -> str:
    """Whole: all joints seen; partial: at least half of them; hidden: fewer."""
    seen = float((person.visibility == 2).mean())
    return "whole" if seen == 1 else "partial" if seen >= 0.5 else "hidden"


def _crowding(person: Person, people: Sequence[Person]) -> str:
    """Together when another's box covers a part of this one's."""
    covered = max((_overlap(person.box, other.box) for other in people if other is not person), default=0.0)
    return "together" if covered >= CLOSE else "alone"


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Share of box a (x, y, width, height) that lies under box b."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0) / max(a[2] * a[3], 1e-9)


# Which pictures to take.


def choose(strata: Sequence[tuple[str, ...]], count: int, seed: int) -> list[tuple[int, str]]:
    """(index, stratum it is taken for) of `count` pictures: common kinds of people do not drown rare ones.

    Always the stratum that has fewest pictures so far is served next, by a random picture among those that
    bring the most strata nobody has brought yet.
    """
    order = np.random.default_rng(seed).permutation(len(strata)).tolist()
    waiting: dict[str, list[int]] = {}
    for index in order:
        for stratum in strata[index]:
            waiting.setdefault(stratum, []).append(index)
    have: Counter[str] = Counter()
    chosen: dict[int, str] = {}
    while len(chosen) < min(count, len(strata)):
        waiting = {
            name: left for name, every in waiting.items() if (left := [i for i in every if i not in chosen])
        }
        scarce = min(waiting, key=lambda name: (have[name], len(waiting[name]), name))
        index = max(waiting[scarce], key=lambda i: sum(not have[name] for name in strata[i]))
        chosen[index] = scarce
        have.update(strata[index])
    return list(chosen.items())


def _coverage(source: Iterable[tuple[str, ...]], chosen: Iterable[tuple[str, ...]]) -> dict[str, Stratum]:
    """Pictures per stratum in the source and in the set."""
    there, here = (Counter(name for strata in group for name in strata) for group in (source, chosen))
    return {name: Stratum(there[name], here[name]) for name in sorted(there)}


# Whether two sets of pictures share any.


@dataclass(frozen=True, slots=True, eq=False)
class _Look:
    """What is compared of N pictures."""

    pixels: list[str]
    bits: npt.NDArray[np.float32]  # (N, 64) difference hash, 0 or 1
    thumbnails: npt.NDArray[np.float32]  # (N, 256) grey levels


NEAR_BITS = 6  # of 64
NEAR_LEVELS = 4.0  # mean grey difference of the thumbnails
FLAT_LEVELS = 6.0  # a thumbnail that varies less is flat: its difference hash is noise


def _difference_hash(grey: U8) -> npt.NDArray[np.float32]:
    """(64,) is each cell of an 8x8 grid brighter than its left neighbour."""
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.asarray((np.diff(small, axis=1) > 0).ravel(), np.float32)


def _look(images: Iterable[U8]) -> _Look:
    pixels, bits, thumbnails = [], [], []
    for image in images:
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        pixels.append(fingerprint_of(image))
        bits.append(_difference_hash(np.asarray(grey, np.uint8)))
        thumbnails.append(
            np.asarray(cv2.resize(grey, (16, 16), interpolation=cv2.INTER_AREA), np.float32).ravel()
        )
    return _Look(
        pixels, np.array(bits, np.float32).reshape(-1, 64), np.array(thumbnails, np.float32).reshape(-1, 256)
    )


def _near(a: _Look, b: _Look) -> list[int]:
    """Indices in a of pictures that look like one of b: both measures agree and the picture is not flat."""
    distance = a.bits @ (1 - b.bits).T + (1 - a.bits) @ b.bits.T  # (N, M) differing bits
    found = []
    for index in np.flatnonzero((distance <= NEAR_BITS).any(axis=1)):
        candidates = b.thumbnails[distance[index] <= NEAR_BITS]
        closest = np.abs(candidates - a.thumbnails[index]).mean(axis=1).min()
        if closest <= NEAR_LEVELS and a.thumbnails[index].std() > FLAT_LEVELS:
            found.append(int(index))
    return found


def _digest(pixels: Sequence[str]) -> str:
    """sha256 over sorted hashes."""
    return hashlib.sha256("\n".join(sorted(pixels)).encode()).hexdigest()


def prove_apart(names: Sequence[str], mine: _Look, exclude: Dataset) -> Exclusion:
    """Compare pictures, called `names` in messages, with evaluation data; GateFailed when they share one."""
    theirs = _look(_pictures(exclude, "Hashing the evaluation pictures"))
    known = set(theirs.pixels)
    shared = [name for name, pixels in zip(names, mine.pixels, strict=True) if pixels in known]
    if shared:
        raise GateFailed(
            f"{len(shared)} of {len(names)} calibration pictures are also in the evaluation data "
            f"{exclude.source} (first: {shared[0]}), where accuracy would flatter; "
            "give other --data or --exclude"
        )
    return Exclusion(exclude.source, len(theirs.pixels), _digest(theirs.pixels), 0, len(_near(mine, theirs)))


def require_apart(manifest: Manifest, data: Dataset) -> None:
    """Raises GateFailed when evaluation data has a picture of the set that a network was calibrated on."""
    calibrated = {entry.pixels: entry.index for entry in manifest.images}
    for index in track(range(len(data)), "Hashing the evaluation pictures", len(data)):
        if (place := calibrated.get(data.fingerprint(index))) is not None:
            raise GateFailed(
                f"{data.source}: its picture {index} is picture {place} of {manifest.source}, which INT8 was "
                "calibrated on, so that its accuracy would flatter; give other --data"
            )


def _pictures(dataset: Dataset, description: str) -> Iterator[U8]:
    for index in track(range(len(dataset)), description, len(dataset)):
        yield dataset[index].image


# Making, reading and auditing a set.


def make_calibration_set(
    data: Dataset, exclude: Dataset, count: int, out: Path, seed: int = 0
) -> CalibrationSet:
    """Choose `count` pictures of `data`, prove that none is in `exclude`, write them to `out` with why.

    Raises EdgeposeError when `data` is too small or has nobody, GateFailed when the two share a picture.
    """
    if count < FEWEST:
        raise EdgeposeError(
            f"--count {count}: a calibration set needs {FEWEST} pictures or more; 300 are usual"
        )
    if len(data) < count:
        raise EdgeposeError(
            f"{data.source}: has {len(data)} pictures, --count asks for {count}; lower it or add data"
        )
    with draft_folder(out) as folder:
        indices = track(range(len(data)), "Reading the labels", len(data))
        strata = [strata_of(data.people(index), data.size(index)) for index in indices]
        if all(names == (EMPTY,) for names in strata):
            raise EdgeposeError(f"{data.source}: a dataset without people cannot calibrate a pose network")
        chosen = choose(strata, count, seed)
        entries = tuple(_write(data, index, why, folder) for index, why in track(chosen, "Writing pictures"))
        looks = _look(read_image(folder / entry.file, upright=False) for entry in entries)
        if (different := len(set(looks.pixels))) < FEWEST:
            raise EdgeposeError(
                f"{data.source}: {different} different pictures among the {count} chosen; a calibration set "
                f"needs {FEWEST} or more, add data"
            )
        exclusion = prove_apart([f"{data.source} picture {entry.index}" for entry in entries], looks, exclude)
        coverage = _coverage(strata, (entry.strata for entry in entries))
        manifest = Manifest(data.source, seed, entries, coverage, exclusion)
        _require_coverage(out, manifest)
        write_json(folder / MANIFEST, manifest.to_dict())
    return load_calibration_set(out)


def _write(data: Dataset, index: int, why: str, folder: Path) -> Entry:
    """One picture as a lossless file, and what the manifest says of it."""
    sample = data[index]
    height, width = sample.image.shape[:2]
    file = folder / "images" / f"{index:06d}.png"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(encode_png(sample.image))
    people = [person for person in sample.people if not person.crowd]
    return Entry(
        file=f"images/{file.name}",
        sha256=sha256(file),
        pixels=fingerprint_of(sample.image),
        index=index,
        image_id=sample.image_id,
        why=why,
        strata=strata_of(sample.people, (width, height)),
        people=len(people),
        scales=tuple(round(person.box[3] / height, 4) for person in people),
    )


def _require_coverage(origin: Path, manifest: Manifest) -> None:
    """Raises GateFailed when the source has a kind of people that the set lacks, or the set is too small."""
    different = len({entry.pixels for entry in manifest.images})
    if different < FEWEST:
        raise GateFailed(
            f"{origin}: {different} different pictures; a calibration set needs {FEWEST} or more"
        )
    shown = Counter(name for entry in manifest.images for name in entry.strata)
    if set(shown) <= {EMPTY}:
        raise GateFailed(f"{origin}: nobody is in any of its pictures; it cannot calibrate a pose network")
    missing = [name for name, counts in manifest.coverage.items() if counts.source and not shown[name]]
    if missing:
        raise GateFailed(
            f"{origin}: no picture shows {', '.join(missing)}, though the source has them; raise --count "
            f"(now {len(manifest.images)})"
        )


def load_calibration_set(folder: Path) -> CalibrationSet:
    """Open a set and verify every hash; raises EdgeposeError when anything is not as written."""
    path = folder / MANIFEST
    manifest = Manifest.from_dict(read_json(path, f"the manifest of {WHAT}"), path)
    for entry in manifest.images:
        file = folder / entry.file
        if not file.is_file():
            raise EdgeposeError(
                f"{file}: missing from the calibration set; make the set again: edgepose calibrate"
            )
        if sha256(file) != entry.sha256:
            raise EdgeposeError(
                f"{file}: its bytes are not those in the manifest; make the set again: edgepose calibrate"
            )
    return CalibrationSet(folder, manifest, sha256(path))


def require_useful(found: CalibrationSet) -> None:
    """Raises EdgeposeError when too few pictures show anything to take activation ranges from."""
    useful = count_useful(found.images())
    if useful < FEWEST:
        raise EdgeposeError(
            f"{found.folder}: {useful} different ones of its {len(found)} pictures show more than one "
            f"colour, a calibration needs {FEWEST} or more; make the set again: edgepose calibrate"
        )


def count_useful(images: Iterable[U8]) -> int:
    """How many different (H, W, 3) pictures, or crops of some, show more than one colour."""
    return len({fingerprint_of(image) for image in images if (image != image[0, 0]).any()})


def audit(folder: Path, exclude: Dataset) -> Exclusion:
    """Check an existing set against evaluation data: hashes, size, coverage and that no picture is shared."""
    found = load_calibration_set(folder)
    _require_coverage(folder, found.manifest)
    names = [str(folder / entry.file) for entry in found.manifest.images]
    looks = _look(track(found.images(), "Reading the calibration pictures", len(found)))
    for name, pixels, entry in zip(names, looks.pixels, found.manifest.images, strict=True):
        if pixels != entry.pixels:
            raise EdgeposeError(
                f"{name}: its pixels are not those the manifest describes; make the set again"
            )
    return prove_apart(names, looks, exclude)
