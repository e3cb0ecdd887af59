"""Accuracy of a torch model on a data set, through the camera's own preprocessing and decoding."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgepose.calibration.dataset import Dataset
from edgepose.calibration.score import Score, evaluate
from edgepose.runtime.decode import DECODERS
from edgepose.runtime.errors import EdgeposeError
from edgepose.runtime.poses import Poses
from edgepose.runtime.preprocess import U8, prepare
from edgepose.runtime.progress import track
from edgepose.runtime.spec import Spec

MIN_HEIGHT_PX = 48.0  # of the people that count


def require_people(dataset: Dataset, named: str, min_height_px: float = MIN_HEIGHT_PX) -> None:
    """Raises EdgeposeError when the data set, which the user called `named`, has nobody who counts."""
    for index in range(len(dataset)):
        for person in dataset.people(index):
            if person.visibility.any() and not person.crowd and person.box[3] >= min_height_px:
                return
    raise EdgeposeError(
        f"{named}: nobody in its {len(dataset)} pictures is labelled and {min_height_px:g} px high, "
        "as scoring needs; choose other validation data"
    )


@torch.no_grad()
def poses_in(model: nn.Module, image: U8, spec: Spec) -> Poses:
    """What the model in evaluation mode finds in a (H, W, 3) BGR picture."""
    images, box = prepare(image, spec)
    outputs = model(torch.from_numpy(images))
    arrays = {name: np.asarray(value.numpy(), np.float32) for name, value in outputs.items()}
    return DECODERS[spec.family](arrays, box, spec.joints())


def score_model(
    model: nn.Module, dataset: Dataset, spec: Spec, min_height_px: float = MIN_HEIGHT_PX
) -> Score:
    """AP and AR of `model` on the CPU. People lower than `min_height_px` neither count nor cost."""
    model = model.eval()
    found, truth = [], []
    for index in track(range(len(dataset)), "evaluating"):
        sample = dataset[index]
        found.append(poses_in(model, sample.image, spec))
        truth.append(sample.people)
    return evaluate(truth, found, dataset.skeleton, min_height_px)
