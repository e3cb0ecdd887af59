"""Golden vectors of a bundle: a few pictures and what each view answered, to be reproduced elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np

from edgepose.runtime.agreement import AGREEMENTS, Array, Difference, Outputs, largest
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.preprocess import U8, normalise
from edgepose.runtime.spec import Spec

FILE = "golden.npz"
INPUT = "images"  # of the first graph of every family, and of later ones too
REFERENCE = "fp32"  # the view whose outputs later graphs read, in every view of theirs


class NotReproduced(EdgeposeError):
    """A backend that answers the golden pictures too differently."""


class Answering(Protocol):
    """A backend that says what it reads."""

    @property
    def inputs(self) -> Iterable[str]: ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """Recorded inputs and outputs. `expected` maps a view's name (`pose.fp32`) to the outputs per picture."""

    frames: U8  # (F, height, width, 3) BGR of the network's size
    expected: dict[str, list[dict[str, Array]]]

    def known(self, spec: Spec) -> list[dict[str, Array]]:
        """For each picture its input and what the FP32 views made of it, by name."""
        known: list[dict[str, Array]] = [{INPUT: normalise(frame, spec)} for frame in self.frames]
        for view, answers in self.expected.items():
            if view.partition(".")[2] == REFERENCE:
                for one, outputs in zip(known, answers, strict=True):
                    one |= outputs
        return known


def read(bundle: Bundle) -> Golden:
    """The golden vectors of an opened bundle. Raises EdgeposeError when it has none."""
    if FILE not in bundle.files:
        raise EdgeposeError(f"{bundle.path}: has no {FILE}; export it again")
    expected: dict[str, list[dict[str, Array]]] = {}
    with np.load(bundle.folder / FILE) as arrays:
        frames = np.asarray(arrays["frames"], np.uint8)
        for key in arrays.files:
            view, _, name = key.partition("/")
            if name:
                answers = expected.setdefault(view, [{} for _ in frames])
                for answer, array in zip(answers, arrays[key], strict=True):
                    answer[name] = array[None]
    return Golden(frames, expected)


def apart(expected: Sequence[Outputs], actual: Sequence[Outputs], spec: Spec) -> Difference:
    """The largest differences over some pictures, as the family measures them."""
    measure = AGREEMENTS[spec.family].difference
    return largest([measure(one, other, spec) for one, other in zip(expected, actual, strict=True)])


def limit(view: str, spec: Spec) -> Difference:
    """How far another machine may be from what was recorded for `view` (`pose.fp32`)."""
    return AGREEMENTS[spec.family].views[view.partition(".")[2]]


def reproduced(backend: Answering, bundle: Bundle, view: str, who: str, batch: int = 1) -> Difference:
    """How far the backend's answers to the golden pictures are from those recorded for `view`.

    Each picture is asked `batch` times at once, for an engine that takes no fewer; all must be near. `who` is
    what an error calls the backend.

    Raises NotReproduced beyond the view's limit, EdgeposeError when the bundle has none recorded.
    """
    golden, spec = read(bundle), bundle.spec
    if view not in golden.expected:
        raise EdgeposeError(f"{bundle.path}: has no golden vectors of {view}; export it again")
    found: list[Difference] = []
    for expected, known in zip(golden.expected[view], golden.known(spec), strict=True):
        answers = backend.run({name: np.repeat(known[name], batch, 0) for name in backend.inputs})
        singles = [{name: array[[index]] for name, array in answers.items()} for index in range(batch)]
        found.append(apart([expected] * batch, singles, spec))
    furthest, allowed = largest(found), limit(view, spec)
    if not furthest.within(allowed):
        raise NotReproduced(
            f"{who} does not reproduce the golden vectors of {view}: it is {figures(furthest)} away, "
            f"allowed are {figures(allowed)}"
        )
    return furthest


def figures(difference: Difference) -> str:
    """For people."""
    return ", ".join(f"{name} {value:.3g}" for name, value in asdict(difference).items())
