"""Every kind of picture file becomes 8-bit BGR, and every broken one a sentence."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edgepose.calibration.images import encode_png, read_image
from edgepose.runtime.errors import EdgeposeError

PIL = pytest.importorskip("PIL.Image", reason="Pillow writes the foreign kinds of files")


@pytest.fixture
def smooth() -> np.ndarray:
    """(67, 101, 3) BGR."""
    coarse = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    return cv2.resize(coarse, (101, 67), interpolation=cv2.INTER_CUBIC)


def saved(path: Path, pixels: np.ndarray, mode: str | None = None, **options: object) -> Path:
    """Write BGR pixels with Pillow, converted to `mode`."""
    image = PIL.fromarray(np.ascontiguousarray(pixels[..., ::-1]))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize(
    ("name", "mode", "tolerance"),
    [("a.png", None, 0), ("a.jpg", None, 4), ("a.jpg", "CMYK", 6), ("a.webp", None, 6), ("a.png", "P", 20)],
)
def test_colours_survive(
    tmp_path: Path, smooth: np.ndarray, name: str, mode: str | None, tolerance: float
) -> None:
    image = read_image(saved(tmp_path / name, smooth, mode))
    assert image.shape == smooth.shape
    assert image.dtype == np.uint8
    assert difference(image, smooth) <= tolerance


def test_grey_is_repeated(tmp_path: Path, smooth: np.ndarray) -> None:
    image = read_image(saved(tmp_path / "grey.png", smooth, "L"))
    assert image.shape == smooth.shape
    assert (image[..., 0] == image[..., 2]).all()


def test_sixteen_bits_are_cut_to_eight(tmp_path: Path) -> None:
    deep = (np.arange(100).reshape(10, 10) * 600).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    assert (read_image(tmp_path / "deep.png")[..., 0] == deep >> 8).all()


def test_alpha_is_dropped(tmp_path: Path, smooth: np.ndarray) -> None:
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([smooth, np.zeros(smooth.shape[:2], np.uint8)]))
    assert (read_image(tmp_path / "alpha.png") == smooth).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 33), (641, 3), (7, 5)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    assert (read_image(saved(tmp_path / "odd.png", pixels)) == pixels).all()


# What each EXIF orientation asks for, written with numpy on the stored pixels (EXIF 2.3, tag 0x0112).
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_turns_the_picture_only_when_asked(tmp_path: Path, smooth: np.ndarray, orientation: int) -> None:
    exif = PIL.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "turned.jpg", smooth, exif=exif.tobytes(), quality=100)
    stored = read_image(path, upright=False)
    assert stored.shape == smooth.shape
    assert difference(stored, smooth) < 3
    assert (read_image(path) == TURNS[orientation](stored)).all()


def test_what_is_no_picture_is_said(
    tmp_path: Path, smooth: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not a picture")
    for name, word in (
        ("absent.jpg", "no such file"),
        ("empty.jpg", "the file is empty"),
        ("text.jpg", "not a picture"),
        ("a\0b", "no such file"),
        ("a\ud800b", "no such file"),
    ):
        with pytest.raises(EdgeposeError, match=f"{name}: .*{word}"):
            read_image(tmp_path / name)
    with pytest.raises(EdgeposeError, match="no such file"):
        read_image(tmp_path)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(
    tmp_path: Path, smooth: np.ndarray, name: str, share: float, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = saved(tmp_path / name, smooth).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(EdgeposeError, match="cut short"):
        read_image(tmp_path / name)
    assert capfd.readouterr().err == ""  # OpenCV's own words would stand beside ours


def test_png_is_lossless(tmp_path: Path, smooth: np.ndarray) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(smooth))
    assert (read_image(tmp_path / "a.png") == smooth).all()
