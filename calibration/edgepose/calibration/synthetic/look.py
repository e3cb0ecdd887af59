"""What people wear: skin, hair, face and patterned garments as small texture tiles."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgepose.calibration.synthetic.body import PART, PARTS

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
LIMB_TILE = (24, 12)  # along, across
WRAP = 64  # height and full turn of a garment that wraps the trunk; the middle column is the front
_HEAD_H, _HEAD_W = 48, 96  # latitude from 90 to -90, longitude from -180 to 180, the middle is the face
_LATITUDE = 90 - np.arange(_HEAD_H, dtype=np.float32)[:, None] * (180 / _HEAD_H)  # degrees of its rows
_AWAY = np.abs(
    np.arange(_HEAD_W, dtype=np.float32)[None] * (360 / _HEAD_W) - 180
)  # of its columns from the face

_SKIN_BGR = np.array(
    [(195, 218, 246), (160, 190, 232), (130, 168, 216), (98, 136, 190), (66, 98, 150), (44, 66, 104)]
)
_HAIR_BGR = np.array(
    [(22, 22, 26), (30, 40, 58), (40, 62, 94), (90, 140, 180), (130, 190, 224), (160, 164, 168)]
)


@dataclass(frozen=True, slots=True)
class Look:
    """Textures of one person, BGR 0..255."""

    limbs: F32  # (P, 24, 12, 3) along and across each part
    wraps: F32  # (4, 64, 64, 3) the SLABS: from top to bottom, around from the back over the right side
    head: F32  # (48, 96, 3)


@functools.cache
def noise_tile() -> F32:
    """(256, 256) smooth noise in 0..1 at several scales; the same for everyone."""
    rng = np.random.default_rng(20240229)
    total = np.zeros((256, 256), np.float32)
    for cells, weight in ((8, 0.35), (24, 0.3), (64, 0.2), (128, 0.15)):
        small = rng.random((cells, cells), dtype=np.float32)
        total += weight * cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC)
    total -= total.min()
    return np.asarray(total / total.max(), np.float32)


def random_colour(rng: np.random.Generator) -> F32:
    """(3,) BGR of dyed cloth: often dark, grey or white, sometimes vivid."""
    kind, value, hue = rng.random(), rng.uniform(0.06, 1.0), rng.uniform(0, 6)
    low, high = (0.0, 0.15) if kind < 0.35 else (0.2, 0.6) if kind < 0.7 else (0.6, 1.0)
    saturation = rng.uniform(low, high)
    wheel = [min(max(abs((hue + turn) % 6 - 3) - 1, 0.0), 1.0) for turn in (0.0, 4.0, 2.0)]
    return np.array([255 * value * (1 - saturation + saturation * part) for part in wheel], np.float32)


def _checks(rng: np.random.Generator, rows: F32, columns: F32) -> F32:
    period = rng.uniform(5, 18)
    return 0.5 * (((rows % period) < period / 2).astype(np.float32) + ((columns % period) < period / 2))


def _spots(rng: np.random.Generator, rows: F32, columns: F32) -> F32:
    period = rng.uniform(6, 14)
    r, c = rows % period - period / 2, columns % period - period / 2
    return np.asarray((r * r + c * c) < (0.3 * period) ** 2, np.float32)


@functools.cache
def ramp(side: int) -> tuple[F32, F32]:
    """Rows (side, 1) and columns (1, side), counted from 0: what needs one alone stays a line."""
    line = np.arange(side, dtype=np.float32)
    return line[:, None], line[None]


def mixed(first: F32, second: F32, mix: F32, light: F32) -> list[F32]:
    """Two colours (3,) by a mix in 0..1, broadcast to the light (h, w) -> three channels (h, w).

    Channel by channel: numpy takes several times as long over a last axis of three.
    """
    return [(a + (b - a) * mix) * light for a, b in zip(first, second, strict=True)]


def picture(channels: Iterable[F32]) -> U8:
    """Three channels (h, w), cut to 0..255 -> (h, w, 3)."""
    return np.asarray(cv2.merge([np.clip(each, 0, 255).astype(np.uint8) for each in channels]), np.uint8)


def _pattern(rng: np.random.Generator) -> F32:
    """Mix in 0..1 of a garment's two colours, (64, 64) or what is broadcast to it."""
    rows, columns = ramp(WRAP)
    kind, period = rng.random(), rng.uniform(5, 22)
    if kind < 0.42:
        return np.zeros((1, 1), np.float32)
    if kind < 0.58:
        return np.asarray((rows % period) < period * rng.uniform(0.2, 0.6), np.float32)
    if kind < 0.66:
        return np.asarray((columns % period) < period * rng.uniform(0.2, 0.6), np.float32)
    if kind < 0.75:
        return _checks(rng, rows, columns)
    if kind < 0.80:
        return _spots(rng, rows, columns)
    if kind < 0.90:
        y, x = rng.integers(0, 256 - WRAP, 2)
        return np.clip(noise_tile()[y : y + WRAP, x : x + WRAP] * 5 - 2, 0, 1)
    return np.asarray(rows > WRAP * rng.uniform(0.3, 0.7), np.float32)


def _cloth(rng: np.random.Generator) -> F32:
    """(64, 64, 3) patterned cloth with folds."""
    first, second = random_colour(rng), random_colour(rng)
    mix = _pattern(rng)
    y, x = rng.integers(0, 256 - WRAP, 2)
    folds = 0.86 + 0.28 * noise_tile()[y : y + WRAP, x : x + WRAP]
    return np.asarray(cv2.merge(mixed(first, second, mix, folds)), np.float32)


def _front(rng: np.random.Generator, shirt: F32, skin: F32) -> None:
    """What only a front has: a neckline, a row of buttons, a zip, an open jacket, a print."""
    middle = WRAP // 2
    deep = int(rng.integers(5, 16))
    for row in range(deep):
        half = int((deep - row) * rng.uniform(0.35, 0.6)) + 1
        shirt[row, middle - half : middle + half] = skin
    kind = rng.random()
    ink = random_colour(rng)
    if kind < 0.2:
        shirt[:, middle - 1 : middle + 1] = 0.5 * shirt[:, middle - 1 : middle + 1] + 0.5 * ink
    elif kind < 0.4:
        width = int(rng.integers(2, 7))
        shirt[deep // 2 :, middle - width : middle + width] = ink
    elif kind < 0.65:
        y, h, w = int(rng.integers(16, 28)), int(rng.integers(5, 16)), int(rng.integers(3, 9))
        if rng.random() < 0.5:
            shirt[y : y + h, middle - w : middle + w] = ink
        else:
            cv2.ellipse(shirt, (middle, y + h // 2), (w, h // 2), 0, 0, 360, ink.tolist(), -1)
    if rng.random() < 0.15:  # a name on the back
        shirt[18:26, :7] = shirt[18:26, -7:] = ink


def _face(rng: np.random.Generator, head: F32, skin: F32, hair: F32) -> None:
    """Eyes, brows, mouth, cheeks; sometimes a beard, glasses, a mask."""
    middle = _HEAD_W // 2
    per_degree = _HEAD_W / 360

    def at(longitude: float, latitude: float) -> tuple[int, int]:
        return round((middle + longitude * per_degree) * 16), round((90 - latitude) * per_degree * 16)

    def blob(where: tuple[float, float], size: tuple[float, float], colour: F32) -> None:
        axes = (round(size[0] * per_degree * 16), round(size[1] * per_degree * 16))
        cv2.ellipse(head, at(*where), axes, 0, 0, 360, colour.tolist(), -1, cv2.LINE_8, 4)

    if rng.random() < 0.22:
        blob((0, -42), (46, 26), 0.75 * hair + 0.25 * skin)
    blob((0, -22), (9, 10), skin * 0.9)
    blob((0, -40), (17, 4.5), skin * np.array([0.55, 0.5, 0.8], np.float32))
    iris = hair * 0.4 + rng.uniform(0, 60, 3).astype(np.float32)
    for side in (-23, 23):
        blob((side, 7), (12, 8.5), skin * 0.78)
        blob((side, 7), (8.5, 5), np.array([225, 228, 232], np.float32))
        blob((side, 7), (4.6, 5), np.minimum(iris, 90))
        blob((side, 20), (12, 3.2), hair * 0.7 + 0.1 * skin)
    glasses = rng.random()
    if glasses < 0.14:
        for side in (-23, 23):
            blob((side, 6), (15, 12), np.full(3, 28, np.float32))
            if glasses < 0.09:
                blob((side, 6), (11, 8.5), np.array([190, 180, 170], np.float32))
                blob((side, 7), (4.6, 5), np.minimum(iris, 90))


def _head(rng: np.random.Generator, skin: F32, hair: F32) -> F32:
    """(48, 96, 3) skin below the hairline, hair above it, perhaps a cap."""
    front, nape = rng.uniform(28, 48), rng.uniform(-58, -30)
    bald = rng.random() < 0.08
    # The hairline falls from the forehead over the temples to the nape.
    line = np.interp(_AWAY, (0, 48, 72, 88, 112, 180), (front, front - 4, 12, 2, nape * 0.7, nape)).astype(
        np.float32
    )
    line = np.interp(_AWAY, (0, 70, 100, 180), (95, 95, 25, 30)) if bald else line
    y, x = rng.integers(0, 128, 2)
    strands = 0.75 + 0.5 * noise_tile()[y : y + _HEAD_H, x : x + _HEAD_W]
    covered = line < _LATITUDE
    channels = [np.where(covered, h * strands, s) for h, s in zip(hair, skin, strict=True)]
    head = np.asarray(cv2.merge(channels), np.float32)
    _face(rng, head, skin, hair)
    if rng.random() < 0.14:
        brim = np.where(_AWAY < 60, 26, rng.uniform(10, 30))
        head[brim < _LATITUDE] = random_colour(rng)
    return head


def _sleeve(tile: F32, cloth: F32, until: float) -> None:
    """Covers a limb from its start to the fraction `until` of its length."""
    rows = round(until * LIMB_TILE[0])
    tile[:rows] = cloth[: 2 * rows : 2, : 2 * LIMB_TILE[1] : 2]


def _dress_arms(rng: np.random.Generator, limbs: F32, shirt: F32) -> None:
    kind = rng.random()
    upper, lower = (
        (0, 0) if kind < 0.1 else (rng.uniform(0.35, 1), 0) if kind < 0.5 else (1, rng.uniform(0.5, 1))
    )
    for side in ("left", "right"):
        _sleeve(limbs[PART[f"{side}_upper_arm"]], shirt, upper)
        _sleeve(limbs[PART[f"{side}_forearm"]], shirt, lower)


def _dress_legs(rng: np.random.Generator, limbs: F32, trousers: F32, bare: bool) -> None:
    short = rng.random() < 0.3
    upper, lower = (
        (0.1, 0.0) if bare else (rng.uniform(0.4, 1), 0.0) if short else (1.0, rng.uniform(0.75, 1))
    )
    shoe, sock = random_colour(rng), random_colour(rng)
    for side in ("left", "right"):
        _sleeve(limbs[PART[f"{side}_thigh"]], trousers, upper)
        shin = limbs[PART[f"{side}_shin"]]
        if lower == 0 and rng.random() < 0.6:
            shin[-7:] = sock
        _sleeve(shin, trousers, lower)
        limbs[PART[f"{side}_foot"]] = shoe
        limbs[PART[f"{side}_foot"], :, :2] = shoe * 0.5 + 100  # a sole


def make_look(rng: np.random.Generator, skirted: bool) -> Look:
    """Clothes, hair and face of one person; `skirted` leaves the legs bare."""
    tone = rng.uniform(0, len(_SKIN_BGR) - 1.001)
    skin = (_SKIN_BGR[int(tone)] * (1 - tone % 1) + _SKIN_BGR[int(tone) + 1] * (tone % 1)).astype(np.float32)
    hair = (_HAIR_BGR[rng.integers(len(_HAIR_BGR))] * rng.uniform(0.7, 1.15)).astype(np.float32)
    shirt, trousers = _cloth(rng), _cloth(rng)
    if rng.random() < 0.3:  # jeans and the like: plain and dark
        trousers = np.asarray(trousers * 0 + random_colour(rng) * rng.uniform(0.3, 0.8), np.float32)
    limbs = np.empty((len(PARTS), *LIMB_TILE, 3), np.float32)
    limbs[:] = skin
    limbs[PART["hair"]] = hair
    limbs[PART["nose"]] = skin * 0.96
    limbs[[PART["left_ear"], PART["right_ear"]]] = skin * np.array([0.86, 0.84, 0.98], np.float32)
    limbs[PART["bag"]] = random_colour(rng)
    _dress_arms(rng, limbs, shirt)
    _dress_legs(rng, limbs, trousers, skirted)
    body = shirt.copy()
    _front(rng, body, skin)
    # The shirt is one wrap from throat to hem: the chest takes its upper, the belly its lower part.
    chest, belly = cv2.resize(body[:28], (WRAP, WRAP)), cv2.resize(body[24:], (WRAP, WRAP))
    skirt = trousers if rng.random() < 0.5 else shirt
    wraps = np.stack([trousers, belly, chest, skirt])
    return Look(limbs, np.asarray(wraps, np.float32), _head(rng, skin, hair))
