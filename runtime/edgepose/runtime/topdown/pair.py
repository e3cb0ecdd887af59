"""Two bundles that work together: one finds people, the other refines them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from edgepose.runtime.backend import Chosen, choose
from edgepose.runtime.bundle import Bundle
from edgepose.runtime.decode import DECODERS
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.estimator import Estimator
from edgepose.runtime.poses import Poses
from edgepose.runtime.preprocess import U8
from edgepose.runtime.topdown.gauge import Gauge, gauge_of
from edgepose.runtime.topdown.twostage import GRAPHS, TwoStage


class Pair(NamedTuple):
    """Both networks, opened."""

    first: Callable[[U8], Poses]
    second: TwoStage
    gauge: Gauge  # what the second one's poses are expected to reach


def require_first(bundle: Bundle) -> None:
    """Raises EdgeposeError unless the bundle's network finds people by itself."""
    if bundle.spec.family not in DECODERS:
        raise EdgeposeError(
            f"{bundle.path}: {bundle.spec.model} cannot find people by itself; give a bundle that does, "
            "such as of qrpose_tiny, and this one to refine its poses"
        )


def require_pair(first: Bundle, second: Bundle) -> None:
    """Raises EdgeposeError unless `second` can refine what `first` finds."""
    require_first(first)
    if not set(GRAPHS) <= set(second.spec.graphs):
        raise EdgeposeError(
            f"{second.path}: {second.spec.model} does not look at people one by one, and twice, so it cannot "
            "refine poses; give a bundle of SHaRPose, such as of sharpose_tiny_128x96"
        )
    if first.spec.joints() != second.spec.joints():
        raise EdgeposeError(
            f"{second.path}: its joints are {second.spec.skeleton}, those of {first.path} "
            f"{first.spec.skeleton}; give one with the same"
        )


@contextmanager
def open_pair(
    first: Bundle, second: Bundle, precision: str, threads: int = 0, device: str = "cpu"
) -> Iterator[Pair]:
    """Both while the block lasts; errors are those of `choose`, `require_pair` and `gauge_of`."""
    require_pair(first, second)
    with ExitStack() as stack:

        def opened(bundle: Bundle, graph: str) -> Chosen:
            chosen = choose(bundle, precision, graph, threads, device)
            stack.enter_context(chosen.backend)
            return chosen

        pose = opened(first, "pose").backend
        coarse, fine = (opened(second, name) for name in GRAPHS)
        limit = second.spec.limit(coarse.precision)  # whose quality decides
        two_stage = TwoStage(coarse.backend, fine.backend, second.spec, limit)
        yield Pair(Estimator(pose, first.spec), two_stage, gauge_of(second))
