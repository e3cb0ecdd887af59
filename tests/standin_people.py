"""The compression tests' network with COCO's joints, quantized, and pictures whose people it finds itself."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto

from edgepose.calibration.calibration_set import Entry, Exclusion, Manifest
from edgepose.calibration.dataset import SyntheticDataset, open_dataset
from edgepose.calibration.sample import Person, Sample
from edgepose.compression.answers import estimator
from edgepose.compression.quantize import Quantized, quantize
from edgepose.export.simplify import simplify
from edgepose.export.trace import trace
from edgepose.export.views import cpu_view
from edgepose.runtime.bundle import Bundle, publish
from edgepose.runtime.drafts import write_json
from edgepose.runtime.poses import Poses
from edgepose.runtime.preprocess import prepare
from edgepose.runtime.spec import Spec

SPEC = Spec("qrpose", "standin", 64, 64)
PICTURES = "synthetic:count=10,seed=5,size=64"


class Own:
    """Pictures whose people are where the FP32 network finds them, so that every change costs."""

    source = name = "own"
    skeleton = SPEC.joints()

    def __init__(self, poses: list[Poses]) -> None:
        self._pictures = open_dataset(PICTURES)
        self._people = [tuple(map(_labelled, found.keypoints, found.boxes)) for found in poses]

    def __len__(self) -> int:
        return len(self._people)

    def __getitem__(self, index: int) -> Sample:
        return Sample(index, self._pictures[index].image, self._people[index])

    def people(self, index: int) -> tuple[Person, ...]:
        return self._people[index]

    def size(self, index: int) -> tuple[int, int]:
        return self._pictures.size(index)

    def fingerprint(self, index: int) -> str:
        return self._pictures.fingerprint(index)


def _labelled(keypoints: np.ndarray, box: np.ndarray) -> Person:
    width, height = (box[2:] - box[:2]).tolist()
    place = (*box[:2].tolist(), width, height)
    return Person(keypoints, np.full(17, 2, np.uint8), place, 0.5 * width * height)


@cache
def network() -> tuple[ModelProto, Quantized, Own]:
    """Its FP32 graph, its INT8 graph calibrated on PICTURES, and these with their people."""
    found = importlib.util.spec_from_file_location(
        "standin17", Path(__file__).parent / "compression" / "standin.py"
    )
    standin = importlib.util.module_from_spec(found)
    found.loader.exec_module(standin)
    standin.K = 17
    torch.set_num_threads(1)
    frames = [sample.image for sample in _samples()]
    feeds = [{"images": prepare(frame, SPEC)[0]} for frame in frames]
    fp32 = simplify(trace(standin.trained_like(), SPEC)["pose"], feeds[:2])[0]
    with estimator({"pose": fp32}, SPEC, "fp32", 1) as estimate:
        poses = [estimate(frame).above(SPEC.score_threshold) for frame in frames]
    return fp32, quantize(fp32, feeds, "qrpose"), Own(poses)


def _samples() -> list[Sample]:
    pictures = SyntheticDataset.parse(PICTURES)
    return [pictures[index] for index in range(len(pictures))]


def bundle(folder: Path, calibrated_on: str = PICTURES) -> Bundle:
    """The network as a bundle of what blame needs."""
    fp32, int8, _ = network()
    content = folder / "content"
    content.mkdir(parents=True)
    (content / "pose.fp32.onnx").write_bytes(fp32.SerializeToString())
    (content / "pose.int8.ort.onnx").write_bytes(cpu_view(int8.model).SerializeToString())
    pictures = open_dataset(calibrated_on)
    entries = tuple(
        Entry(f"{index}.png", "", pictures.fingerprint(index), index, index, "", (), 0, ())
        for index in range(len(pictures))
    )
    manifest = Manifest(calibrated_on, 0, entries, {}, Exclusion("", 0, "", 0, 0))
    write_json(content / "calibration.json", manifest.to_dict())
    return publish(content, folder / "bundle", SPEC, {})
