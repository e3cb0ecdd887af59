"""QueryPose: queries find people, part queries find their joints, and no step has to tell duplicates apart.

An independent implementation of "QueryPose: Sparse Multi-Person Pose Regression via Spatial-Aware Part-Level
Query" (NeurIPS 2022), after specs/querypose.md; its authors' files fit it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models.backbones.frozen import frozen
from edgepose.training.models.backbones.hrnet import HrNet
from edgepose.training.models.backbones.residual_pyramid import Residuals
from edgepose.training.models.backbones.resnet import ResNet
from edgepose.training.models.backbones.swin import Swin
from edgepose.training.models.querypose.box_stage import CELLS as BOX_CELLS
from edgepose.training.models.querypose.box_stage import BoxStage
from edgepose.training.models.querypose.boxes import absolute, moved
from edgepose.training.models.querypose.config import CELL, Config
from edgepose.training.models.querypose.flow import Flow
from edgepose.training.models.querypose.losses import Aim, Learned, Outputs, aim_of, errors_of
from edgepose.training.models.querypose.matching import Matches, matched
from edgepose.training.models.querypose.parts import PARTS
from edgepose.training.models.querypose.pose_stage import CELLS as POSE_CELLS
from edgepose.training.models.querypose.pose_stage import Instance, Joints, PoseStage, chance
from edgepose.training.models.querypose.published import translated
from edgepose.training.models.querypose.pyramids import Fpn, HrFpn, HrFpnV1
from edgepose.training.models.querypose.queries import Queries
from edgepose.training.models.querypose.roi import (
    multiplied,
    multiplied_by_size,
    pooled,
    pooled_by_size,
)
from edgepose.training.models.querypose.targets import Targets
from edgepose.training.models.weights import require_fit

log = logging.getLogger(__name__)

# A body and the pyramid on it, by the backbone's name (section 1).
BACKBONES: dict[str, tuple[Callable[[Config], Any], Callable[[Sequence[int], int], nn.Module]]] = {
    "residual": (lambda config: Residuals(config.widths), Fpn),
    "resnet50": (lambda _: frozen(ResNet(50)), Fpn),
    "hrnet32": (lambda _: HrNet(32), HrFpn),
    "hrnet48": (lambda _: HrNet(48), HrFpnV1),
    "swint": (lambda _: Swin("t"), Fpn),
    "swinb": (lambda _: Swin("b"), Fpn),
    "swinl": (lambda _: Swin("l"), Fpn),
}


class Told(NamedTuple):
    """What a box stage tells the pose stages and the next box stage; N may be fewer than all queries."""

    queries: Tensor  # (B, N, C)
    logits: Tensor  # (B, N)
    boxes: Tensor  # (B, N, 4) input pixels

    def chosen(self, best: Tensor) -> Told:
        """Of the queries (B, n) int64 alone."""
        C = self.queries.shape[2]
        queries = self.queries.gather(1, best[:, :, None].expand(-1, -1, C))
        boxes = self.boxes.gather(1, best[:, :, None].expand(-1, -1, 4))
        return Told(queries, self.logits.gather(1, best), boxes)


class QueryPose(nn.Module):
    """The trainable network; `eval()` turns its forward into the inference graph of DESIGN.md section 4."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        make, neck = BACKBONES[config.backbone]
        body = make(config)
        self.backbone = nn.Sequential(OrderedDict(body=body, neck=neck(body.widths, config.channels)))
        self.queries = Queries(config, len(PARTS[config.skeleton]))
        self.box_stages = nn.ModuleList(BoxStage(config) for _ in range(config.stages))
        self.pose_stages = nn.ModuleList(PoseStage(config) for _ in range(config.stages))
        self.flow = Flow()
        self._start()

    def _start(self) -> None:
        """As the authors (section 10); what it does not say is torch's own."""
        for parameter in (*self.box_stages.parameters(), *self.pose_stages.parameters()):
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        for stage in self.box_stages:
            cast(BoxStage, stage).start()
        self.flow.start()

    def forward(
        self, images: Tensor, targets: Targets | None = None, sizes: Tensor | None = None
    ) -> Outputs | dict[str, Tensor]:
        """Normalised RGB (B, 3, H, W) -> `Outputs` in training, the graph's named outputs in evaluation.

        Training finds the joints of `targets` only, so it needs them. `sizes` (B, 2) are width and height
        of each picture without its padding; by default there is none: a letterboxed input is one picture of
        a fixed size, bars included. Raises EdgeposeError for images that the maps do not divide.
        """
        height, width = images.shape[2:]
        if not height or not width or height % CELL or width % CELL:
            raise EdgeposeError(
                f"QueryPose cannot take images of {width}x{height} pixels; "
                f"letterbox them to sides divisible by {CELL}"
            )
        if sizes is None:
            sizes = images.new_tensor((width, height)).expand(images.shape[0], 2)
        maps = self.backbone(images)
        if not self.training:
            return self.found(maps, sizes)
        if targets is None:
            raise TypeError("QueryPose needs the targets of a batch in training")
        return self.learned(maps, targets, sizes)

    # Evaluation.

    def found(self, maps: Sequence[Tensor], sizes: Tensor) -> dict[str, Tensor]:
        """All box stages, then the pose stages for the `top_k` best queries, best first.

        No box stage reads what a pose stage says, so the others change nothing about these
        (specs/querypose.md section 0, item 3). Without `top_k` all queries in their own order.
        """
        told = self.boxed(maps, sizes)
        if self.config.top_k is not None:
            best = told[-1].logits.topk(self.config.top_k, 1).indices
            told = [stage.chosen(best) for stage in told]
        return self.outputs(told[-1], self.posed(maps[0], told))

    def boxed(self, maps: Sequence[Tensor], sizes: Tensor) -> list[Told]:
        """What each box stage says of all N queries, in pictures of `sizes` (B, 2)."""
        queries, boxes = self.queries.instances(sizes.shape[0]), self.queries.first_boxes(sizes)
        told: list[Told] = []
        for stage in self.box_stages:
            regions = pooled_by_size(maps, boxes, BOX_CELLS, self.config.roi)
            queries, logits, deltas = stage(queries, regions)
            boxes = moved(boxes, deltas)
            told.append(Told(queries, logits, boxes))
        return told

    def posed(self, finest: Tensor, told: Sequence[Told]) -> Joints:
        """Joints of the B*N people that the box stages have told of.

        Only the last stage's heads are read; the part queries run through all.
        """
        B, N = told[0].logits.shape
        parts = self.queries.of_people(B * N)
        for stage, (queries, _, boxes) in zip(self.pose_stages, told, strict=True):
            # People of every size are read from the finest map (section 8).
            regions = pooled(finest, boxes, POSE_CELLS, self.config.roi)
            parts = stage(queries.flatten(0, 1), regions, parts).parts
        return cast(PoseStage, self.pose_stages[-1]).joints(parts)

    def outputs(self, told: Told, joints: Joints) -> dict[str, Tensor]:
        """The named outputs, from what the last stages say of B*N people."""
        B, N = told.logits.shape
        K = joints.coordinates.shape[1]
        keypoints = absolute(joints.coordinates.reshape(B, N, K, 2), told.boxes)
        sure = joints.scores.reshape(B, N, K)
        scores = chance(told.logits) * sure.mean(-1)  # section 9
        return {"scores": scores, "boxes": told.boxes, "keypoints": keypoints, "keypoint_scores": sure}

    # Training.

    def learned(self, maps: Sequence[Tensor], targets: Targets, sizes: Tensor) -> Outputs:
        """All stages, the pose stages for the queries that are matched to a person."""
        queries, boxes = self.queries.instances(sizes.shape[0]), self.queries.first_boxes(sizes)
        parts = self.queries.of_people(max(1, targets.valid.numel()))
        stages: list[Learned] = []
        for box_stage, pose_stage in zip(self.box_stages, self.pose_stages, strict=True):
            regions = multiplied_by_size(maps, boxes, BOX_CELLS)
            queries, logits, deltas = box_stage(queries, regions)
            told = moved(boxes, deltas)  # with a gradient, which ends at the next stage
            boxes = told.detach()
            matches = matched(logits, boxes, targets, sizes)
            rows = self._rows(matches, targets)
            image, query, _ = matches
            regions = multiplied(maps[0], boxes[image, query], image, POSE_CELLS)
            now = pose_stage(queries[image, query], regions, parts[rows])
            parts = parts.index_copy(0, rows, now.parts.to(parts.dtype))
            if self.config.reference:
                queries = queries.index_put((image, query), now.queries.to(queries.dtype))
            joints = cast(PoseStage, pose_stage).joints(now.parts)
            aim = aim_of(boxes[image, query], matches, targets)
            log_phi = self._log_phi(joints, aim)
            stages.append(Learned(logits, told, matches, joints, aim, log_phi, now.looks))
        return Outputs(stages, sizes)

    def posed_along(
        self, finest: Tensor, told: Sequence[Told], matches: Sequence[Matches], targets: Targets
    ) -> Joints:
        """Joints of the people that another network's stages were matched to, read as `learned` does."""
        parts = self.queries.of_people(max(1, targets.valid.numel()))
        for stage, (queries, _, boxes), found in zip(self.pose_stages, told, matches, strict=True):
            rows = self._rows(found, targets)
            image, query, _ = found
            regions = multiplied(finest, boxes[image, query], image, POSE_CELLS)
            now = stage(queries[image, query], regions, parts[rows]).parts
            parts = parts.index_copy(0, rows, now.to(parts.dtype))
        return cast(PoseStage, self.pose_stages[-1]).joints(now)

    def _rows(self, matches: Matches, targets: Targets) -> Tensor:
        """(M,) where the part queries of each match are kept from stage to stage.

        With the person they are meant for. The authors' code keeps them in the order of the matched queries,
        which changes between stages: a person then goes on with the parts of another. It also hands the
        full version's renewed query to the next box stage, in training alone; evaluation would not know it.
        """
        if self.config.reference:
            return torch.arange(len(matches.person), device=matches.person.device)
        return matches.image * targets.valid.shape[1] + matches.person

    def _log_phi(self, joints: Joints, aim: Aim) -> Tensor:
        """(M, K): the flow's log density of the joints' errors."""
        with torch.autocast(joints.coordinates.device.type, enabled=False):
            return cast(Tensor, self.flow(errors_of(joints, aim)))

    # Published files.

    def fit(self, weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """What a file of the authors, or of ours, holds, under our names; takes the version that it is of.

        Files do not say whether they are light or full, their names do. A file without the flow, which only
        training needs, keeps this network's. Raises EdgeposeError when the file is of another network.
        """
        flow = {key: value for key, value in self.state_dict().items() if key.startswith("flow.")}
        loaded = {**flow, **translated(weights)}
        full = any(".instance." in key for key in loaded)
        if full != self.config.full:
            config = replace(self.config, full=full)
            with torch.device("meta"):
                expected = QueryPose(config).state_dict()
            version = "full" if full else "light"
            require_fit(path, expected, loaded, "model", f"this model's {version} version and these options")
            log.warning("%s: holds the %s version, which the network now is", path, version)
            self.config = config
            device = self.queries.boxes.device
            for stage in self.pose_stages:
                cast(PoseStage, stage).instance = Instance(config).to(device) if full else None
        return loaded
