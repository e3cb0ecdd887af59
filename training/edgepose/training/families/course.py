"""What the loop asks of a family: a network, its batches by the step's number, and the loss of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, Protocol, TypedDict, TypeVar

from torch import Tensor, nn

from edgepose.calibration.dataset import Dataset
from edgepose.runtime.spec import Spec
from edgepose.training.sections import Recipe


class Batch(Protocol):
    """What one step learns from."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Of the data set's pictures that are in it, for messages."""
        ...


class Group(TypedDict):
    """Parameters that learn alike, as an optimiser takes them."""

    params: list[nn.Parameter]
    weight_decay: float
    scale: float  # of the schedule's learning rate
    orthogonal: int  # equal blocks of rows, each turned by itself (`optimizer.Muon`); 0: AdamW


R = TypeVar("R", bound=Recipe)
B = TypeVar("B", bound=Batch)


class Course(ABC, Generic[R, B]):
    """One run's course of training in one of its processes.

    What is random follows from the recipe's seed, the step's number and the rank alone, so that a run that
    was stopped goes on as if nothing had happened. torch's own generator has such a seed in every step.
    """

    record: ClassVar[type[Recipe]]  # of the family's recipes

    def __init__(self, recipe: R, rank: int) -> None:
        self.recipe, self.rank = recipe, rank
        self.teacher: nn.Module | None = None  # frozen; what it says of a batch joins the terms

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """How the network is fed and read."""

    @abstractmethod
    def fresh_model(self) -> nn.Module:
        """The recipe's network, randomly initialised."""

    def teacher_model(self) -> nn.Module:
        """Of the teacher, randomly initialised: the student's, unless that is another form of the network."""
        return self.fresh_model()

    @abstractmethod
    def begin(self, model: nn.Module) -> None:
        """Take over what the recipe names of others' weights. Raises EdgeposeError when it does not fit."""

    @abstractmethod
    def groups(self, model: nn.Module) -> list[Group]:
        """All parameters, each once."""

    @abstractmethod
    def batches(self, first: int) -> Iterable[B]:
        """Those of the steps from `first` to the last."""

    @abstractmethod
    def terms(self, wrapped: nn.Module, batch: B, step: int) -> dict[str, Tensor]:
        """The terms of the batch's loss by name, to be summed.

        `wrapped` is the network as Fabric wraps it, which is called but not looked into.
        """

    def weighed(self, taught: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms of the teacher, as much as the recipe wants of them."""
        weight = self.recipe.teacher.weight if self.recipe.teacher is not None else 0.0
        return {name: weight * term for name, term in taught.items()}

    @abstractmethod
    def score(self, model: nn.Module, dataset: Dataset) -> dict[str, Any]:
        """JSON-able figures of the network on labelled pictures, `Score.to_dict()` among them."""
