"""The sections of a recipe that every family has; each family adds its own (`families`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from edgepose.runtime.drafts import draft_file

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the first may not be larger than the second")
    return pair


Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_rising)]


class Section(BaseModel):
    """A closed record: what is not a field is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Data(Section):
    """Where the pictures come from."""

    train: str
    validation: str | None = None
    cache: bool = False  # read or make each picture once and keep it in memory
    workers: Annotated[int, Field(ge=0)] = 1


class Schedule(Section):
    """How long and how fast to learn; the rate rises linearly, then falls."""

    steps: PositiveInt
    batch: PositiveInt = 16  # pictures or crops a step and process
    learning_rate: PositiveFloat = 2e-3
    final_rate: Fraction = 0.01  # of the learning rate, where half a cosine ends
    rise: Fraction = 0.03  # of the steps
    drops: tuple[Fraction, ...] | None = None  # of the steps, after which a tenth is left; null: the cosine
    weight_decay: NonNegative = 1e-4
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    clip: PositiveFloat | None = 10.0  # largest norm of the gradient; null: any
    checkpoint_steps: PositiveInt = 200
    log_steps: PositiveInt = 20


class MuonSchedule(Schedule):
    """Of a family that knows which of its parameters are matrices inside the network."""

    muon: NonNegative = 0.0  # their rate by `optimizer.Muon`, in learning rates; 0: AdamW for all
    # Their weight decay. In front of a normalisation it alone says how far a step turns a kernel, in the end:
    # by sqrt(2 * rate * decay / 39) of its length, for a momentum of 0.95.
    muon_decay: NonNegative = 1.0


class Teacher(Section):
    """The same network with weights that know better: what it says is learnt beside the labels."""

    weights: str  # a file, or "shipped"
    weight: PositiveFloat = 1.0  # of its terms


class Recipe(Section):
    """A whole run, as far as the loop knows it."""

    model: str
    seed: Annotated[int, Field(ge=0)] = 0
    initial: str | None = None  # weights to start from: a file, or "shipped"; null: random
    teacher: Teacher | None = None  # null: the labels alone
    # 2:4: of every 4 inputs of an output the 2 largest weights at the start stay, the others stay 0
    sparsity: Literal["2:4"] | None = None
    # Data-parallel processes: one for each GPU, or for each core of a CPU, where two of one thread get
    # through twice the pictures of one of two threads. Each takes `schedule.batch` pictures a step.
    processes: PositiveInt = 1
    threads: Annotated[int, Field(ge=0)] = 0  # of torch in each process; 0 lets it choose
    # auto: bf16 where the hardware multiplies it; on an AVX2 core it takes 6 times as long as float32
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    data: Data
    schedule: Schedule

    def to_yaml(self) -> str:
        """Every key, defaults included: the resolved recipe."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))

    def save(self, path: Path) -> None:
        """Write the resolved recipe."""
        with draft_file(path) as temporary:
            temporary.write_text(self.to_yaml(), encoding="utf-8")


class Augment(Section):
    """How far a whole picture may be changed."""

    mosaic: Fraction = 0.0  # share of pictures made of four close-ups of people; falls to 0 until the end
    plain: Fraction = 0.0  # share of the others that are mirrored at most, so as the camera shows them
    flip: Fraction = 0.5
    scale: Range = (0.75, 1.35)
    rotation_degrees: NonNegative = 15.0  # standard deviation, cut at twice that
    translation: NonNegative = 0.12  # of the input's side
    colour: NonNegative = 0.25  # relative change of brightness, contrast and single channels
    coded: Fraction = 0.0  # share of pictures that go through a camera's codec


class PictureData(Data):
    """Whole pictures with all their people."""

    min_area: NonNegative = 64.0  # input px²; smaller people are neither right nor wrong
    augment: Augment = Augment()


class PictureRecipe(Recipe):
    """A run of a family that finds everybody in a letterboxed picture."""

    size: Annotated[int, Field(ge=64, le=1024, multiple_of=32)] = 256  # pixels of the square input
    data: PictureData
