"""Published names of VFNet's parameters."""

import re
from collections.abc import Mapping

from torch import Tensor

# Ours to theirs, the first that fits. timm's ResNets and mmdetection's have the same names but for the deep stem.
_DEEP_STEM = [(r"^backbone\.body\.conv1\.", "backbone.stem."), (r"^backbone\.body\.bn1\.", "backbone.stem.7.")]
_NECK = {
    r"lateral\.(\d+)": r"lateral_convs.\1",
    r"output\.(\d+)": r"fpn_convs.\1",
    "p6": "fpn_convs.3",
    "p7": "fpn_convs.4",
    r"down\.(\d+)": r"downsample_convs.\1",  # these and the next are VFNet-X's
    r"bottom_up\.(\d+)": r"pafpn_convs.\1",
}
_RENAMES = [
    (r"^backbone\.body\.", "backbone."),
    *((rf"^fpn\.{ours}\.norm\.", f"neck.{theirs}.gn.") for ours, theirs in _NECK.items()),
    *((rf"^fpn\.{ours}\.(?:conv\.)?", f"neck.{theirs}.conv.") for ours, theirs in _NECK.items()),
    (r"^head\.class_tower\.", "bbox_head.cls_convs."),
    (r"^head\.box_tower\.", "bbox_head.reg_convs."),
    (r"^head\.box_conv\.", "bbox_head.vfnet_reg_conv."),
    (r"^head\.box\.", "bbox_head.vfnet_reg."),
    (r"^head\.box_scale\.(\d+)$", r"bbox_head.scales.\1.scale"),
    (r"^head\.refine_conv\.", "bbox_head.vfnet_reg_refine_dconv."),
    (r"^head\.refine\.", "bbox_head.vfnet_reg_refine."),
    (r"^head\.refine_scale\.(\d+)$", r"bbox_head.scales_refine.\1.scale"),
    (r"^head\.class_conv\.", "bbox_head.vfnet_cls_dconv."),
    (r"^head\.classes\.", "bbox_head.vfnet_cls."),
]


def to_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a VFNet's `state_dict` (or some of its gradients) under their published names.

    These are views: writing to them writes to the model. The scales of the five levels, one vector here, are five
    scalars there.
    """
    deep = any(name.startswith("backbone.body.conv1.0.") for name in tensors)
    renames = _DEEP_STEM + _RENAMES if deep else _RENAMES
    published: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = {name: tensor}
        if name in ("head.box_scale", "head.refine_scale"):
            parts = {f"{name}.{level}": scale for level, scale in enumerate(tensor.unbind())}
        published |= {_renamed(part, renames): value for part, value in parts.items()}
    return published


def _renamed(name: str, renames: list[tuple[str, str]]) -> str:
    for pattern, theirs in renames:
        new, count = re.subn(pattern, theirs, name)
        if count:
            return new.replace(".norm.", ".gn.")
    raise KeyError(f"mmdetection's VFNet has nothing like {name}")
