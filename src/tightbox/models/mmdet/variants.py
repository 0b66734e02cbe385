"""Which VFNet a state dict is, by its names and shapes alone."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from tightbox.errors import UserError
from tightbox.options import BackboneOptions, VFNetOptions

# By the first 3x3 convolution of stage 2 (width, and width of a group) and the number of blocks of the four stages:
# timm's name, and the title. ResNet-18 was never published; it is here so that small models can leave, too.
_BACKBONES: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[str, str]] = {
    ((64, 64), (2, 2, 2, 2)): ("resnet18", "ResNet-18"),
    ((64, 64), (3, 4, 6, 3)): ("resnet50", "ResNet-50"),
    ((64, 64), (3, 4, 23, 3)): ("resnet101", "ResNet-101"),
    ((128, 4), (3, 4, 23, 3)): ("resnext101_32x4d", "ResNeXt-101 32x4d"),
    ((256, 4), (3, 4, 23, 3)): ("resnext101_64x4d", "ResNeXt-101 64x4d"),
    ((26, 26), (3, 4, 23, 3)): ("res2net101d", "Res2Net-101"),
}
_TITLES = dict(_BACKBONES.values())
# Entries that give another model away, the first that fits.
_OTHERS = {
    "head.classes.": "a tightbox model already",
    "bbox_head.vfnet_": "VFNet with another head",
    "bbox_head.retina_": "RetinaNet",
    "bbox_head.conv_centerness.": "FCOS",
    "bbox_head.atss_": "ATSS",
    "bbox_head.gfl_": "GFL",
    "bbox_head.fovea_": "FoveaBox",
    "bbox_head.reppoints_": "RepPoints",
    "bbox_head.": "another detector of mmdetection",
    "roi_head.": "a two-stage detector, such as Faster R-CNN",
    "backbone.": "another detector or a backbone of mmdetection",
    "layer1.0.": "a ResNet without a detector",
}


class Variant(NamedTuple):
    """A recognised VFNet; the weights' own training settings are the published ones."""

    backbone: BackboneOptions
    options: VFNetOptions
    num_classes: int


def title(backbone: BackboneOptions) -> str:
    """The backbone in words."""
    name = _TITLES.get(backbone.name, backbone.name)
    return f"{name} with DCNv2" if backbone.deformable else name


def recognise(tensors: Mapping[str, Tensor], source: str) -> Variant:
    """The variant that these tensors, by their published names, are of.

    Raises:
        UserError: saying what `source` is, if it is no VFNet with a published backbone.
    """
    star = tensors.get("bbox_head.vfnet_cls_dconv.weight")
    classes = tensors.get("bbox_head.vfnet_cls.weight")
    if star is None or classes is None:
        found = next((what for start, what in _OTHERS.items() if any(name.startswith(start) for name in tensors)), None)
        what = f"it looks like {found}" if found else f"it begins with {next(iter(tensors))}"
        raise UserError(f"{source} is not a VFNet of mmdetection: {what}; give a VFNet file")
    bottom_up = "neck.pafpn_convs.0.conv.weight" in tensors
    depth = len(_numbers(tensors, "bbox_head.cls_convs."))
    return Variant(
        _backbone(tensors, source),
        VFNetOptions(
            channels=classes.shape[1],
            neck="pafpn" if bottom_up else "fpn",
            neck_norm="neck.fpn_convs.0.gn.weight" in tensors,
            lateral_norm="neck.lateral_convs.0.gn.weight" in tensors,
            neck_deformable="neck.pafpn_convs.0.conv.conv_offset.weight" in tensors,
            tower_depth=depth,
            deformable=f"bbox_head.cls_convs.{depth - 1}.conv.conv_offset.weight" in tensors,
            suppress="soft_linear" if bottom_up else "greedy",  # as VFNet-X was tested
            nms_iou=0.65 if bottom_up else 0.6,
        ),
        classes.shape[0],
    )


def _backbone(tensors: Mapping[str, Tensor], source: str) -> BackboneOptions:
    first = next((n for n in ("conv2", "convs.0") if f"backbone.layer1.0.{n}.weight" in tensors), "conv2")
    kernel = tensors.get(f"backbone.layer1.0.{first}.weight")
    width = (0, 0) if kernel is None else tuple(kernel.shape[:2])
    stages = [len(_numbers(tensors, f"backbone.layer{stage}.")) for stage in (1, 2, 3, 4)]
    name, _ = _BACKBONES.get((width, tuple(stages)), (None, None))
    if name is None:
        blocks = "-".join(map(str, stages))
        raise UserError(
            f"{source} is a VFNet on a backbone that is not known here ({blocks} blocks, first 3x3 convolution "
            f"{width[0]} wide); known are {', '.join(_TITLES.values())}"
        )
    deformable = any(name.startswith("backbone.") and ".conv_offset." in name for name in tensors)
    pool = name != "res2net101d"
    return BackboneOptions(
        name=name, pretrained=False, frozen_stages=1, frozen_norm=True, deformable=deformable, res2net_pool=pool
    )


def _numbers(tensors: Mapping[str, Tensor], prefix: str) -> set[str]:
    """The numbers that follow a prefix."""
    return {name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)}
