"""Bundles: what was published opens; what was damaged, foreign or newer is refused with one sentence."""

import errno
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgepose.runtime.bundle import INDEX, SEAL, Bundle, publish, seal
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import Spec

SPEC = Spec("qrpose", "qrpose_tiny", 256, 256)


def published(folder: Path, name: str) -> Bundle:
    content = folder / "content"
    content.mkdir()
    (content / "pose.fp32.onnx").write_bytes(bytes(range(256)))
    (content / "README.md").write_text("a card")
    return publish(content, folder / name, SPEC, {"model": "qrpose_tiny"})


@pytest.fixture(params=["folder", "zip.edgepose"])
def bundle(request, tmp_path: Path) -> Bundle:
    return published(tmp_path, request.param)


@pytest.fixture
def folder_bundle(tmp_path: Path) -> Bundle:
    return published(tmp_path, "folder")


def test_a_bundle_opens_as_it_was_published(bundle: Bundle) -> None:
    assert bundle.spec == SPEC
    assert bundle.provenance == {"model": "qrpose_tiny"}
    assert bundle.graph("pose", "fp32").read_bytes() == bytes(range(256))


def test_an_absent_view_names_the_present_ones(bundle: Bundle) -> None:
    with pytest.raises(EdgeposeError, match=r"no pose\.int8\.ort\.onnx; it has pose\.fp32\.onnx"):
        bundle.graph("pose", "int8.ort")


def test_files_are_added_all_at_once(bundle: Bundle) -> None:
    grown = bundle.with_files({"ledger.json": b"{}"})
    assert Bundle.open(grown.path).read("ledger.json", "a ledger") == {}
    assert set(grown.files) == {*bundle.files, "ledger.json"}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_one_changed_byte_anywhere_is_refused(tmp_path_factory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("bundle")
    content = folder / "content"
    content.mkdir()
    (content / "pose.fp32.onnx").write_bytes(bytes(64))
    made = publish(content, folder / "b", SPEC, {}).path
    victim = made / data.draw(st.sampled_from(["pose.fp32.onnx", INDEX]))
    damaged = bytearray(victim.read_bytes())
    place = data.draw(st.integers(0, len(damaged) - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    victim.write_bytes(damaged)
    assert _refused(made) or (victim.name == INDEX and _says_the_same(made))


def _refused(path: Path) -> bool:
    try:
        Bundle.open(path)
    except EdgeposeError:
        return True
    return False


def _says_the_same(path: Path) -> bool:
    """White space may have changed, or a record of the zip that nobody reads."""
    opened = Bundle.open(path)
    return opened.spec == SPEC and opened.provenance == {}


@pytest.mark.parametrize(
    ("said", "damaged"),
    [("0.485", "0.985"), ('"RGB"', '"BGR"'), ("0.25", "0.75"), ('"version": 1', '"version": 0')],
)
def test_an_index_that_says_something_else_is_refused(folder_bundle: Bundle, said: str, damaged: str) -> None:
    index = folder_bundle.path / INDEX
    assert said in index.read_text()
    index.write_text(index.read_text().replace(said, damaged))
    with pytest.raises(EdgeposeError, match=r"bundle\.json is damaged \(its sha256 differs\)"):
        Bundle.open(folder_bundle.path)


def test_a_bundle_without_a_seal_is_refused(folder_bundle: Bundle) -> None:
    """As the first version wrote them, and as a changed key makes of one of today."""
    index = folder_bundle.path / INDEX
    values = json.loads(index.read_text())
    del values[SEAL]
    for version, sentence in ((1, "bundle version 1.*export the bundle again"), (2, "damaged")):
        index.write_text(json.dumps({**values, "version": version}))
        with pytest.raises(EdgeposeError, match=sentence):
            Bundle.open(folder_bundle.path)


def test_any_provenance_that_json_can_hold_is_sealed_as_it_reads_back(tmp_path: Path) -> None:
    provenance = {"ü": (1, 2.5e-9), "steps": {10: None, 2: {"b": True, "a": "\u2028"}}}
    (tmp_path / "content").mkdir()
    made = publish(tmp_path / "content", tmp_path / "b", SPEC, provenance)
    assert made.provenance == json.loads(json.dumps(provenance))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda index: {**index, "format": "other"}, "not an edgepose bundle"),
        (lambda index: {**index, "version": 99}, "bundle version 99"),
        (lambda index: {**index, "spec": {**index["spec"], "version": 99}}, "spec version 99"),
        (lambda index: {**index, "spec": {**index["spec"], "extra": 1}}, "not an edgepose spec"),
        (lambda index: {key: index[key] for key in index if key != "files"}, "damaged"),
    ],
)
def test_foreign_and_newer_indexes_are_refused(folder_bundle: Bundle, change, sentence: str) -> None:
    """All are whole: another release, or another program, wrote and sealed them so."""
    index = change(json.loads((folder_bundle.path / INDEX).read_text()))
    (folder_bundle.path / INDEX).write_text(json.dumps({**index, SEAL: seal(index)}))
    with pytest.raises(EdgeposeError, match=sentence):
        Bundle.open(folder_bundle.path)


def test_an_index_that_is_no_object_is_refused(folder_bundle: Bundle) -> None:
    (folder_bundle.path / INDEX).write_text("[]")
    with pytest.raises(EdgeposeError, match="not an edgepose bundle"):
        Bundle.open(folder_bundle.path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", 1),
        ("width", "128"),
        ("height", 128.0),
        ("height", True),
        ("skeleton", {}),
        ("graphs", "pose"),
        ("graphs", ["pose", 1]),
        ("mean", [0.5, 0.5]),
        ("std", [0.5, 0.5, "0.5"]),
        ("score_threshold", None),
        ("refine_below", "0.9"),
        ("sharp_cells", 1.5),
    ],
)
def test_a_spec_with_a_value_of_another_type_is_refused(field: str, value: object) -> None:
    values = {**json.loads(SPEC.to_json()), field: value}
    with pytest.raises(EdgeposeError, match=rf"x: not an edgepose spec \({field} is "):
        Spec.from_dict(values, "x")


def test_a_whole_number_may_stand_for_a_float() -> None:
    values = {**json.loads(SPEC.to_json()), "score_threshold": 1, "mean": [0, 0, 0], "refine_below": 1}
    assert Spec.from_dict(values, "x").mean == (0, 0, 0)


def test_missing_empty_truncated_and_foreign_files_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    empty, cut, other = tmp_path / "empty.edgepose", tmp_path / "cut.edgepose", tmp_path / "other.edgepose"
    empty.touch()
    if bundle.path.is_file():
        cut.write_bytes(bundle.path.read_bytes()[:-40])
    else:
        cut.mkdir()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("hello.txt", "hello")
    for path in (tmp_path / "nowhere", empty, cut, other):
        with pytest.raises(EdgeposeError, match=r"not an edgepose bundle|no such bundle"):
            Bundle.open(path)


def _flips(archive: bytes) -> Iterator[bytes]:
    """Every bit of the zip's own records, each of their bytes made zero, and a bit of each byte it packs."""
    packed = range(30 + len(INDEX), archive.index(b"PK\1\2"))
    for place, byte in enumerate(archive):
        changes = [1 << place % 8] if place in packed else [byte, *(1 << bit for bit in range(8))]
        for change in changes:
            yield archive[:place] + bytes([byte ^ change]) + archive[place + 1 :]


def test_a_zip_with_any_byte_changed_is_refused_or_says_the_same(tmp_path: Path) -> None:
    content, path = tmp_path / "content", tmp_path / "b.edgepose"
    content.mkdir()
    publish(content, path, SPEC, {})
    for damaged in _flips(path.read_bytes()):
        path.write_bytes(damaged)
        assert _refused(path) or _says_the_same(path)


def test_a_full_disk_is_no_damaged_zip(tmp_path: Path, monkeypatch) -> None:
    path = published(tmp_path, "zip.edgepose").path

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", full)
    with pytest.raises(OSError, match="No space"):
        Bundle.open(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../../evil", "leave the archive"),
        ("/evil", "leave the archive"),
        ("..", "leave the archive"),
        (f"bundle/{INDEX}", "zip the files, not their folder"),
    ],
)
def test_a_zip_that_writes_elsewhere_is_refused(name: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.edgepose"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(EdgeposeError, match=said):
        Bundle.open(path)


def test_publishing_never_replaces_what_is_no_bundle(tmp_path: Path) -> None:
    content, mine = tmp_path / "content", tmp_path / "mine"
    content.mkdir()
    mine.mkdir()
    (mine / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(EdgeposeError, match="not a bundle"):
        publish(content, mine, SPEC, {})
    assert (mine / "thesis.txt").read_text() == "irreplaceable"


def test_a_full_disk_leaves_the_old_bundle(folder_bundle: Bundle, monkeypatch) -> None:
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgepose.runtime.bundle.shutil.copy2", full)
    with pytest.raises(OSError, match="No space"):
        folder_bundle.with_files({"ledger.json": b"{}"})
    monkeypatch.undo()
    assert Bundle.open(folder_bundle.path).files == folder_bundle.files
    assert sorted(p.name for p in folder_bundle.path.parent.iterdir()) == ["content", "folder"]
