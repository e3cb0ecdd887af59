"""The one mapping from the authors' names to ours (specs/querypose.md sections 1, 3 to 8 and 13).

Names of HRNet, Swin and of whatever no rule touches are the same on both sides; shapes always are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# Pattern of the authors' name and its form here, applied one after the other.
RULES: tuple[tuple[str, str], ...] = (
    (r"^init_proposal_(features|boxes)\.weight$", r"queries.\1"),
    (r"^part_query\.weight$", "queries.parts"),
    (r"^criterion\.flow\.flow\.", "flow."),
    # The backbone; detectron2 names a ResNet's parts in its own way.
    (r"^backbone\.bottom_up\.stem\.", "backbone.body."),
    *((rf"^backbone\.bottom_up\.res{layer + 1}\.", f"backbone.body.layer{layer}.") for layer in (1, 2, 3, 4)),
    (r"^backbone\.bottom_up\.", "backbone.body."),
    (r"^(backbone\.body|backbone\.body\.layer\d\.\d)\.conv(\d)\.norm\.", r"\1.bn\2."),
    (r"^(backbone\.body\.layer\d\.\d)\.shortcut\.norm\.", r"\1.downsample.1."),
    (r"^(backbone\.body\.layer\d\.\d)\.shortcut\.", r"\1.downsample.0."),
    # The pyramid: FPN counts levels from 2, HRFPN from 0, and the lateral convolutions of its v1 from 1.
    *(
        (rf"^backbone\.fpn_{theirs}{level + 2}\.", f"backbone.neck.{ours}.{level}.")
        for theirs, ours in (("lateral", "laterals"), ("output", "outputs"))
        for level in (0, 1, 2, 3)
    ),
    (r"^backbone\.reduction_conv\.0\.", "backbone.neck.reduction."),
    (r"^backbone\.fpn_conv\.", "backbone.neck.outputs."),
    *(
        (rf"^backbone\.lateral_conv\.{level + 1}\.", f"backbone.neck.laterals.{level}.")
        for level in (0, 1, 2)
    ),
    # The box stages.
    (r"^head\.head_series\.", "box_stages."),
    (r"^(box_stages\.\d+)\.self_attn\.in_proj_", r"\1.attention.qkv."),
    (r"^(box_stages\.\d+)\.self_attn\.out_proj\.", r"\1.attention.proj."),
    (r"^(box_stages\.\d+)\.inst_interact\.", r"\1.interaction."),
    (r"^(box_stages\.\d+)\.norm1\.", r"\1.attention_norm."),
    (r"^(box_stages\.\d+)\.norm2\.", r"\1.interaction_norm."),
    (r"^(box_stages\.\d+)\.norm3\.", r"\1.feed_norm."),
    (r"^(box_stages\.\d+)\.linear(\d)\.", r"\1.feed.fc\2."),
    (r"^(box_stages\.\d+)\.cls_module\.", r"\1.classify."),
    (r"^(box_stages\.\d+)\.reg_module\.", r"\1.regress."),
    (r"^(box_stages\.\d+)\.class_logits\.", r"\1.logit."),
    (r"^(box_stages\.\d+)\.bboxes_delta\.", r"\1.delta."),
    # The pose stages; the second group is the full version's alone.
    (r"^head\.pose_head_series\.", "pose_stages."),
    (r"^(pose_stages\.\d+)\.inst_convs\.", r"\1.convs."),
    (r"^(pose_stages\.\d+)\.part_embed_generator\.upsample\.", r"\1.embedding.raise_."),
    (r"^(pose_stages\.\d+)\.part_embed_generator\.LSA_conv\.", r"\1.embedding.attend."),
    (r"^(pose_stages\.\d+)\.part_embed_generator\.fc\.", r"\1.embedding.embed."),
    (r"^(pose_stages\.\d+)\.residual_filter\.", r"\1.residual."),
    (r"^(pose_stages\.\d+)\.updater\.norm_fc1\.", r"\1.selection.norm."),
    (r"^(pose_stages\.\d+)\.updater\.", r"\1.selection."),
    (r"^(pose_stages\.\d+)\.kps_self_attn\.in_proj_", r"\1.attention.qkv."),
    (r"^(pose_stages\.\d+)\.kps_self_attn\.out_proj\.", r"\1.attention.proj."),
    (r"^(pose_stages\.\d+)\.self_attn_norm\.", r"\1.attention_norm."),
    (r"^(pose_stages\.\d+)\.norm2_l\.", r"\1.feed_norm."),
    (r"^(pose_stages\.\d+)\.linear(\d)_l\.", r"\1.feed.fc\2."),
    (r"^(pose_stages\.\d+)\.fc_coord\.(\d)\.linear\.", r"\1.coordinates.\2."),
    (r"^(pose_stages\.\d+)\.fc_sigma\.(\d)\.linear\.", r"\1.deviations.\2."),
    (r"^(pose_stages\.\d+)\.pose_decoder_inst_interact\.", r"\1.instance.interaction."),
    (r"^(pose_stages\.\d+)\.inst_norm\.", r"\1.instance.interaction_norm."),
    (r"^(pose_stages\.\d+)\.norm2\.", r"\1.instance.feed_norm."),
    (r"^(pose_stages\.\d+)\.linear(\d)\.", r"\1.instance.feed.fc\2."),
)

# What no output depends on, or the auxiliary heatmaps of some trainings: read by nobody, kept nowhere.
UNUSED = re.compile(
    r"criterion\.(?!flow\.flow\.)|criterion\.flow\.flow\.mask$|hm_fc\.|backbone\.fpn_conv\.4\."
    r"|backbone\.lateral_conv\.0\.|head\.pose_head_series\.\d+\.updater\.(norm_)?fc3\."
)


def named_here(key: str) -> str | None:
    """Our name of what the authors call `key`, or of what has it already; None for what nobody reads."""
    if UNUSED.match(key):
        return None
    for pattern, ours in RULES:
        key = re.sub(pattern, ours, key)
    return key


def translated(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under our names, whoever wrote the file."""
    named = ((named_here(key), value) for key, value in weights.items())
    return {key: value for key, value in named if key is not None}
