"""QR-Pose: a dense map of people, each pixel regressing a whole pose and predicting that pose's own quality.

An independent implementation of the ideas of "Learning Quality-aware Representation for Multi-person Pose
Regression" (AAAI 2022), after specs/qrpose.md; it does not claim to reproduce the paper's figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models.backbones import build_backbone
from edgepose.training.models.backbones.residual_pyramid import ResidualPyramid
from edgepose.training.models.blocks import conv_bn, conv_bn_relu
from edgepose.training.models.qrpose import deploy
from edgepose.training.models.qrpose.sampling import at_pixels, bilinear, grid_sample, pixel_centres

OFFSET_SCALE = 8.0  # map pixels a unit of the offset layers (section 4.2): near unit range, for INT8 too
SPACING_LIMITS = (0.75, 12.0)  # map pixels between neighbouring queries of one joint
OFFSET_LIMIT = 8.0  # units; a wider value would stretch a quantizer's range (section 8, item 4)
CELL = 32  # pixels of a cell of the backbones' coarsest map
RAMP = 1e-3  # logits, spread over the map so that no two neighbours tie, as 8-bit scores do (section 7)
SCORE_PRIOR = -2.19  # logit of 0.1, the focal prior (section 4.4)
Ranking = Literal["cir_pqe", "cir", "gauss_pqe", "gauss"]
OWN_RANKING: Ranking = "cir_pqe"  # by S
RIVALS: tuple[Ranking, ...] = ("cir", "gauss_pqe", "gauss")  # what each learns, and whether it sees the pose


class Choice(NamedTuple):
    """Where training evaluates the heads. The last D of the P pixels get `hints` in place of their own O1."""

    pixels: Tensor  # (B, P) int64 indices into H*W
    share: Tensor  # (B, P) how many of the map's pixels each stands for
    hints: Tensor  # (B, D, K, 2) offsets in map pixels; D may be 0


Chooser = Callable[[Tensor], Choice]
Sampler = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Config:
    """What a QR-Pose network is made of. K joints; sizes in pixels of the network input.

    Raises EdgeposeError when its parts do not fit together.
    """

    backbone: Literal["pyramid", "resnet18", "resnet34", "hrnet32", "hrnet48", "dla34"] = "pyramid"
    widths: tuple[int, int, int, int, int] = (16, 24, 48, 72, 96)  # of the pyramid; the others have their own
    channels: int = 48  # C, of the shared map
    instance_channels: int = 48  # of the instance branch, which only the score reads
    joint_channels: int = 8  # c, of each joint's features
    joints: int = 17  # K
    size: tuple[int, int] = (256, 256)  # width, height
    head: Literal["sparse", "dense"] = "sparse"  # the inference graph, section 7
    candidates: int = 64  # M of the sparse graph
    slots: int = 20  # N
    queries: int = 3  # a square of so many queries a side around where each joint is believed to be
    # One look of KQE each: the distance between its queries, as a share of the pose's mean extent. Each
    # starts from the pose that the one before it gave.
    reaches: tuple[float, ...] = (0.25, 0.07)
    kqe: bool = True
    pqe: bool = True
    pqe_detach: bool = True
    # Inference gives what all candidates say of a person, and the OKS expected of that; without it, as in the
    # paper, what one pixel says, and S.
    ensemble: bool = True
    # Three more scores of the same features and poses, and whose peaks inference takes: the paired heads of
    # specs/qrpose-evaluation.md section 2, whose differences are no other training's luck.
    rivals: bool = False
    ranked_by: Ranking = OWN_RANKING

    @property
    def structure_channels(self) -> int:
        """Of the pose as PQE sees it: offsets and, with KQE, what is known of each joint."""
        return self.joints * (2 + (self.joint_channels if self.kqe else 0))

    def __post_init__(self) -> None:
        if any(side < 2 * CELL or side % CELL for side in self.size):
            raise EdgeposeError(
                f"QR-Pose: size is {self.size}; choose sides of {2 * CELL} or more that {CELL} divides"
            )
        pixels = self.map_size[0] * self.map_size[1]
        if not 1 <= self.slots <= self.candidates <= pixels:
            raise EdgeposeError(
                f"QR-Pose: {self.slots} slots of {self.candidates} candidates of {pixels} map pixels; "
                "choose a slot or more, and of each no more than of the next"
            )
        if self.ranked_by != OWN_RANKING and not self.rivals:
            raise EdgeposeError(f"QR-Pose: ranked_by {self.ranked_by!r} needs rivals=true")

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
    """What KQE reads around a pose; h, w is any layout of pixels."""

    semantics: Tensor  # (B, K*c*Q, h, w) for Q queries a joint
    spacing: Tensor  # (B, 1, h, w) map pixels between neighbouring queries


Read = Callable[[Tensor, float], Queries]  # around offsets (B, 2K, h, w), with a reach


class Heads(NamedTuple):
    """What the pointwise layers say at chosen pixels; h, w is any layout of these pixels."""

    logits: Tensor  # of S (B, 1, h, w)
    offsets: Tensor  # O (B, 2K, h, w) map pixels, (x, y) per joint
    coarse_offsets: Tensor  # O1, likewise
    confidence: Tensor  # logits of V (B, K, h, w)
    rivals: Mapping[str, Tensor] = {}  # logits as of S, by ranking


class Raw(NamedTuple):
    """What training sees: dense maps, and the heads at the P chosen pixels."""

    coarse: Tensor  # logits (B, H, W)
    heatmaps: Tensor  # logits (B, K, H, W)
    pixels: Tensor  # indices into H*W (B, P) int64
    share: Tensor  # (B, P) how many of the map's pixels each stands for
    hinted: int  # D, how many of the last pixels were given their coarse offsets
    logits: Tensor  # (B, P)
    offsets: Tensor  # (B, P, K, 2) map pixels
    coarse_offsets: Tensor  # (B, P, K, 2) map pixels
    confidence: Tensor  # logits (B, P, K)
    maps: tuple[Tensor, ...] = ()  # I and R of the trunk, for who has a teacher
    rivals: Mapping[str, Tensor] = {}  # logits (B, P), by ranking


class Look(nn.Module):
    """One look of KQE: what was read around a pose moves each of its joints (section 4.3).

    All layers are pointwise, so the value at a pixel depends on that pixel alone.
    """

    def __init__(self, joints: int, channels: int, queries: int) -> None:
        super().__init__()
        width = joints * channels
        self.position = nn.Conv2d(2 * joints, width, 1, groups=joints)
        self.mix = conv_bn_relu((queries**2 + 2) * width, width, 1, groups=joints)
        # Differs from section 4.3, whose joints never meet: an elbow tells where the wrist is.
        self.body = conv_bn(width, width, 1)
        self.off = nn.Conv2d(width, 2 * joints, 1, groups=joints)
        self.joints = joints
        nn.init.zeros_(cast(Tensor, self.body[1].weight))
        _start_small(self.off)

    def forward(self, before: Tensor, pose: Tensor, read: Queries) -> tuple[Tensor, Tensor]:
        """(B, K*c, h, w) known of each joint so far, and offsets (B, 2K, h, w) -> both, better."""
        position = self.position((pose / OFFSET_SCALE).clamp(-OFFSET_LIMIT, OFFSET_LIMIT))
        known = self.mix(self._per_joint(read.semantics, position, before))
        known = torch.relu(known + self.body(known))
        return known, pose + read.spacing * self.off(known)

    def _per_joint(self, *features: Tensor) -> Tensor:
        """Concatenates so that each joint's channels stand together, as grouped convolutions want them."""
        B, _, h, w = features[0].shape
        split = [part.reshape(B, self.joints, -1, h, w) for part in features]
        return torch.cat(split, 2).reshape(B, -1, h, w)


class Rival(nn.Module):
    """One more score like S."""

    def __init__(self, channels: int, structure: int) -> None:
        super().__init__()
        self.enc = conv_bn_relu(structure, channels, 1) if structure else None
        self.fuse = conv_bn_relu(channels, channels, 1)
        self.score = nn.Conv2d(channels, 1, 1)
        _start_at_prior(self.score)


def ranked(head: QrPose | Rival, instance: Tensor, structure: Tensor) -> Tensor:
    """Logits (B, 1, h, w) of a score, which sees the pose where it has PQE's encoder."""
    fused = instance if head.enc is None else instance + head.enc(structure)
    logits: Tensor = head.score(head.fuse(fused))
    return logits


class QrPose(nn.Module):
    """The trainable network; `eval()` turns its forward into the inference graph of section 7."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        channels, joints = config.channels, config.joints
        width = joints * config.joint_channels
        self.backbone: nn.Module = (
            ResidualPyramid(config.widths, channels)
            if config.backbone == "pyramid"
            else build_backbone(config.backbone, channels)
        )
        instance = config.instance_channels
        self.inst = nn.Sequential(conv_bn_relu(channels, instance), conv_bn_relu(instance, instance))
        # The paper's K branches are one grouped convolution: the same function in one node.
        self.kpt = nn.Sequential(
            conv_bn_relu(channels, width, 1), conv_bn_relu(width, width, 3, groups=joints)
        )
        self.score0 = nn.Conv2d(instance, 1, 1)
        self.heatmap = nn.Conv2d(width, joints, 1, groups=joints)
        self.off1 = nn.Conv2d(width, 2 * joints, 1, groups=joints)
        self.looks = nn.ModuleList(
            Look(joints, config.joint_channels, config.queries)
            for _ in (config.reaches if config.kqe else ())
        )
        self.enc = conv_bn_relu(config.structure_channels, instance, 1) if config.pqe else None
        self.fuse = conv_bn_relu(instance, instance, 1)
        self.score = nn.Conv2d(instance, 1, 1)
        self.conf = nn.Conv2d(width, joints, 1, groups=joints)
        self.rivals = nn.ModuleDict(
            {
                name: Rival(instance, config.structure_channels if name.endswith("_pqe") else 0)
                for name in (RIVALS if config.rivals else ())
            }
        )
        self._initialise()
        self.grid: Tensor  # (H*W, 2) x, y of each map pixel
        self.ramp: Tensor  # (H*W,) logits
        self.around: Tensor  # (2, Q, 1) places of a joint's queries about the coarse position, in spacings
        centres = pixel_centres(config.map_size)
        self.register_buffer("grid", centres, persistent=False)
        square = pixel_centres((config.queries, config.queries)) - (config.queries - 1) / 2
        self.register_buffer("around", square.T[:, :, None].contiguous(), persistent=False)
        self.register_buffer("ramp", torch.arange(len(centres)) * (RAMP / len(centres)), persistent=False)

    def _initialise(self) -> None:
        _start_small(self.off1)
        for layer in (self.score0, self.score, self.heatmap):
            _start_at_prior(layer)

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
        """The heads at pixels (B, P) int64 of the map, laid out as (B, ., 1, P): section 7 B.

        `hints` (B, D, K, 2) replace the coarse offsets of the last D pixels.
        """
        precise = self.off1.weight.dtype  # the trunk may be half under AMP, positions must not
        instance = at_pixels(trunk.instance, pixels).to(precise)
        groups = 1 if self.training else self.config.joints
        joints = at_pixels(trunk.joints, pixels, groups).to(precise)
        coarse = self.off1(joints) * OFFSET_SCALE
        if hints is not None and hints.shape[1]:
            given = hints.flatten(2).transpose(1, 2).unsqueeze(2)  # (B, 2K, 1, D)
            coarse = torch.cat([coarse[..., : -hints.shape[1]], given], 3)
        B, P = pixels.shape
        here = self.grid[None].expand(B, -1, 2).gather(1, pixels[:, :, None].expand(B, P, 2))
        sample = grid_sample if self.training else bilinear
        return self.heads(instance, joints, coarse, partial(self.read, trunk.joints, here, sample))

    def heads_everywhere(self, trunk: Trunk) -> Heads:
        """The heads at all pixels, laid out as (B, ., H, W), with one GridSample a look: section 7 A."""
        coarse = self.off1(trunk.joints) * OFFSET_SCALE
        read = partial(self.read, trunk.joints, self.grid[None], grid_sample)
        return self.heads(trunk.instance, trunk.joints, coarse, read)

    def read(self, joints: Tensor, here: Tensor, sample: Sampler, pose: Tensor, reach: float) -> Queries:
        """What R holds around `pose`, the offsets (B, 2K, h, w) from pixels `here` (B or 1, P, 2).

        Differs from section 4.3's single query (left open by section 10): joints are seen long before the
        coarse pose points at them, so KQE looks around, in proportion to how large the pose is.
        """
        B, _, h, w = pose.shape
        poses = pose.reshape(B, -1, 2, h * w)  # (B, K, 2, P)
        extent = (poses.amax(1) - poses.amin(1)).detach().mean(1)  # (B, P)
        spacing = (extent * reach).clamp(*SPACING_LIMITS)
        middles = here.transpose(1, 2)[:, None] + poses
        positions = middles[:, :, :, None] + self.around * spacing[:, None, None, None]
        semantics = sample(joints, positions.flatten(3))  # (B, K*c, 1, Q*P)
        return Queries(semantics.reshape(B, -1, h, w), spacing.reshape(B, 1, h, w))

    def heads(self, instance: Tensor, joints: Tensor, coarse: Tensor, read: Read) -> Heads:
        """All pointwise layers (sections 4.3 to 4.5); `read` tells what lies around given offsets."""
        offsets, known = coarse, joints
        for look, reach in zip(self.looks, self.config.reaches, strict=bool(self.looks)):
            known, offsets = look(known, offsets, read(offsets, reach))
        pose = (offsets / OFFSET_SCALE).clamp(-OFFSET_LIMIT, OFFSET_LIMIT)
        structure = torch.cat([pose, known], 1) if self.looks else pose
        if self.config.pqe_detach:  # the score must not bend the pose towards what is easy to score
            structure = structure.detach()
        rivals = {name: ranked(cast(Rival, head), instance, structure) for name, head in self.rivals.items()}
        every = {OWN_RANKING: ranked(self, instance, structure), **rivals}
        return Heads(every[self.config.ranked_by], offsets, coarse, self.conf(known), rivals)

    def _poses(self, offsets: Tensor) -> Tensor:
        """(B, 2K, h, w) -> (B, h*w, K, 2)."""
        return offsets.flatten(2).transpose(1, 2).reshape(offsets.shape[0], -1, self.config.joints, 2)

    def raw(self, trunk: Trunk, choose: Chooser | None) -> Raw:
        """The heads at the chosen pixels, or at all."""
        B, _, H, W = trunk.coarse.shape
        coarse = trunk.coarse[:, 0].float()
        if choose is None:
            pixels = torch.arange(H * W, device=coarse.device).expand(B, -1)
            hints = coarse.new_zeros(B, 0, self.config.joints, 2)
            choice = Choice(pixels, torch.ones_like(coarse).flatten(1), hints)
        else:
            choice = choose(coarse.detach())
        with torch.autocast(coarse.device.type, enabled=False):
            heads = self.heads_at(trunk, choice.pixels, choice.hints)
        return Raw(
            coarse=coarse,
            heatmaps=self.heatmap(trunk.joints).float(),
            pixels=choice.pixels,
            share=choice.share,
            hinted=choice.hints.shape[1],
            logits=heads.logits[:, 0, 0],
            offsets=self._poses(heads.offsets),
            coarse_offsets=self._poses(heads.coarse_offsets),
            confidence=heads.confidence[:, :, 0].transpose(1, 2),
            maps=(trunk.instance, trunk.joints),
            rivals={name: logits[:, 0, 0] for name, logits in heads.rivals.items()},
        )


def _start_at_prior(score: nn.Conv2d) -> None:
    nn.init.constant_(cast(Tensor, score.bias), SCORE_PRIOR)


def _start_small(offsets: nn.Conv2d) -> None:
    nn.init.normal_(offsets.weight, std=1e-3)
    nn.init.zeros_(cast(Tensor, offsets.bias))
