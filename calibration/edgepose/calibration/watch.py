"""Looking over a two-stage network's shoulder: whom it looks at again, and where it would look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgepose.calibration.ledger import Looks
from edgepose.runtime.agreement import shared_cells
from edgepose.runtime.backend import Array, Backend
from edgepose.runtime.topdown.twostage import ORDER, QUALITY


class Look(NamedTuple):
    """The people of one picture, or of several."""

    refined: npt.NDArray[np.bool_]  # (B,) who is looked at again
    order: Array  # (B, n0) cells, best first


class Watch:
    """The backend of the first look, and what it has said since it was last asked."""

    def __init__(self, coarse: Backend, limit: float) -> None:
        """`limit`: people of a lower quality are looked at again."""
        self._coarse, self._limit = coarse, limit
        self._looks: list[Look] = []

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name."""
        outputs = self._coarse.run(feeds)
        self._looks.append(Look(np.asarray(outputs[QUALITY], np.float32) < self._limit, outputs[ORDER]))
        return outputs

    def seen(self) -> Look:
        """What was said since the last call."""
        looks, self._looks = self._looks, []
        return joined(looks)

    def close(self) -> None:
        """Nothing: the backend stays with its owner."""

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def joined(looks: Sequence[Look]) -> Look:
    """All people together."""
    met = [look for look in looks if len(look.refined)]
    if not met:
        return Look(np.zeros(0, np.bool_), np.zeros((0, 0), np.int32))
    return Look(*(np.concatenate(column) for column in zip(*met, strict=True)))


def compared(mine: Sequence[Look], baseline: Sequence[Look] | None, cells: int) -> Looks | None:
    """The ledger's figures over all pictures, of whose order of cells the first `cells` count.

    None for a network that looks once, or when nobody was there.
    """
    look = joined(mine)
    people = len(look.refined)
    if not people:
        return None
    shared = None if baseline is None else shared_cells(look.order, joined(baseline).order, cells)
    overlap = None if shared is None else float(shared.mean())
    return Looks(people, float(look.refined.mean()), overlap)
