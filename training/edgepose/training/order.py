"""What each step sees of a data set: it follows from the recipe's seed and the step's number alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from edgepose.calibration.dataset import Dataset, open_dataset
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.progress import track
from edgepose.runtime.skeleton import COCO17, Skeleton
from edgepose.training.sections import Recipe

ORDER, CHANGE = 0, 1  # what a random stream is for; the recipe's seed and a number complete its key

Item = TypeVar("Item")
Batch = TypeVar("Batch")


class Steps(Sampler[list[int]]):
    """The ordinals of each step's items, so that a resumed run sees what it would have seen."""

    def __init__(self, first: int, last: int, batch: int) -> None:
        self._first, self._last, self._batch = first, last, batch

    def __len__(self) -> int:
        return self._last - self._first

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._first, self._last):
            yield list(range(step * self._batch, (step + 1) * self._batch))


def index_at(ordinal: int, count: int, seed: int) -> int:
    """Which of `count` items a stream shows as number `ordinal`: all once, then all in another order."""
    return int(_shuffled(seed, ordinal // count, count)[ordinal % count])


@lru_cache(2)
def _shuffled(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, ORDER, epoch]).permutation(count)


def random_at(ordinal: int, recipe: Recipe, rank: int) -> np.random.Generator:
    """What decides how the item number `ordinal` is changed in the process of that rank."""
    return np.random.default_rng([recipe.seed, CHANGE, ordinal, rank])


def open_training_set(source: str, skeleton: Skeleton = COCO17) -> Dataset:
    """Raises EdgeposeError for a data set without labelled people or of another skeleton."""
    dataset = open_dataset(source)
    if dataset.skeleton.name != skeleton.name:
        raise EdgeposeError(
            f"{source}: its people have {dataset.skeleton.name} joints, the model {skeleton.name}; "
            "choose data with the same joints"
        )
    for index in range(len(dataset)):
        if any(person.visibility.any() and not person.crowd for person in dataset.people(index)):
            return dataset
    raise EdgeposeError(f"{source}: nobody is labelled in its {len(dataset)} pictures; choose other data")


def open_share(recipe: Recipe, rank: int) -> tuple[Dataset, range]:
    """The recipe's training set, and which of its pictures are of the process of that rank.

    Raises EdgeposeError as `open_training_set` does, and where there are fewer pictures than processes.
    """
    # OpenCV's threads would fight torch's for the cores, and a worker forked beside them waits for ever.
    cv2.setNumThreads(1)
    dataset = open_training_set(recipe.data.train)
    if len(dataset) < recipe.processes:
        raise EdgeposeError(
            f"{recipe.data.train}: {len(dataset)} pictures for {recipe.processes} processes; "
            "lower `processes` in the recipe"
        )
    return dataset, range(rank, len(dataset), recipe.processes)


def read_all(items: TorchDataset[Item], count: int, workers: int) -> list[Item]:
    """Every item once, made or read in that many processes. Raises the EdgeposeError of an item."""
    loader = DataLoader(
        _Told(items), batch_size=None, sampler=range(count), num_workers=workers, worker_init_fn=_be_quiet
    )
    return list(track(_raised(loader), "pictures", count))


def loader(
    items: TorchDataset[Item], collate: Callable[[Sequence[Item]], Batch], recipe: Recipe, first: int
) -> Iterator[Batch]:
    """The batches of steps `first` to the end, collated from `items` by their ordinals.

    Raises the EdgeposeError of an item when its batch is due.
    """
    workers = recipe.data.workers
    told: DataLoader[Batch | EdgeposeError] = DataLoader(
        _Told(items),  # type: ignore[arg-type]  # it yields items, the collate function makes batches of them
        batch_sampler=Steps(first, recipe.schedule.steps, recipe.schedule.batch),
        num_workers=workers,
        collate_fn=_ToldBatch(collate),
        worker_init_fn=_be_quiet,
        prefetch_factor=4 if workers else None,
    )
    return _raised(told)


# torch wraps what a worker raises into the worker's traceback: a sentence for the user travels as a value.


@dataclass(frozen=True, slots=True)
class _Told(TorchDataset[Item | EdgeposeError]):
    """The items, or in place of one what is wrong with it."""

    items: TorchDataset[Item]

    def __getitem__(self, index: int) -> Item | EdgeposeError:
        try:
            return self.items[index]
        except EdgeposeError as error:
            return error


@dataclass(frozen=True, slots=True)
class _ToldBatch(Generic[Item, Batch]):
    """Collates items, or passes on what is wrong with one."""

    collate: Callable[[Sequence[Item]], Batch]

    def __call__(self, items: Sequence[Item | EdgeposeError]) -> Batch | EdgeposeError:
        good = [item for item in items if not isinstance(item, EdgeposeError)]
        wrong = [item for item in items if isinstance(item, EdgeposeError)]
        return wrong[0] if wrong else self.collate(good)


def _raised(values: Iterable[Item | EdgeposeError]) -> Iterator[Item]:
    for value in values:
        if isinstance(value, EdgeposeError):
            raise value
        yield value


def _be_quiet(_: int) -> None:
    """Ctrl-C and SIGTERM, which often come to all processes at once, are the main process's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """SIGTERM from the main process itself ends us: it waits for that when it exits with an error."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
