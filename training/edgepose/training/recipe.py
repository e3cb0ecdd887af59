"""The recipe: one YAML file that fully describes a training run, and is checked whole before it starts."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails

from edgepose.runtime.drafts import draft_file
from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models import check_name
from edgepose.training.models.qrpose import PROFILES

RECIPES = Path(__file__).parent / "recipes"
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A closed record: what is not a field is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Network(Section):
    """What can be changed in a QR-Pose network."""

    depth: Literal[18, 34] | None = None  # of qrpose_edge's ResNet; null: the model's own
    joint_channels: PositiveInt | None = None  # of each joint's features; null: the model's own
    kqe: bool = True
    pqe: bool = True
    pqe_detach: bool = True


class Augment(Section):
    """How far a picture may be changed."""

    mosaic: Fraction = 0.0  # share of pictures made of four close-ups of people; falls to 0 until the end
    flip: Fraction = 0.5
    scale: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.35)
    rotation_degrees: NonNegative = 15.0  # standard deviation, cut at twice that
    translation: NonNegative = 0.12  # of the input's side
    colour: NonNegative = 0.25  # relative change of brightness, contrast and single channels


class Data(Section):
    """Where the pictures come from."""

    train: str
    validation: str | None = None
    cache: bool = False  # read or make each picture once and keep it in memory
    workers: Annotated[int, Field(ge=0)] = 1
    min_area: NonNegative = 64.0  # input px²; smaller people are neither right nor wrong
    augment: Augment = Augment()


class LossSection(Section):
    """Weights of the loss terms (specs/qrpose.md section 6) and what the score learns."""

    target: Literal["oks", "gauss", "oks_gauss"] = "oks"
    radius: Annotated[int, Field(ge=0)] = 1  # map pixels around a person's centre that regress the pose
    score: NonNegative = 1.0
    coarse_score: NonNegative = 0.5
    offset: NonNegative = 1.0
    oks: NonNegative = 5.0
    coarse: NonNegative = 0.5
    heatmap: NonNegative = 1.0
    confidence: NonNegative = 0.5
    warm: Fraction = 0.05  # of the steps, in which the score's label falls from 1 to the OKS


class Schedule(Section):
    """How long and how fast to learn; the rate rises linearly, then falls as a cosine to `final_rate`."""

    steps: PositiveInt
    batch: PositiveInt = 16  # pictures a step and process
    learning_rate: PositiveFloat = 2e-3
    final_rate: Fraction = 0.01  # of the learning rate
    rise: Fraction = 0.03  # of the steps
    weight_decay: NonNegative = 1e-4
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    clip: PositiveFloat = 10.0  # largest norm of the gradient
    checkpoint_steps: PositiveInt = 200
    log_steps: PositiveInt = 20


class Recipe(Section):
    """A whole run."""

    model: str
    size: Annotated[int, Field(ge=64, le=1024, multiple_of=32)] = 256  # pixels of the square input
    seed: Annotated[int, Field(ge=0)] = 0
    initial: str | None = None  # weights to start from: a file, or "shipped"; null: random
    backbone: str | None = None  # a file of ImageNet weights for the backbone alone
    # Data-parallel processes: one for each GPU, or for each core of a CPU, where two of one thread get
    # through twice the pictures of one of two threads. Each takes `schedule.batch` pictures a step.
    processes: PositiveInt = 1
    threads: Annotated[int, Field(ge=0)] = 0  # of torch in each process; 0 lets it choose
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"  # auto: bf16 on a GPU
    head_pixels: Annotated[int, Field(ge=64)] | None = 256  # pixels a picture for the heads; null takes all
    hint_pixels: Annotated[int, Field(ge=0)] = 40  # more, with a noisy true pose for KQE to start from
    network: Network = Network()
    data: Data
    loss: LossSection = LossSection()
    schedule: Schedule

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        check_name(name)
        if name not in PROFILES:
            raise EdgeposeError(f"{name}: no recipe can train it yet; choose one of {', '.join(PROFILES)}")
        return name

    def to_yaml(self) -> str:
        """Every key, defaults included: the resolved recipe."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))

    def save(self, path: Path) -> None:
        """Write the resolved recipe."""
        with draft_file(path) as temporary:
            temporary.write_text(self.to_yaml(), encoding="utf-8")


def shipped() -> dict[str, Path]:
    """The recipes that come with edgepose, by name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def open_recipe(name: str) -> Recipe:
    """A recipe file, or the name of a shipped one. Raises EdgeposeError for anything else."""
    path = shipped().get(name, Path(name))
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        near = difflib.get_close_matches(name, shipped(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"shipped recipes: {', '.join(shipped())}"
        raise EdgeposeError(f"{name}: no such recipe file and no shipped recipe; {hint}") from error
    except UnicodeDecodeError as error:
        raise EdgeposeError(f"{name}: not a recipe: it is no text ({error})") from error
    return parse_recipe(text, str(name))


def parse_recipe(text: str, origin: str) -> Recipe:
    """A checked recipe from YAML text. Raises EdgeposeError naming `origin`, the key and the value."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise EdgeposeError(f"{origin}: not a recipe: it is no valid YAML ({reason})") from error
    if not isinstance(values, dict):
        raise EdgeposeError(f"{origin}: not a recipe: expected keys and values, such as `model: qrpose_tiny`")
    try:
        # JSON mode: a YAML list may fill a tuple, but a string is never taken for a number.
        return Recipe.model_validate_json(_json(values, origin))
    except ValidationError as error:
        # A misspelt key is also a missing one; its spelling is what helps.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        raise EdgeposeError(f"{origin}: {_sentence(first)}") from error


def _json(values: dict[Any, Any], origin: str) -> str:
    try:
        return json.dumps(values)
    except (TypeError, ValueError) as error:
        raise EdgeposeError(f"{origin}: not a recipe: {error}") from error


def _sentence(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = list(_fields_at(error["loc"][:-1]))
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if error["type"] == "missing":
        return f"key {key!r} is missing; add it (`edgepose train` ships examples: {', '.join(shipped())})"
    return f"key {key!r} is {error['input']!r}: {error['msg']}; mend it in the recipe"


def _fields_at(location: tuple[int | str, ...]) -> dict[str, Any]:
    section: Any = Recipe
    for part in location:
        section = section.model_fields[str(part)].annotation
    return dict(section.model_fields)
