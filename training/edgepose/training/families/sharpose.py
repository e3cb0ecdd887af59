"""SHaRPose in the training loop: one crop per person, layer-wise rates, a quality that joins late."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from edgepose.calibration.dataset import Dataset
from edgepose.runtime.spec import Spec
from edgepose.runtime.topdown.twostage import GRAPHS
from edgepose.training.batch import normalised
from edgepose.training.crops import CropBatch, CropData, CropRecipe, Crops, collate
from edgepose.training.families.course import Course, Group
from edgepose.training.models.sharpose import config_of
from edgepose.training.models.sharpose.guide import guidance, watched
from edgepose.training.models.sharpose.losses import Loss, quality_weight, taught
from edgepose.training.models.sharpose.mae import load_mae
from edgepose.training.models.sharpose.network import Backbone, SharPose
from edgepose.training.models.sharpose.scratch import start_from_scratch
from edgepose.training.models.sharpose.targets import Targets, heatmaps
from edgepose.training.order import loader
from edgepose.training.sections import Fraction, MuonSchedule, NonNegative, Section
from edgepose.training.topdown_evaluation import score_two_stage

Share = Annotated[float, Field(gt=0, le=1)]
# Of layer 0, beside the first block: what the blocks are fed with.
FIRST = (
    "backbone.patch_embed.",
    "backbone.pos_embed_list.",
    "backbone.keypoint_tokens",
    "backbone.quality_token",
)
BLOCK = "backbone.blocks."
# Weight decay would pull these towards 0, where there is nothing to be learnt: they are places and names. The
# quality predictor has no gradient before its loss joins, by when decay alone would have made it vanish.
UNDECAYED = (*FIRST[1:], "backbone.quality_predictor.")
# The matrices inside, which `optimizer.Muon` may learn. The patches' embedding is none: nothing
# normalises it, and steps of equal length in all directions made it drown the places and the joints' names.
INSIDE = (BLOCK, "backbone.reuse_block.")


class Network(Section):
    """What can be changed in a SHaRPose network; null: the model's own."""

    alpha: Share | None = None  # of the cells, which the second look sees sharp
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    threshold: float | None = None  # people of a lower quality are looked at again


class SharPoseData(CropData):
    """Crops and their heatmaps."""

    sigma: PositiveFloat = 2.0  # heatmap pixels


class SharPoseSchedule(MuonSchedule):
    """The layers below the last one learn more slowly, each by this factor."""

    layer_decay: Share = 1.0
    quality_start: Fraction = 0.857  # of the steps, before which no quality is learnt: 180 of 210 epochs
    guidance: NonNegative = 0.0  # weight, falling to 0 until `quality_start`, of looking where the joints are


class SharPoseRecipe(CropRecipe):
    """A whole run of SHaRPose."""

    mae: str | None = None  # a file of MAE weights of a vision transformer to start the blocks from
    # reference: with the authors' two slips (16 of 17 rows mined, rows and columns swapped in the OKS)
    rules: Literal["corrected", "reference"] = "corrected"
    network: Network = Network()
    data: SharPoseData
    schedule: SharPoseSchedule


def layer_of(name: str, depth: int) -> int:
    """0 for what feeds the blocks, i + 1 for block i, the last for all behind them (section 5)."""
    if name.startswith(FIRST):
        return 0
    if name.startswith(BLOCK):
        return int(name.removeprefix(BLOCK).partition(".")[0]) + 1
    return depth + 1


def matrices_of(name: str, parameter: nn.Parameter) -> int:
    """How many matrices stand one above the other in a parameter inside the network; 0 for all others."""
    if parameter.ndim < 2 or not name.startswith(INSIDE):
        return 0
    return 3 if name.endswith("attn.qkv.weight") else 1


class SharPoseCourse(Course[SharPoseRecipe, CropBatch]):
    """How SHaRPose learns."""

    record = SharPoseRecipe

    def __init__(self, recipe: SharPoseRecipe, rank: int) -> None:
        super().__init__(recipe, rank)
        self._loss = Loss(recipe.rules == "reference")
        options = recipe.network.model_dump(exclude_none=True)
        self._config = config_of(recipe.model, reference=recipe.rules == "reference", **options)

    @property
    def spec(self) -> Spec:
        name, (width, height), limit = self.recipe.model, self._config.size, self._config.threshold
        return Spec("sharpose", name, width, height, graphs=GRAPHS, resize="crop", refine_below=limit)

    def fresh_model(self) -> SharPose:
        return SharPose(self._config)

    def begin(self, model: nn.Module) -> None:
        if self.recipe.mae is not None:
            load_mae(cast(SharPose, model), self.recipe.mae)
        else:
            start_from_scratch(cast(SharPose, model))

    def groups(self, model: nn.Module) -> list[Group]:
        schedule, last = self.recipe.schedule, self._config.depth + 1
        groups: dict[tuple[int, bool, int], Group] = {}
        for name, parameter in model.named_parameters():
            layer = layer_of(name, self._config.depth)
            decays = parameter.ndim > 1 and not name.startswith(UNDECAYED)
            matrices = matrices_of(name, parameter) if schedule.muon else 0
            decay = schedule.muon_decay if matrices else schedule.weight_decay
            group = groups.setdefault(
                (layer, decays, matrices),
                Group(
                    params=[],
                    weight_decay=decay if decays else 0.0,
                    scale=schedule.layer_decay ** (last - layer) * (schedule.muon if matrices else 1.0),
                    orthogonal=matrices,
                ),
            )
            group["params"].append(parameter)
        return list(groups.values())

    def batches(self, first: int) -> Iterable[CropBatch]:
        crops = Crops(self.recipe, self._config.size, self.rank)
        return loader(crops, collate, self.recipe, first)

    def targets(self, batch: CropBatch, device: torch.device) -> Targets:
        """What is to be learnt from a batch; made on the device, where the heatmaps are large."""
        joints, labelled, sides = (value.to(device) for value in (batch.joints, batch.labelled, batch.sides))
        config = self._config
        return Targets(
            *heatmaps(joints, labelled, config.size, config.map_size, self.recipe.data.sigma), sides
        )

    def terms(self, wrapped: nn.Module, batch: CropBatch, step: int) -> dict[str, Tensor]:
        device = next(wrapped.parameters()).device
        images = normalised(batch.images.to(device), self.spec.mean, self.spec.std)
        targets = self.targets(batch, device)
        schedule = self.recipe.schedule
        start = round(schedule.quality_start * schedule.steps)
        with watched(cast(Backbone, wrapped.backbone).blocks) as seen:
            outputs = wrapped(images)
        terms = self._loss(outputs, targets, quality_weight(step + 1, start))
        if step < start and schedule.guidance:
            weight = schedule.guidance * (1 - step / start)
            terms["guidance"] = weight * guidance(seen, outputs["region_order"], targets, self._config)
        if self.teacher is not None:
            with torch.no_grad():
                known = self.teacher(images, math.inf)  # it looks at everybody again, as in training
            terms |= self.weighed(taught(outputs, known))
        return terms

    def score(self, model: nn.Module, dataset: Dataset) -> dict[str, Any]:
        return score_two_stage(cast(SharPose, model), dataset, self.spec)
