"""QR-Pose in the training loop: whole pictures with all their people (specs/qrpose.md section 6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn

from edgepose.calibration.dataset import Dataset
from edgepose.runtime.spec import Spec
from edgepose.training.batch import Batch, People, normalised
from edgepose.training.data import Pictures, batches, spec_of
from edgepose.training.evaluation import score_model
from edgepose.training.families.course import Course, Group
from edgepose.training.models import build, load_backbone
from edgepose.training.models.qrpose.losses import Loss, Weights
from edgepose.training.models.qrpose.network import Choice, QrPose, Raw
from edgepose.training.models.qrpose.targets import Chooser, assign
from edgepose.training.models.qrpose.taught import taught
from edgepose.training.sections import Fraction, MuonSchedule, NonNegative, PictureRecipe, Section


class Network(Section):
    """What can be changed in a QR-Pose network."""

    depth: Literal[18, 34] | None = None  # of qrpose_edge's ResNet; null: the model's own
    joint_channels: PositiveInt | None = None  # of each joint's features; null: the model's own
    kqe: bool = True
    pqe: bool = True
    pqe_detach: bool = True
    rivals: bool = False  # three more scores, for what CIR and PQE are worth: recipes/qrpose_claims.yaml


class LossSection(Section):
    """Weights of the loss terms (specs/qrpose.md section 6) and what the score learns."""

    target: Literal["oks", "gauss", "oks_gauss"] = "oks"
    specified: bool = False  # offsets in map pixels and heatmaps by mean square, as specs/qrpose.md has them
    radius: Annotated[int, Field(ge=0)] = 1  # map pixels around a person's centre that regress the pose
    score: NonNegative = 1.0
    coarse_score: NonNegative = 0.5
    offset: NonNegative = 1.0
    oks: NonNegative = 5.0
    coarse: NonNegative = 0.5
    heatmap: NonNegative = 1.0
    confidence: NonNegative = 0.5
    warm: Fraction = 0.05  # of the steps, in which the score's label falls from 1 to the OKS


class QrPoseRecipe(PictureRecipe):
    """A whole run of QR-Pose."""

    backbone: str | None = None  # a file of ImageNet weights for the backbone alone
    head_pixels: Annotated[int, Field(ge=64)] | None = 256  # pixels a picture for the heads; null takes all
    hint_pixels: Annotated[int, Field(ge=0)] = 40  # more, with a noisy true pose for KQE to start from
    network: Network = Network()
    loss: LossSection = LossSection()
    schedule: MuonSchedule

    @field_validator("head_pixels", "hint_pixels")
    @classmethod
    def _are_there(cls, count: int | None, info: ValidationInfo) -> int | None:
        side = info.data.get("size", 0) // 4  # of the map; 0 where the size itself is wrong
        if count is not None and side and count > side**2:
            raise ValueError(f"the map has {side} x {side} pixels")
        return count


def matrices_of(model: QrPose) -> dict[nn.Parameter, int]:
    """The kernels in front of a normalisation, and of how many matrices each is made: one for a group.

    Their length does not matter, so decay alone decides how far a step turns them. Those with a bias, which
    nothing normalises, learn by AdamW: what they say to the outside, or add to a sum, has a scale.
    """
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.bias is None)
    return {cast(nn.Parameter, layer.weight): layer.groups for layer in layers}


class QrPoseCourse(Course[QrPoseRecipe, Batch]):
    """How QR-Pose learns."""

    record = QrPoseRecipe

    def __init__(self, recipe: QrPoseRecipe, rank: int) -> None:
        super().__init__(recipe, rank)
        weights = {name: getattr(recipe.loss, name) for name in asdict(Weights())}
        self._loss = Loss(Weights(**weights), recipe.loss.target, recipe.loss.specified)

    @property
    def spec(self) -> Spec:
        return spec_of(self.recipe)

    def fresh_model(self) -> QrPose:
        recipe = self.recipe
        options = recipe.network.model_dump(exclude_none=True)
        return cast(QrPose, build(recipe.model, size=(recipe.size, recipe.size), **options))

    def begin(self, model: nn.Module) -> None:
        if self.recipe.backbone is not None:
            load_backbone(model, self.recipe.backbone)

    def groups(self, model: nn.Module) -> list[Group]:
        schedule = self.recipe.schedule
        inside = matrices_of(cast(QrPose, model)) if schedule.muon else {}
        groups: dict[int, Group] = {}
        for parameter in model.parameters():
            matrices = inside.get(parameter, 0)
            group = groups.setdefault(
                matrices,
                Group(
                    params=[],
                    weight_decay=schedule.muon_decay if matrices else schedule.weight_decay,
                    scale=schedule.muon if matrices else 1.0,
                    orthogonal=matrices,
                ),
            )
            group["params"].append(parameter)
        return list(groups.values())

    def batches(self, first: int) -> Iterable[Batch]:
        pictures = Pictures(self.recipe, self.rank)
        if self.recipe.data.cache:
            pictures.keep()
        return batches(self.recipe, pictures, first)

    def terms(self, wrapped: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        recipe, grid = self.recipe, cast(Tensor, wrapped.grid)
        people = People(*(value.to(grid.device) for value in batch.people))
        targets = assign(people, grid, recipe.loss.radius)
        count, hints = recipe.head_pixels, recipe.hint_pixels if recipe.network.kqe else 0
        choose = Chooser(targets, grid, count, hints).choose if count else None
        images = normalised(batch.images.to(grid.device), self.spec.mean, self.spec.std)
        raw = cast(Raw, wrapped(images, choose))
        warm = max(0.0, 1 - step / max(1.0, recipe.loss.warm * recipe.schedule.steps))
        terms = self._loss(raw, targets, grid, warm)
        if self.teacher is not None:
            terms |= self.weighed(taught(raw, self._known(images, raw)))
        return terms

    @torch.no_grad()
    def _known(self, images: Tensor, raw: Raw) -> Raw:
        """What the teacher says at the student's pixels, from the same hints."""
        teacher = cast(QrPose, self.teacher)
        own = raw.pixels.shape[1] - raw.hinted
        choice = Choice(raw.pixels, raw.share, raw.coarse_offsets[:, own:].detach())
        return teacher.raw(teacher.trunk(images), lambda _: choice)

    def score(self, model: nn.Module, dataset: Dataset) -> dict[str, Any]:
        return score_model(model, dataset, self.spec).to_dict()
