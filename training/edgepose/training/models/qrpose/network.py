"""QR-Pose: a dense map of people, each pixel regressing a whole pose and predicting that pose's own quality.

An independent implementation of the ideas of "Learning Quality-aware Representation for Multi-person Pose
Regression" (AAAI 2022), after specs/qrpose.md; it does not claim to reproduce the paper's figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from edgepose.training.models.backbones.residual_pyramid import ResidualPyramid
from edgepose.training.models.blocks import conv_bn_relu
from edgepose.training.models.qrpose import deploy
from edgepose.training.models.qrpose.sampling import at_pixels, bilinear, grid_sample, pixel_centres

OFFSET_SCALE = 8.0  # map pixels a unit of the offset layers (section 4.2): near unit range, for INT8 too
REACH = 0.25  # of the coarse pose's mean extent: the distance between the queries of one joint
REACH_LIMITS = (1.0, 12.0)  # map pixels
OFFSET_LIMIT = 8.0  # units; a wider value would stretch a quantizer's range (section 8, item 4)
RAMP = 1e-3  # logits, spread over the map so that no two neighbours tie, as 8-bit scores do (section 7)
SCORE_PRIOR = -2.19  # logit of 0.1, the focal prior (section 4.4)


class Choice(NamedTuple):
    """Where training evaluates the heads. The last D of the P pixels get `hints` in place of their own O1."""

    pixels: Tensor  # (B, P) int64 indices into H*W
    hints: Tensor  # (B, D, K, 2) offsets in map pixels; D may be 0


Chooser = Callable[[Tensor], Choice]
Sampler = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Config:
    """What a QR-Pose network is made of. K joints; sizes in pixels of the network input."""

    widths: tuple[int, int, int, int, int] = (16, 24, 48, 72, 96)
    channels: int = 48  # C, of the shared map
    instance_channels: int = 48  # of the instance branch, which only the score reads
    joint_channels: int = 8  # c, of each joint's features
    joints: int = 17  # K
    size: tuple[int, int] = (256, 256)  # width, height
    head: Literal["sparse", "dense"] = "sparse"  # the inference graph, section 7
    candidates: int = 64  # M of the sparse graph
    slots: int = 20  # N
    queries: int = 3  # a square of so many queries a side around each joint's coarse position
    looks: int = 1  # in evaluation KQE may look again, around the pose that the look before gave
    kqe: bool = True
    pqe: bool = True
    pqe_detach: bool = True

    @property
    def map_size(self) -> tuple[int, int]:
        """(W, H) of the stride-4 map."""
        return self.size[0] // 4, self.size[1] // 4


class Trunk(NamedTuple):
    """The dense part, on the stride-4 map."""

    instance: Tensor  # I (B, C, H, W)
    joints: Tensor  # R (B, K*c, H, W)
    coarse: Tensor  # logits of S0 (B, 1, H, W)


class Queries(NamedTuple):
    """What KQE reads around the coarse pose; h, w is any layout of pixels."""

    semantics: Tensor  # (B, K*c*Q, h, w) for Q queries a joint
    spacing: Tensor  # (B, 1, h, w) map pixels between neighbouring queries


class Heads(NamedTuple):
    """What the pointwise layers say at chosen pixels; h, w is any layout of these pixels."""

    logits: Tensor  # of S (B, 1, h, w)
    offsets: Tensor  # O (B, 2K, h, w) map pixels, (x, y) per joint
    coarse_offsets: Tensor  # O1, likewise
    confidence: Tensor  # logits of V (B, K, h, w)


class Raw(NamedTuple):
    """What training sees: dense maps, and the heads at the P chosen pixels."""

    coarse: Tensor  # logits (B, H, W)
    heatmaps: Tensor  # logits (B, K, H, W)
    pixels: Tensor  # indices into H*W (B, P) int64
    hinted: int  # D, how many of the last pixels were given their coarse offsets
    logits: Tensor  # (B, P)
    offsets: Tensor  # (B, P, K, 2) map pixels
    coarse_offsets: Tensor  # (B, P, K, 2) map pixels
    confidence: Tensor  # logits (B, P, K)


class QrPose(nn.Module):
    """The trainable network; `eval()` turns its forward into the inference graph of section 7."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        channels, joints = config.channels, config.joints
        width = joints * config.joint_channels
        self.backbone = ResidualPyramid(config.widths, channels)
        instance = config.instance_channels
        self.inst = nn.Sequential(conv_bn_relu(channels, instance), conv_bn_relu(instance, instance))
        # The paper's K branches are one grouped convolution: the same function in one node.
        self.kpt = nn.Sequential(
            conv_bn_relu(channels, width, 1), conv_bn_relu(width, width, 3, groups=joints)
        )
        self.score0 = nn.Conv2d(instance, 1, 1)
        self.heatmap = nn.Conv2d(width, joints, 1, groups=joints)
        self.off1 = nn.Conv2d(width, 2 * joints, 1, groups=joints)
        if config.kqe:
            self.posk = nn.Conv2d(2 * joints, width, 1, groups=joints)
            self.mix = conv_bn_relu((config.queries**2 + 1) * width, width, 1, groups=joints)
            self.off2 = nn.Conv2d(width, 2 * joints, 1, groups=joints)
        if config.pqe:
            self.enc = conv_bn_relu(2 * joints + (width if config.kqe else 0), instance, 1)
        self.fuse = conv_bn_relu(instance, instance, 1)
        self.score = nn.Conv2d(instance, 1, 1)
        self.conf = nn.Conv2d(width, joints, 1, groups=joints)
        self._initialise()
        self.grid: Tensor  # (H*W, 2) x, y of each map pixel
        self.ramp: Tensor  # (H*W,) logits
        self.around: Tensor  # (Q, 1, 1, 2) places of a joint's queries about the coarse position, in spacings
        centres = pixel_centres(config.map_size)
        self.register_buffer("grid", centres, persistent=False)
        square = pixel_centres((config.queries, config.queries)) - (config.queries - 1) / 2
        self.register_buffer("around", square[:, None, None], persistent=False)
        self.register_buffer("ramp", torch.arange(len(centres)) * (RAMP / len(centres)), persistent=False)

    def _initialise(self) -> None:
        for layer in (self.off1, self.off2) if self.config.kqe else (self.off1,):
            nn.init.normal_(layer.weight, std=1e-3)
            nn.init.zeros_(cast(Tensor, layer.bias))
        for layer in (self.score0, self.score, self.heatmap):
            nn.init.constant_(cast(Tensor, layer.bias), SCORE_PRIOR)

    def forward(self, images: Tensor, choose: Chooser | None = None) -> Raw | dict[str, Tensor]:
        """Normalised RGB (B, 3, H, W) -> `Raw` in training, the graph's named outputs in evaluation.

        `choose` picks training's pixels from the coarse logits (B, H, W); by default all.
        """
        trunk = self.trunk(images)
        if self.training:
            return self.raw(trunk, choose)
        graph = deploy.sparse if self.config.head == "sparse" else deploy.dense
        return graph(self, trunk)

    def trunk(self, images: Tensor) -> Trunk:
        """The dense convolutions."""
        features = self.backbone(images)
        instance = self.inst(features)
        return Trunk(instance, self.kpt(features), self.score0(instance))

    def heads_at(self, trunk: Trunk, pixels: Tensor, hints: Tensor | None = None) -> Heads:
        """The heads at pixels (B, P) int64 of the map, laid out as (B, ., P, 1): section 7 B.

        `hints` (B, D, K, 2) replace the coarse offsets of the last D pixels.
        """
        precise = self.off1.weight.dtype  # the trunk may be half under AMP, positions must not
        instance = at_pixels(trunk.instance, pixels).to(precise)
        joints = at_pixels(trunk.joints, pixels).to(precise)
        coarse = self.off1(joints) * OFFSET_SCALE
        if hints is not None and hints.shape[1]:
            given = hints.flatten(2).transpose(1, 2).unsqueeze(-1)  # (B, 2K, D, 1)
            coarse = torch.cat([coarse[:, :, : -hints.shape[1]], given], 2)
        if not self.config.kqe:
            return self.heads(instance, joints, coarse, None)
        B, P = pixels.shape
        here = self.grid[None].expand(B, -1, 2).gather(1, pixels[:, :, None].expand(B, P, 2))
        heads = self.heads(instance, joints, coarse, self.read(trunk.joints, here, coarse, bilinear))
        for _ in range(0 if self.training else self.config.looks - 1):
            nearer = heads.offsets
            heads = self.heads(instance, joints, nearer, self.read(trunk.joints, here, nearer, bilinear))
        return heads

    def heads_everywhere(self, trunk: Trunk) -> Heads:
        """The heads at all pixels, laid out as (B, ., H, W), with one GridSample: section 7 A."""
        coarse = self.off1(trunk.joints) * OFFSET_SCALE
        instance, joints = trunk.instance, trunk.joints
        if not self.config.kqe:
            return self.heads(instance, joints, coarse, None)
        here = self.grid[None]
        heads = self.heads(instance, joints, coarse, self.read(joints, here, coarse, grid_sample))
        for _ in range(0 if self.training else self.config.looks - 1):
            nearer = heads.offsets
            heads = self.heads(instance, joints, nearer, self.read(joints, here, nearer, grid_sample))
        return heads

    def read(self, joints: Tensor, here: Tensor, coarse: Tensor, sample: Sampler) -> Queries:
        """What R holds around pixel + O1, for pixels `here` (B or 1, P, 2) and their O1 (B, 2K, h, w).

        Differs from section 4.3's single query (left open by section 10): joints are seen long before the
        coarse pose points at them, so KQE looks around, as far as the coarse pose is large.
        """
        B, _, h, w = coarse.shape
        poses = self._poses(coarse)  # (B, P, K, 2)
        extent = (poses.amax(2) - poses.amin(2)).detach().mean(-1)  # (B, P)
        spacing = (extent * REACH).clamp(*REACH_LIMITS)
        positions = (here[:, :, None] + poses)[:, None] + self.around * spacing[:, None, :, None, None]
        semantics = sample(joints, positions.flatten(1, 2))  # (B, K*c, Q*P, 1)
        return Queries(semantics.reshape(B, -1, h, w), spacing.reshape(B, 1, h, w))

    def heads(self, instance: Tensor, joints: Tensor, coarse: Tensor, around: Queries | None) -> Heads:
        """All pointwise layers (sections 4.3 to 4.5), so the value at a pixel depends on that pixel alone.

        `around` is None without KQE.
        """
        offsets, queries = coarse, joints
        if around is not None:
            position = self.posk((coarse / OFFSET_SCALE).clamp(-OFFSET_LIMIT, OFFSET_LIMIT))
            queries = self.mix(self._per_joint(around.semantics, position))  # Q
            offsets = coarse + around.spacing * self.off2(queries)  # O
        fused = instance
        if self.config.pqe:
            pose = (offsets / OFFSET_SCALE).clamp(-OFFSET_LIMIT, OFFSET_LIMIT)
            structure = torch.cat([pose, queries], 1) if around is not None else pose
            if self.config.pqe_detach:  # the score must not bend the pose towards what is easy to score
                structure = structure.detach()
            fused = instance + self.enc(structure)
        return Heads(self.score(self.fuse(fused)), offsets, coarse, self.conf(queries))

    def _poses(self, offsets: Tensor) -> Tensor:
        """(B, 2K, h, w) -> (B, h*w, K, 2)."""
        return offsets.flatten(2).transpose(1, 2).reshape(offsets.shape[0], -1, self.config.joints, 2)

    def _per_joint(self, first: Tensor, second: Tensor) -> Tensor:
        B, _, h, w = first.shape
        split = (B, self.config.joints, -1, h, w)
        return torch.cat([first.reshape(split), second.reshape(split)], 2).reshape(B, -1, h, w)

    def raw(self, trunk: Trunk, choose: Chooser | None) -> Raw:
        """The heads at the chosen pixels, or at all."""
        B, _, H, W = trunk.coarse.shape
        coarse = trunk.coarse[:, 0].float()
        if choose is None:
            pixels = torch.arange(H * W, device=coarse.device).expand(B, -1)
            choice = Choice(pixels, coarse.new_zeros(B, 0, self.config.joints, 2))
        else:
            choice = choose(coarse.detach())
        with torch.autocast(coarse.device.type, enabled=False):
            heads = self.heads_at(trunk, *choice)
        return Raw(
            coarse=coarse,
            heatmaps=self.heatmap(trunk.joints).float(),
            pixels=choice.pixels,
            hinted=choice.hints.shape[1],
            logits=heads.logits[:, 0, :, 0],
            offsets=self._poses(heads.offsets),
            coarse_offsets=self._poses(heads.coarse_offsets),
            confidence=heads.confidence[..., 0].transpose(1, 2),
        )
