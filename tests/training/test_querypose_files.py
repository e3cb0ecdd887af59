"""QueryPose's files: the authors' by their names, our own, and those that do not fit."""

from __future__ import annotations

import logging
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from small_querypose import SMALL, images, made
from torch import Tensor, nn

from edgepose.runtime.errors import EdgeposeError
from edgepose.training.models import build, load_backbone, load_published
from edgepose.training.models.backbones.resnet import ResNet
from edgepose.training.models.querypose import FREE, NAMES, PROFILES
from edgepose.training.models.querypose.config import Config
from edgepose.training.models.querypose.network import QueryPose

GOLDEN = Path(__file__).parents[3] / "shared/golden/querypose"


@cache
def small(full: bool, backbone: str = "resnet50") -> Config:
    return Config(backbone=backbone, full=full, **SMALL)  # type: ignore[arg-type]


INSIDE = {  # of a box stage and of a pose stage, and what their authors call it
    "box": {
        "attention.qkv.weight": "self_attn.in_proj_weight",
        "attention.qkv.bias": "self_attn.in_proj_bias",
        "attention.proj": "self_attn.out_proj",
        "attention_norm": "norm1",
        "interaction.": "inst_interact.",
        "interaction_norm": "norm2",
        "feed.fc": "linear",
        "feed_norm": "norm3",
        "classify": "cls_module",
        "logit": "class_logits",
        "regress": "reg_module",
        "delta": "bboxes_delta",
    },
    "pose": {
        "convs": "inst_convs",
        "embedding.raise_": "part_embed_generator.upsample",
        "embedding.attend": "part_embed_generator.LSA_conv",
        "embedding.embed": "part_embed_generator.fc",
        "residual": "residual_filter",
        "selection.norm": "updater.norm_fc1",
        "selection": "updater",
        "attention.qkv.weight": "kps_self_attn.in_proj_weight",
        "attention.qkv.bias": "kps_self_attn.in_proj_bias",
        "attention.proj": "kps_self_attn.out_proj",
        "attention_norm": "self_attn_norm",
        "feed_norm": "norm2_l",
        "instance.interaction.": "pose_decoder_inst_interact.",
        "instance.interaction_norm": "inst_norm",
        "instance.feed_norm": "norm2",
        "instance.feed.fc": "linear",
    },
}


def authors_name(key: str) -> str:
    """What the authors call one of our R50 network's tensors; written without our mapping."""
    part, _, rest = key.partition(".")
    if part == "queries":
        return {"features": "init_proposal_features", "boxes": "init_proposal_boxes", "parts": "part_query"}[
            rest
        ] + ".weight"
    if part == "flow":
        return f"criterion.flow.flow.{rest}"
    if part in ("box_stages", "pose_stages"):
        index, _, inner = rest.partition(".")
        inner = re.sub(r"^feed\.fc(\d)", r"linear\1_l", inner) if part == "pose_stages" else inner
        inner = re.sub(r"^coordinates\.(\d)", r"fc_coord.\1.linear", inner)
        inner = re.sub(r"^deviations\.(\d)", r"fc_sigma.\1.linear", inner)
        for ours, theirs in INSIDE[part.removesuffix("_stages")].items():
            if inner.startswith(ours):
                inner = theirs + inner[len(ours) :]
                break
        return f"head.{'head' if part == 'box_stages' else 'pose_head'}_series.{index}.{inner}"
    neck = re.fullmatch(r"backbone\.neck\.(lateral|output)s\.(\d)\.(.*)", key)
    if neck:
        return f"backbone.fpn_{neck[1]}{int(neck[2]) + 2}.{neck[3]}"
    rest = (
        key.removeprefix("backbone.body.")
        .replace("downsample.0", "shortcut")
        .replace("downsample.1", "shortcut.norm")
    )
    rest = re.sub(r"bn(\d)", r"conv\1.norm", rest)
    layer = re.match(r"layer(\d)\.", rest)
    rest = f"res{int(layer[1]) + 1}.{rest[7:]}" if layer else f"stem.{rest}"
    return f"backbone.bottom_up.{rest}"


def blank(config: Config) -> QueryPose:
    """All zeros: quicker than random, and nothing that a file could hold."""
    with torch.device("meta"):
        network = QueryPose(config)
    network = network.to_empty(device="cpu")
    for value in network.state_dict().values():
        value.zero_()
    return network


@cache
def weights(full: bool) -> dict[str, Tensor]:
    """Random, under our names."""
    return {
        key: torch.randn_like(value) if value.is_floating_point() else value + 3
        for key, value in blank(small(full)).state_dict().items()
    }


def authors_file(
    path: Path, full: bool, wrapper: str | None = "model", prefix: str = ""
) -> dict[str, Tensor]:
    """`weights` as the authors' code stores them, with what nobody reads."""
    theirs = {authors_name(key): value for key, value in weights(full).items()}
    for stage in range(SMALL["stages"]):
        for name in ("fc3.weight", "norm_fc3.weight", "norm_fc3.bias"):
            theirs[f"head.pose_head_series.{stage}.updater.{name}"] = torch.ones(3)
    theirs |= {"criterion.flow.flow.mask": torch.ones(6, 2), "hm_fc.0.weight": torch.ones(2, 2)}
    named = {prefix + key: value for key, value in theirs.items()}
    torch.save({wrapper: named, "iteration": 7} if wrapper else named, path)
    return weights(full)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the QueryPose goldens are not beside the project")
def test_the_names_in_these_files_are_the_authors() -> None:
    lines = (GOLDEN / "keys/r50_full.txt").read_text().splitlines()
    with torch.device("meta"):
        state = build("querypose_r50_full").state_dict()
    assert {authors_name(key) for key in state} <= {line.split()[0] for line in lines}


@pytest.mark.parametrize(("wrapper", "prefix"), [("model", ""), ("state_dict", "module."), (None, "")])
def test_the_authors_files_load(
    tmp_path: Path, wrapper: str | None, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = authors_file(tmp_path / "q.pth", False, wrapper, prefix)
    network = blank(small(False))
    load_published(network, tmp_path / "q.pth")
    found = network.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert caplog.messages == []


@pytest.mark.parametrize("full", [True, False])
def test_a_network_takes_the_version_that_a_file_is_of(
    tmp_path: Path, full: bool, caplog: pytest.LogCaptureFixture
) -> None:
    state = authors_file(tmp_path / "q.pth", full)
    network = blank(small(not full))
    with caplog.at_level(logging.WARNING):
        load_published(network, tmp_path / "q.pth")
    assert network.config == small(full)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert caplog.messages == [
        f"{tmp_path / 'q.pth'}: holds the {'full' if full else 'light'} version, which the network now is"
    ]
    with torch.no_grad():
        assert network.eval()(images(1))["keypoints"].shape == (1, 5, 17, 2)


def test_a_file_without_the_flow_keeps_the_networks_own(tmp_path: Path) -> None:
    state = weights(False)
    torch.save(
        {authors_name(key): value for key, value in state.items() if "flow" not in key}, tmp_path / "q.pth"
    )
    network = blank(small(False))
    own = {key: value.clone() for key, value in network.flow.state_dict().items()}
    load_published(network, tmp_path / "q.pth")
    assert all(torch.equal(value, own[key]) for key, value in network.flow.state_dict().items())
    assert torch.equal(network.queries.features, state["queries.features"])


def test_our_own_files_load_in_either_version(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for full in (True, False):
        source, network = made(full=full), made(full=not full)
        save_file(source.state_dict(), tmp_path / "q.safetensors")
        load_published(network, tmp_path / "q.safetensors")
        assert network.config.full is full
        assert all(
            torch.equal(value, source.state_dict()[key]) for key, value in network.state_dict().items()
        )


@pytest.mark.parametrize("full", [True, False])
def test_another_networks_file_is_refused_and_changes_nothing(tmp_path: Path, full: bool) -> None:
    """Of the same version or of the other one; by the first keys that differ."""
    state = weights(full)
    theirs = {authors_name(key): value for key, value in state.items()}
    theirs["head.head_series.0.extra"] = theirs.pop("head.head_series.0.norm1.bias")
    torch.save({"model": theirs}, tmp_path / "q.pth")
    network = blank(small(False))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(
        EdgeposeError,
        match=r"box_stages\.0\.attention_norm\.bias is missing; box_stages\.0\.extra is unexpected",
    ):
        load_published(network, tmp_path / "q.pth")
    assert network.config == small(False)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    torch.save(QueryPose(small(full, "residual")).state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        EdgeposeError, match=r"w\.pth: these weights are of another model: backbone\.body.* is missing"
    ):
        load_published(network, tmp_path / "w.pth")


def test_published_weights_start_a_frozen_resnet(tmp_path: Path) -> None:
    """torchvision's file has counters of batches, which a frozen normalisation does not."""
    published = ResNet(50).state_dict()
    torch.save({**published, "fc.weight": torch.zeros(3)}, tmp_path / "resnet50.pth")
    network = blank(small(False))
    load_backbone(network, tmp_path / "resnet50.pth")
    body = network.get_submodule("backbone.body")
    assert all(torch.equal(value, published[key]) for key, value in body.state_dict().items())
    assert not any("num_batches" in key for key in body.state_dict())
    still = [key for key, value in body.named_parameters() if not value.requires_grad]
    assert len(still) == 11  # section 10


def test_a_frozen_resnet_is_the_resnet_in_evaluation() -> None:
    torch.manual_seed(3)
    plain = ResNet(50)
    with torch.no_grad():
        for module in plain.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.9, 1.1)  # type: ignore[union-attr]
        expected = plain.eval()(images(1))
        network = blank(small(False))
        body = network.get_submodule("backbone.body")
        body.load_state_dict(
            {key: value for key, value in plain.state_dict().items() if "num_batches" not in key}
        )
        for got, wanted in zip(body.train()(images(1)), expected, strict=True):
            assert torch.allclose(got, wanted, atol=1e-5)


def test_tinys_backbone_is_no_published_one(tmp_path: Path) -> None:
    torch.save(ResNet(18).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(EdgeposeError, match=r"resnet18\.pth: .*another backbone: stem\.0\.weight is missing"):
        load_backbone(made(), tmp_path / "resnet18.pth")


def test_every_name_is_a_profile() -> None:
    assert len(PROFILES) == 2 * len(NAMES) + 1
    assert all(PROFILES[f"{name}_full"] == {**PROFILES[name], "full": True} for name in NAMES)
    assert set(FREE) <= set(Config.__dataclass_fields__)
