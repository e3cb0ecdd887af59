"""The channels that each joint has for itself in QR-Pose: each joint loses as many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np

from edgepose.compression.channels import INPUTS, OUTPUTS, Group, Indices, Part
from edgepose.training.models.qrpose.network import Look, QrPose

STEP = 2  # channels a joint


def joint_groups(network: QrPose) -> Iterator[Group]:
    """What the joints' branch makes, what KQE reads of it around a pose, and what each look makes of that."""
    K = network.config.joints
    hidden, seen = (_outputs(network, f"kpt.{place}.0") // K for place in (0, 1))
    yield _group(*_made("kpt.0", hidden, K), Part("kpt.1.0", INPUTS, _each(hidden)))
    readers = [Part(name, INPUTS, _each(seen)) for name in ("heatmap", "off1")]
    Q, looks = network.config.queries**2, [cast(Look, look) for look in network.looks]
    for index, look in enumerate(looks):
        around = np.arange(seen * Q).reshape(seen, Q)
        if index == 0:  # it starts from what was seen here
            around = np.concatenate([around, _before(look, seen * Q)], 1)
        readers.append(Part(f"looks.{index}.mix.0", INPUTS, around))
    if not looks:
        readers.append(Part("conf", INPUTS, _each(seen)))
    yield _group(*_made("kpt.1", seen, K), *readers)
    for index, look in enumerate(looks):
        after = looks[index + 1] if index + 1 < len(looks) else None
        yield from _of_look(network, index, (look, after), seen * Q)


def _of_look(network: QrPose, index: int, pair: tuple[Look, Look | None], read: int) -> Iterator[Group]:
    """`read` channels of a joint are what lies around the pose; those of its position stand behind them."""
    K, name, (look, after) = network.config.joints, f"looks.{index}", pair
    places = look.position.out_channels // K
    position = Part(f"{name}.position", OUTPUTS, _joints(places, K))
    yield _group(position, Part(f"{name}.mix.0", INPUTS, read + _each(places)))
    known = look.off.in_channels // K
    everywhere = _joints(known, K)
    parts = [
        *_made(f"{name}.mix", known, K),
        *_made(f"{name}.body", known, K),
        Part(f"{name}.body.0", INPUTS, everywhere),
        Part(f"{name}.off", INPUTS, _each(known)),
    ]
    if after is not None:
        parts.append(Part(f"looks.{index + 1}.mix.0", INPUTS, _before(after, read)))
    else:
        parts.append(Part("conf", INPUTS, _each(known)))
        if network.config.pqe:  # the pose stands before it
            parts.append(Part("enc.0", INPUTS, 2 * K + everywhere))
    yield _group(*parts)


def _outputs(network: QrPose, layer: str) -> int:
    return network.get_parameter(f"{layer}.weight").shape[0]


def _group(*parts: Part) -> Group:
    return Group(parts[0].layer, len(parts[0].indices), STEP, parts)


def _made(block: str, channels: int, joints: int) -> list[Part]:
    """A convolution and its normalisation."""
    return [Part(f"{block}.{place}", OUTPUTS, _joints(channels, joints)) for place in (0, 1)]


def _joints(channels: int, joints: int) -> Indices:
    """(channels, joints): where each channel stands in all joints'."""
    return np.arange(joints * channels).reshape(joints, channels).T


def _each(channels: int) -> Indices:
    """(channels, 1): in the weight of a layer that has a branch for each joint."""
    return np.arange(channels)[:, None]


def _before(look: Look, read: int) -> Indices:
    """(channels, 1) of what was known before the look, behind what it reads around and the position."""
    places = look.position.out_channels // look.joints
    known = look.mix.get_parameter("0.weight").shape[1] - read - places
    return read + places + _each(known)
