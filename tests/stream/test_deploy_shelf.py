"""What a board keeps of a stream, and that a power cut at any moment leaves a release that streamed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deploy_standins import Board, golden, options

from edgepose.runtime.bundle import Bundle
from edgepose.runtime.deploy.shelf import Release, Shelf
from edgepose.runtime.deploy.start import trusted
from edgepose.runtime.deploy.streaming import Streaming
from edgepose.runtime.errors import EdgeposeError

STREAMING = Streaming(tuple(options(8554)), "viewer:secret")


@pytest.fixture
def bundle(still_bundle: Path, tmp_path: Path) -> Bundle:
    return golden(still_bundle, tmp_path / "one.edgepose")


def staged(shelf: Shelf, bundle: Bundle, port: int) -> Release:
    return shelf.stage(bundle, Streaming(tuple(options(port)), None))


def taken(shelf: Shelf, release: Release) -> None:
    shelf.try_out(release)
    shelf.settle()


def test_a_release_is_the_bundle_and_how_it_is_streamed(board: Board, bundle: Bundle, tmp_path: Path) -> None:
    shelf = Shelf.of("pose")
    release = shelf.stage(bundle, STREAMING)
    assert Bundle.open(release.bundle).files == bundle.files
    assert release.streaming() == STREAMING
    file = release.folder / "stream.json"
    assert file.stat().st_mode & 0o077 == 0  # a password is in it
    assert shelf.stage(bundle, STREAMING) == release
    assert shelf.stage(bundle, Streaming(STREAMING.options, None)) != release
    assert staged(shelf, bundle, 8555) != staged(shelf, bundle, 8556)
    assert shelf.live() is None
    file.write_text('{"options": 3}')
    with pytest.raises(EdgeposeError, match=r"stream\.json: damaged .* deploy the bundle again"):
        release.streaming()


def test_a_second_bundle_is_a_part_of_the_release(
    board: Board, bundle: Bundle, still_refiner: Path, tmp_path: Path
) -> None:
    seconds = [golden(still_refiner, tmp_path / f"{note}.edgepose", note) for note in "ab"]
    shelf = Shelf.of("pose")
    releases = [shelf.stage(bundle, STREAMING, second) for second in (None, *seconds)]
    assert len(board.releases()) == 3
    assert releases[0].second is None
    for release, second in zip(releases[1:], seconds, strict=True):
        assert Bundle.open(release.bundle).files == bundle.files
        assert release.second is not None
        assert Bundle.open(release.second).files == second.files
    measured = seconds[0].with_files({"ledger.json": b"{}"})  # as a board's proof does
    assert shelf.stage(bundle, STREAMING, measured) == releases[1]
    taken(shelf, releases[1])
    live = shelf.live()
    assert live is not None
    assert live.second is not None


def test_a_bundle_that_lies_unpacked_beside_other_files_is_the_same_release(
    board: Board, bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "unpacked"
    shutil.copytree(bundle.folder, folder)
    (folder / "notes.txt").write_text("not the bundle's")
    shelf = Shelf.of("pose")
    release = shelf.stage(Bundle.open(folder), STREAMING)
    assert release == shelf.stage(bundle, STREAMING)
    assert not (release.bundle / "notes.txt").exists()


def test_the_live_one_and_the_one_before_are_kept(board: Board, bundle: Bundle) -> None:
    shelf = Shelf.of("pose")
    taken(shelf, one := staged(shelf, bundle, 8001))
    assert (shelf.live(), shelf.before()) == (one, None)
    assert board.releases() == {one.id}
    taken(shelf, two := staged(shelf, bundle, 8002))
    assert (shelf.live(), shelf.before()) == (two, one)
    taken(shelf, three := staged(shelf, bundle, 8003))
    assert (shelf.live(), shelf.before()) == (three, two)
    assert board.releases() == {two.id, three.id}
    taken(shelf, two)  # back
    assert (shelf.live(), shelf.before()) == (two, three)
    shelf.try_out(three)
    assert shelf.on_trial
    assert shelf.go_back() == two
    assert (shelf.live(), shelf.before()) == (two, three)
    shelf.discard(three)  # what can be gone back to is not discarded
    assert board.releases() == {two.id, three.id}


def test_the_first_trial_may_fail(board: Board, bundle: Bundle) -> None:
    shelf = Shelf.of("pose")
    one = staged(shelf, bundle, 8001)
    shelf.try_out(one)
    assert shelf.go_back() is None
    assert shelf.live() is None
    with pytest.raises(EdgeposeError, match="nothing is deployed here"):
        trusted(shelf)
    shelf.discard(one)
    assert board.releases() == set()


class PowerCut(BaseException):
    """Nothing after it happens."""


def cut_at(number: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every change of the disk is noted; before the one of this number the power goes."""
    noted: list[str] = []

    def watched(place: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(place, name)

        def change(*arguments: Any, **named: Any) -> Any:
            if len(noted) == number:
                raise PowerCut
            noted.append(f"{name} {Path(arguments[0]).name}")
            return real(*arguments, **named)

        monkeypatch.setattr(place, name, change)

    for name in ("replace", "symlink_to", "unlink"):
        watched(Path, name)
    watched(shutil, "rmtree")
    return noted


def test_a_power_cut_at_any_moment_leaves_a_release_that_has_streamed(
    board: Board, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf.of("pose")
    for number in range(100):
        shutil.rmtree(shelf.folder, ignore_errors=True)
        taken(shelf, staged(shelf, bundle, 8001))
        taken(shelf, old := staged(shelf, bundle, 8002))
        new = staged(shelf, bundle, 8003)
        with monkeypatch.context() as patch, shelf.locked():
            noted = cut_at(number, patch)
            try:
                shelf.try_out(new)
                assert trusted(shelf) == new  # whoever deploys watches the one on trial
                shelf.settle()
            except PowerCut:
                pass
            else:
                break
        # Only with the mark of the trial gone has somebody seen the new one stream.
        seen = "unlink trial" in noted
        assert trusted(shelf) == (new if seen else old), noted
        assert trusted(shelf).streaming()
        taken(shelf, staged(shelf, bundle, 8004))  # the next deployment finds nothing in its way
        assert len(board.releases()) == 2
    assert number > 6, "the power was never cut"
    assert (shelf.live(), shelf.before()) == (new, old)


def test_two_deployments_do_not_mix(board: Board) -> None:
    shelf = Shelf.of("pose")
    refused = pytest.raises(EdgeposeError, match="pose: another deployment is at work here")
    with shelf.locked(), refused, Shelf.of("pose").locked():
        pass
    with shelf.locked(), Shelf.of("door-2").locked():
        pass


@pytest.mark.parametrize("name", ["", "Door", "../x", "a b", "-x", "x" * 60, "a/b", "ä"])
def test_a_name_is_one_for_a_service(name: str) -> None:
    with pytest.raises(EdgeposeError, match="give small letters, digits and dashes"):
        Shelf.of(name)
