"""The calibration set: covered kinds of people, every byte accounted for, nothing shared with evaluation."""

from __future__ import annotations

import errno
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepose.calibration import calibration_set as module
from edgepose.calibration.calibration_set import (
    EMPTY,
    FEWEST,
    Manifest,
    audit,
    choose,
    load_calibration_set,
    make_calibration_set,
    require_apart,
    require_useful,
    strata_of,
)
from edgepose.calibration.dataset import open_dataset
from edgepose.calibration.sample import Person
from edgepose.calibration.verb_calibrate import calibrate
from edgepose.runtime.cli import guarded
from edgepose.runtime.errors import EdgeposeError, GateFailed

FolderMaker = Callable[..., Path]


@pytest.fixture
def data(coco_folder: FolderMaker) -> Path:
    return coco_folder("data", range(40))


@pytest.fixture
def held_out(coco_folder: FolderMaker) -> Path:
    return coco_folder("held_out", range(100, 112))


@pytest.fixture
def made(data: Path, held_out: Path, tmp_path: Path) -> Path:
    make_calibration_set(open_dataset(str(data)), open_dataset(str(held_out)), 20, tmp_path / "set")
    return tmp_path / "set"


def leftovers(folder: Path) -> list[str]:
    """What lies beside the inputs."""
    return sorted(p.name for p in folder.iterdir() if p.name not in ("data", "held_out"))


def test_the_set_holds_the_pictures_of_the_source(made: Path, data: Path) -> None:
    source, found = open_dataset(str(data)), load_calibration_set(made)
    assert len(found) == len(list((made / "images").iterdir())) == 20
    for image, entry in zip(found.images(), found.manifest.images, strict=True):
        assert (image == source[entry.index].image).all()
        assert entry.pixels == source.fingerprint(entry.index)
        assert entry.people == len(source.people(entry.index))
        assert entry.why in entry.strata
    assert len({entry.index for entry in found.manifest.images}) == 20


def test_every_kind_of_people_of_the_source_is_covered(made: Path) -> None:
    coverage = load_calibration_set(made).manifest.coverage
    assert EMPTY in coverage
    assert len(coverage) > 3
    for counts in coverage.values():
        assert 1 <= counts.chosen <= counts.source


def test_the_manifest_survives_json_and_the_same_seed_gives_the_same_set(
    made: Path, data: Path, held_out: Path, tmp_path: Path
) -> None:
    manifest = load_calibration_set(made).manifest
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict())), made) == manifest
    again = make_calibration_set(open_dataset(str(data)), open_dataset(str(held_out)), 20, tmp_path / "again")
    assert again.sha256 == load_calibration_set(made).sha256
    other = make_calibration_set(
        open_dataset(str(data)), open_dataset(str(held_out)), 20, tmp_path / "other", seed=1
    )
    assert other.sha256 != again.sha256


def person(x: float, height: float, seen: int, crowd: bool = False, width: float = 10) -> Person:
    visibility = np.where(np.arange(17) < seen, 2, 1).astype(np.uint8)
    return Person(np.zeros((17, 2), np.float32), visibility, (x, 0.0, width, height), 1.0, crowd)


@pytest.mark.parametrize(
    ("people", "strata"),
    [
        ([], {EMPTY}),
        ([person(0, 50, 17, crowd=True)], {EMPTY}),
        ([person(0, 60, 17)], {"large whole alone"}),
        ([person(0, 59, 16)], {"medium partial alone"}),
        ([person(0, 20, 8)], {"small hidden alone"}),
        ([person(0, 14.9, 9), person(50, 30, 9)], {"tiny partial alone", "medium partial alone"}),
        ([person(0, 60, 17), person(9, 60, 17)], {"large whole together"}),
        ([person(0, 60, 17), person(9.1, 60, 17)], {"large whole alone"}),
        ([person(0, 60, 17, width=100), person(9, 20, 17)], {"large whole alone", "small whole together"}),
    ],
)
def test_strata(people: list[Person], strata: set[str]) -> None:
    assert set(strata_of(people, (200, 100))) == strata


@given(
    st.lists(
        st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True).map(tuple), min_size=8, max_size=40
    ),
    st.integers(8, 50),
    st.integers(0, 9),
)
def test_choosing_covers_all_and_repeats_nobody(strata: list[tuple[str, ...]], count: int, seed: int) -> None:
    chosen = choose(strata, count, seed)
    assert len(chosen) == len({index for index, _ in chosen}) == min(count, len(strata))
    assert all(why in strata[index] for index, why in chosen)
    assert {s for index, _ in chosen for s in strata[index]} == {s for group in strata for s in group}


def test_rare_kinds_are_not_drowned() -> None:
    strata = [("common",)] * 960 + [("rare",)] * 20 + [("empty",)] * 20
    taken = Counter(strata[index][0] for index, _ in choose(strata, 60, 0))
    assert taken == {"common": 20, "rare": 20, "empty": 20}


def test_a_shared_picture_is_refused_under_any_name_or_format(
    data: Path, held_out: Path, tmp_path: Path
) -> None:
    copied = cv2.imread(str(data / "images/001.png"))
    cv2.imwrite(str(held_out / "images/003.bmp"), copied)
    content = (held_out / "annotations.json").read_text().replace("003.png", "003.bmp")
    (held_out / "annotations.json").write_text(content)
    with pytest.raises(GateFailed, match=r"1 of 40 calibration pictures .* \(first: .*data picture 1\)"):
        make_calibration_set(open_dataset(str(data)), open_dataset(str(held_out)), 40, tmp_path / "set")
    assert leftovers(tmp_path) == []


def test_calibrating_on_the_evaluation_data_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(GateFailed, match="20 of 20"):
        make_calibration_set(open_dataset(str(data)), open_dataset(str(data)), 20, tmp_path / "set")


def replace_picture(folder: Path, index: int, image: np.ndarray) -> None:
    cv2.imwrite(str(folder / f"images/{index:03d}.png"), image)


def test_look_alikes_are_counted_and_flat_pictures_are_not(
    data: Path, held_out: Path, tmp_path: Path
) -> None:
    source = open_dataset(str(data))
    replace_picture(
        held_out, 0, np.clip(source[5].image.astype(int) + 3, 0, 255).astype(np.uint8)
    )  # brighter
    replace_picture(held_out, 1, cv2.GaussianBlur(source[6].image, (3, 3), 0))  # softer
    replace_picture(
        held_out, 2, source[7].image // 2
    )  # the same hash, another exposure: not said to look alike
    for index in (8, 9):
        replace_picture(data, index, np.full((64, 96, 3), 100 + index, np.uint8))
        replace_picture(held_out, index, np.full((64, 96, 3), 104 + index, np.uint8))
    found = make_calibration_set(open_dataset(str(data)), open_dataset(str(held_out)), 40, tmp_path / "set")
    exclusion = found.manifest.exclusion
    assert (exclusion.near_duplicates, exclusion.shared, exclusion.compared) == (2, 0, 12)


@pytest.mark.parametrize(("shown", "flat"), [(0, 0), (1, 0), (15, 5), (0, 20)])
def test_too_few_pictures_or_pictures_of_one_colour_cannot_calibrate(
    made: Path, shown: int, flat: int
) -> None:
    found = load_calibration_set(made)
    require_useful(found)
    for entry in found.manifest.images[:flat]:
        cv2.imwrite(str(made / entry.file), np.full((64, 96, 3), 100, np.uint8))
    fewer = replace(found, manifest=replace(found.manifest, images=found.manifest.images[: shown + flat]))
    with pytest.raises(EdgeposeError, match=rf"{shown} different ones of its {shown + flat} .* needs 16"):
        require_useful(fewer)


def test_evaluation_pictures_may_not_be_of_the_set(made: Path, data: Path, held_out: Path) -> None:
    manifest = load_calibration_set(made).manifest
    require_apart(manifest, open_dataset(str(held_out)))
    with pytest.raises(GateFailed, match=r"its picture \d+ is picture \d+ of .*data, which INT8"):
        require_apart(manifest, open_dataset(str(data)))


def test_one_byte_changed_is_one_sentence(made: Path) -> None:
    for file in ("images", "manifest.json"):
        path = sorted((made / file).iterdir())[3] if file == "images" else made / file
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(EdgeposeError) as error:
            load_calibration_set(made)
        assert "\n" not in str(error.value)
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    load_calibration_set(made)


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


BROKEN: dict[str, tuple[Callable[[dict], object], str]] = {
    "newer": (lambda m: m.update(version=3), r"its version is 3\); make the set again"),
    "older": (lambda m: m.update(version=1), r"its version is 1\); make the set again"),
    "no images": (lambda m: m.pop("images"), "damaged manifest"),
    "an entry without hash": (lambda m: m["images"][0].pop("sha256"), "damaged manifest"),
    "images of numbers": (lambda m: m.update(images=[1]), "damaged manifest"),
    "a file of null": (lambda m: m["images"][0].update(file=None), r"damaged manifest \(file is None\)"),
    "people in words": (lambda m: m["images"][0].update(people="x"), r"manifest \(people is 'x'\)"),
    "a count of null": (lambda m: next(iter(m["coverage"].values())).update(chosen=None), "chosen is None"),
    "a stranger": (lambda m: m.update(stranger=1), "damaged manifest"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_damaged_manifest_is_said(made: Path, what: str) -> None:
    change, sentence = BROKEN[what]
    edit(made, change)
    with pytest.raises(EdgeposeError, match=sentence):
        load_calibration_set(made)


def test_what_is_no_set_is_said(made: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeposeError, match=r"manifest\.json: no such file"):
        load_calibration_set(tmp_path)
    (made / "manifest.json").write_text("[]")
    with pytest.raises(EdgeposeError, match="not the manifest"):
        load_calibration_set(made)
    (made / "manifest.json").write_text("")
    with pytest.raises(EdgeposeError, match="no valid JSON"):
        load_calibration_set(made)


def test_a_missing_picture_is_said(made: Path) -> None:
    next((made / "images").iterdir()).unlink()
    with pytest.raises(EdgeposeError, match="missing from the calibration set"):
        load_calibration_set(made)


def test_audit_of_a_good_set(made: Path, held_out: Path) -> None:
    assert audit(made, open_dataset(str(held_out))) == load_calibration_set(made).manifest.exclusion


def test_audit_finds_a_manifest_whose_pixel_hash_was_edited(made: Path, data: Path) -> None:
    edit(made, lambda m: m["images"][3].update(pixels="0" * 64))
    with pytest.raises(EdgeposeError, match="its pixels are not those the manifest describes"):
        audit(made, open_dataset(str(data)))


def test_audit_refuses_a_set_that_shares_too_few_or_nobody(
    made: Path, data: Path, held_out: Path, coco_folder: FolderMaker
) -> None:
    apart = open_dataset(str(held_out))
    with pytest.raises(GateFailed, match="20 of 20 calibration pictures"):
        audit(made, open_dataset(str(data)))
    everybody = (made / "manifest.json").read_text()
    edit(made, lambda m: m.update(images=[e | {"strata": [EMPTY]} for e in m["images"]]))
    with pytest.raises(GateFailed, match="nobody is in any"):
        audit(made, apart)
    edit(made, lambda m: m.update(images=m["images"][: FEWEST - 1] * 2))
    with pytest.raises(GateFailed, match="15 different pictures; a calibration set needs 16"):
        audit(made, apart)
    (made / "manifest.json").write_text(everybody)
    lost = next(iter(json.loads(everybody)["coverage"]))
    without = {"strata": ["another kind"]}
    edit(made, lambda m: m.update(images=[e | without if lost in e["strata"] else e for e in m["images"]]))
    with pytest.raises(GateFailed, match=f"no picture shows {lost}"):
        audit(made, apart)


def test_one_picture_named_sixteen_times_is_one(coco_folder: FolderMaker, tmp_path: Path) -> None:
    folder, apart = coco_folder("data", range(16)), open_dataset(str(coco_folder("held_out", [98, 99])))
    content = json.loads((folder / "annotations.json").read_text())
    content["images"] = [{**image, "file_name": "001.png"} for image in content["images"]]
    (folder / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(EdgeposeError, match=r"data: 1 different pictures .* needs 16 or more") as caught:
        make_calibration_set(open_dataset(str(folder)), apart, 16, tmp_path / "set")
    assert caught.value.exit_code == 2
    assert leftovers(tmp_path) == []


def test_copies_of_a_picture_calibrate_no_better_than_one(made: Path) -> None:
    found = load_calibration_set(made)
    for entry in found.manifest.images[1:]:
        shutil.copy(made / found.manifest.images[0].file, made / entry.file)
    with pytest.raises(EdgeposeError, match="1 different ones of its 20 pictures"):
        require_useful(found)


def test_too_few_or_nobody_to_choose_from(data: Path, held_out: Path, tmp_path: Path) -> None:
    source, apart = open_dataset(str(data)), open_dataset(str(held_out))
    with pytest.raises(EdgeposeError, match=r"--count 3: .* 16 pictures or more"):
        make_calibration_set(source, apart, 3, tmp_path / "set")
    with pytest.raises(EdgeposeError, match="has 40 pictures, --count asks for 300"):
        make_calibration_set(source, apart, 300, tmp_path / "set")
    content = json.loads((data / "annotations.json").read_text())
    kept = [{**a, "iscrowd": 1} for a in content["annotations"]]
    (data / "annotations.json").write_text(json.dumps({**content, "annotations": kept}))
    with pytest.raises(EdgeposeError, match="without people"):
        make_calibration_set(open_dataset(str(data)), apart, 20, tmp_path / "set")
    assert leftovers(tmp_path) == []


def test_an_existing_out_is_left_alone(data: Path, held_out: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/mine").write_text("mine")
    with pytest.raises(EdgeposeError, match="set: exists already"):
        make_calibration_set(open_dataset(str(data)), open_dataset(str(held_out)), 20, tmp_path / "set")
    assert (tmp_path / "set/mine").read_text() == "mine"


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("victim", ["encode_png", "write_json"])
def test_nothing_half_written_remains(
    data: Path,
    held_out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: BaseException,
    victim: str,
) -> None:
    calls, original = [], getattr(module, victim)

    def failing(*arguments: object) -> object:
        calls.append(1)
        if victim == "write_json" or len(calls) == 7:
            raise stop
        return original(*arguments)

    monkeypatch.setattr(module, victim, failing)
    with pytest.raises(type(stop)):
        make_calibration_set(open_dataset(str(data)), open_dataset(str(held_out)), 20, tmp_path / "set")
    assert calls
    assert leftovers(tmp_path) == []


def run(*arguments: object) -> int:
    return guarded(lambda: calibrate.main([str(a) for a in arguments], standalone_mode=False))


def test_the_verb_makes_and_audits(
    data: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--data", data, "--exclude", held_out, "--count", 20, "--out", tmp_path / "set", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["images"], summary["exclusion"]["shared"]) == (20, 0)
    assert summary["sha256"] == load_calibration_set(tmp_path / "set").sha256
    assert run("--audit", tmp_path / "set", "--exclude", held_out) == 0
    shown = capsys.readouterr()
    assert "12 pictures compared, 0 shared" in shown.out
    assert shown.err == ""
    assert max(len(line) for line in shown.out.splitlines() if str(tmp_path) not in line) <= 100
    assert run("--audit", tmp_path / "set", "--exclude", data) == 1
    assert "20 of 20 calibration pictures" in capsys.readouterr().err


def test_the_verb_says_what_is_missing(
    data: Path, held_out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        ("--exclude", held_out): "give --data and --out",
        ("--data", data): "Missing option '--exclude'",
        ("--audit", tmp_path, "--data", data, "--exclude", held_out): "leave out --data",
        ("--data", tmp_path / "no.json", "--exclude", held_out, "--out", tmp_path / "set"): "no such file",
        ("--data", data, "--exclude", "synthetic:sed=1", "--out", tmp_path / "set"): "did you mean 'seed'",
        ("--audit", tmp_path, "--exclude", held_out): "no such file",
        ("--audit", tmp_path, "--exclude", held_out, "--count", 20): "leave out --data, --out, --count",
        ("--audit", tmp_path, "--exclude", held_out, "--seed", -1): "-1 is not in the range",
    }
    for arguments, sentence in wrong.items():
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert "Traceback" not in error


def test_a_picture_cut_short_stops_it_cleanly(data: Path, held_out: Path, tmp_path: Path) -> None:
    shutil.copy(data / "annotations.json", data / "images/001.png")
    with pytest.raises(EdgeposeError, match=r"001\.png: not a picture"):
        make_calibration_set(open_dataset(str(data)), open_dataset(str(held_out)), 40, tmp_path / "set")
    assert leftovers(tmp_path) == []
