"""QueryPose in the training loop: whole pictures, a fixed set of queries, one person each (section 10)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, distributed, nn

from edgepose.calibration.dataset import Dataset
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.spec import Spec
from edgepose.training.batch import Batch, People, normalised
from edgepose.training.data import Pictures, batches, spec_of
from edgepose.training.evaluation import score_model
from edgepose.training.families.course import Course, Group
from edgepose.training.models import build, load_backbone
from edgepose.training.models.backbones.residual_pyramid import Residuals
from edgepose.training.models.querypose.losses import Loss, Outputs, Weights
from edgepose.training.models.querypose.network import QueryPose
from edgepose.training.models.querypose.parts import PARTS
from edgepose.training.models.querypose.targets import Targets, targets_of
from edgepose.training.models.querypose.taught import known, taught
from edgepose.training.sections import MuonSchedule, NonNegative, PictureRecipe, Section

BODY = "backbone.body."  # what a recipe's `backbone` fills
FLOW = "flow."  # what learns how joints miss
STAGES = ("box_stages.", "pose_stages.")
# The last layers of the stages: what they say to the outside has a scale.
SAID = (".logit.", ".delta.", ".coordinates.", ".deviations.", ".attend.")


class Network(Section):
    """What can be changed in a QueryPose network; null: the model's own."""

    queries: PositiveInt | None = None
    top_k: PositiveInt | None = None  # of them that get a pose when the network is scored


class LossSection(Section):
    """Weights of the terms of every stage."""

    score: NonNegative = 2.0
    box: NonNegative = 5.0
    overlap: NonNegative = 2.0
    joints: NonNegative = 1.0
    look: NonNegative = 0.0  # that parts are read where their joints are; not in the paper


class QueryPoseSchedule(MuonSchedule):
    """What learns at a rate of its own, in learning rates.

    The density of errors faster than the network whose errors they are; a body that has learnt before slower
    than what is new on it, whose first steps would undo what it knows.
    """

    flow: PositiveFloat = 10.0
    body: PositiveFloat = 1.0


class QueryPoseRecipe(PictureRecipe):
    """A whole run of QueryPose."""

    backbone: str | None = None  # a file of weights for the backbone alone, or a model that ships with some
    # How many of the small body's stages, from the first one on, stay as `backbone` fills them.
    frozen: Annotated[int, Field(ge=0, le=5)] = 0
    # reference: queries go from stage to stage as in the authors' code, part queries by row, not by person
    rules: Literal["corrected", "reference"] = "corrected"
    network: Network = Network()
    loss: LossSection = LossSection()
    schedule: QueryPoseSchedule


def matrices_of(name: str, parameter: nn.Parameter) -> int:
    """How many matrices stand one above the other in a parameter inside the network; 0 for all others."""
    kernel = name.startswith(BODY) and parameter.ndim == 4
    layer = name.startswith(STAGES) and parameter.ndim > 1 and not any(part in name for part in SAID)
    if not kernel and not layer:
        return 0
    return 3 if name.endswith("attention.qkv.weight") else 1


class QueryPoseCourse(Course[QueryPoseRecipe, Batch]):
    """How QueryPose learns."""

    record = QueryPoseRecipe

    def __init__(self, recipe: QueryPoseRecipe, rank: int) -> None:
        super().__init__(recipe, rank)
        self._loss = Loss(Weights(**recipe.loss.model_dump()), PARTS[self.spec.skeleton])

    @property
    def spec(self) -> Spec:
        return spec_of(self.recipe)

    def fresh_model(self) -> QueryPose:
        recipe = self.recipe
        options = recipe.network.model_dump(exclude_none=True)
        reference = recipe.rules == "reference"
        size = (recipe.size, recipe.size)
        return cast(QueryPose, build(recipe.model, size=size, reference=reference, **options))

    def begin(self, model: nn.Module) -> None:
        if self.recipe.backbone is not None:
            load_backbone(model, self.recipe.backbone)
        if self.recipe.frozen:
            self._freeze(model.get_submodule("backbone.body"))

    def _freeze(self, body: nn.Module) -> None:
        recipe = self.recipe
        if not isinstance(body, Residuals):
            raise EdgeposeError(f"key 'frozen' is for querypose_tiny, not for {recipe.model}; leave it out")
        if recipe.backbone is None or recipe.initial is not None:
            raise EdgeposeError("key 'frozen' keeps what 'backbone' gives: name one, and leave 'initial' out")
        body.freeze(recipe.frozen)

    def groups(self, model: nn.Module) -> list[Group]:
        schedule = self.recipe.schedule
        own_rates = {FLOW: schedule.flow, BODY: schedule.body}
        groups: dict[tuple[float, int], Group] = {}
        for name, parameter in model.named_parameters():
            rate = next((rate for prefix, rate in own_rates.items() if name.startswith(prefix)), 1.0)
            matrices = matrices_of(name, parameter) if schedule.muon else 0
            group = groups.setdefault(
                (rate, matrices),
                Group(
                    params=[],
                    # Everything decays, norms and biases too.
                    weight_decay=schedule.muon_decay if matrices else schedule.weight_decay,
                    scale=rate * (schedule.muon if matrices else 1.0),
                    orthogonal=matrices,
                ),
            )
            group["params"].append(parameter)
        return list(groups.values())

    def batches(self, first: int) -> Iterable[Batch]:
        pictures = Pictures(self.recipe, self.rank)
        if self.recipe.data.cache:
            pictures.keep()
        return batches(self.recipe, pictures, first, by_box=True)

    def terms(self, wrapped: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        device = next(wrapped.parameters()).device
        images = normalised(batch.images.to(device), self.spec.mean, self.spec.std)
        targets = targets_of(People(*(value.to(device) for value in batch.people)))
        outputs = cast(Outputs, wrapped(images, targets))
        people = people_each(targets)
        terms = self._loss(outputs, targets, people)
        if self.teacher is not None:
            said = known(cast(QueryPose, self.teacher), images, outputs, targets)
            terms |= self.weighed(taught(outputs, said, people))
        return terms

    def score(self, model: nn.Module, dataset: Dataset) -> dict[str, Any]:
        return score_model(model, dataset, self.spec).to_dict()


def people_each(targets: Targets) -> float:
    """How many people a process has in its batch, in the mean of all processes."""
    count = targets.valid.sum().to(torch.float32)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(count)
        count /= distributed.get_world_size()
    return float(count)
