"""What a QueryPose network is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models.querypose.roi import Roi

CELL = 32  # pixels of a cell of the coarsest map


@dataclass(frozen=True, slots=True)
class Config:
    """Defaults are the published network's (specs/querypose.md section 1). N queries, K joints.

    Raises EdgeposeError when its parts do not fit together.
    """

    backbone: Literal["residual", "resnet50", "hrnet32", "hrnet48", "swint", "swinb", "swinl"]
    size: tuple[int, int] = (512, 512)  # width, height of the input, pixels
    skeleton: Literal["coco17", "crowdpose14"] = "coco17"
    full: bool = False  # the pose stages look at each person once more; False is the published, light version
    queries: PositiveInt = 100  # N
    stages: PositiveInt = 6
    channels: PositiveInt = 256  # C, of a query and of every map
    heads: PositiveInt = 8
    hidden: PositiveInt = 2048  # inside the feed-forward layers
    dynamic_channels: PositiveInt = 64
    part_channels: PositiveInt = 128  # of a part query
    pose_layers: Annotated[int, Field(ge=2)] = 6  # 3x3 convolutions of a pose stage
    pose_channels: PositiveInt = 512  # between these
    top_k: PositiveInt | None = 20  # queries that get a pose in evaluation, the best by score; None: all
    roi: Roi = "roialign"  # how an exported graph pools
    # Training only: part queries and instance queries go from stage to stage as in the authors' code.
    reference: bool = False
    widths: tuple[int, int, int, int, int] = (16, 32, 64, 72, 80)  # of the residual backbone

    def __post_init__(self) -> None:
        if any(side <= 0 or side % CELL for side in self.size):
            raise EdgeposeError(f"QueryPose: size is {self.size}; choose sides divisible by {CELL}")
        if self.channels % self.heads or self.part_channels % self.heads or self.part_channels % 4:
            raise EdgeposeError(
                f"QueryPose: {self.channels} channels and {self.part_channels} part channels do not split "
                f"into {self.heads} heads; choose multiples of {self.heads}, the second of 4 too"
            )
        if self.top_k is not None and self.top_k > self.queries:
            raise EdgeposeError(
                f"QueryPose: top_k is {self.top_k} of {self.queries} queries; choose at most {self.queries}"
            )
