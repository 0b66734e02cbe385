"""A published VFNet checkpoint as a tightbox model, and a tightbox VFNet as mmdetection's state dict."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from tightbox.checkpoint import refuse_misfits
from tightbox.errors import UserError
from tightbox.models import Backbone, Detector, VFNet
from tightbox.models.mmdet.names import to_published
from tightbox.models.mmdet.read import PublishedFile, read_checkpoint
from tightbox.models.mmdet.variants import recognise
from tightbox.models.skip_init import SkipInit
from tightbox.options import BackboneOptions, VFNetOptions

# COCO's 80 classes, in the order of their category ids, among which torchvision has these two as well.
_CATEGORIES: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO_CLASSES = tuple(name for name in _CATEGORIES if name not in ("__background__", "N/A"))


def import_checkpoint(
    path: str | Path, class_names: Sequence[str] | None = None, *, top_k_of: Literal["locations", "pairs"] = "locations"
) -> VFNet:
    """The VFNet in a file of mmdetection, in evaluation mode, with the published settings of training and testing.

    Frozen parts, image size and test settings are the published ones; settings that leave no trace in the weights
    (such as distances in strides) are taken to be the published ones, too.

    Args:
        path: a `.pth` file.
        class_names: the classes in the order of their labels; without them the file's own, or COCO's if it has 80.
        top_k_of: what is ranked before suppression: "locations" gave the published AP, "pairs" is mmdetection 3.

    Raises:
        UserError: if the file cannot be read, is no VFNet with a known backbone, or its weights or classes do not fit.
    """
    path = Path(path)
    file = read_checkpoint(path)
    variant = recognise(file.tensors, str(path))
    names = _class_names(file, variant.num_classes, class_names, path)
    with SkipInit():
        options = replace(variant.options, top_k_of=top_k_of)
        model = VFNet(backbone=Backbone(variant.backbone), class_names=names, options=options)
    load_published(model, file.tensors, str(path))
    model.metrics = {"imported_from": path.name}
    return model.eval()


def export_state(model: Detector) -> dict[str, Tensor]:
    """Copies of a VFNet's weights, on the CPU, by the names that mmdetection's VFNet has for them.

    Raises:
        UserError: if mmdetection has no such model.
    """
    if not isinstance(model, VFNet):
        raise UserError(f"mmdetection has a VFNet, and this is a {model.name}; it cannot be exported")
    options = model.options
    if not (options.star and options.refine) or options.centerness:
        raise UserError("mmdetection's VFNet has star and refine, and no centerness; this model cannot be exported")
    if options.star_norm or (options.lateral_norm and not options.neck_norm):
        raise UserError(
            "mmdetection's VFNet has no norms after its stars (star_norm), nor any in its pyramid that are after the "
            "lateral convolutions alone (lateral_norm without neck_norm); this model cannot be exported to it. A "
            "fine-tuned published model can (tightbox train --init), or train with --vfnet.star-norm false"
        )
    if options.channels < 64:
        raise UserError(f"mmdetection's VFNet needs 64 channels or more, and this model has {options.channels}")
    published = to_published(model.state_dict())
    if _arithmetic(recognise(published, "this model").backbone) != _arithmetic(model.backbone.options):
        name = model.backbone.options.name
        raise UserError(f"mmdetection does not compute {name} as this model does, which therefore cannot be exported")
    return {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in published.items()}


def settings(model: Detector) -> dict[str, str]:
    """What mmdetection's configuration needs for a VFNet that was exported, where it is not the published one."""
    options, published = model.options, VFNetOptions()
    found = {"bbox_head.num_classes": str(len(model.class_names))}
    if options.channels != published.channels:
        width = str(options.channels)
        found |= {"neck.out_channels": width, "bbox_head.in_channels": width, "bbox_head.feat_channels": width}
    if options.tower_depth != published.tower_depth:
        found["bbox_head.stacked_convs"] = str(options.tower_depth)
    if options.distance_unit != published.distance_unit:
        found["bbox_head.bbox_norm_type"] = repr(options.distance_unit)
    if options.neck == "pafpn":
        found["neck.type"] = "'PAFPN'"
    if options.neck_norm:
        found["neck.norm_cfg"] = "dict(type='GN', num_groups=32)"
        found["neck.no_norm_on_lateral"] = str(not options.lateral_norm)
    return found


def _arithmetic(backbone: BackboneOptions) -> tuple[str, bool, bool]:
    name = backbone.name.partition(".")[0]  # what follows the dot in timm's names is where the first weights came from
    return name, backbone.deformable, backbone.res2net_pool or not name.startswith("res2net")


@torch.no_grad()
def load_published(model: VFNet, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy published tensors into a model; every name and shape must fit.

    Raises:
        UserError: naming the first misfit, with both shapes if it is one of shapes.
    """
    own = to_published(model.state_dict())
    refuse_misfits(own, tensors, source)
    for name, slot in own.items():
        slot.copy_(tensors[name])


def _class_names(file: PublishedFile, count: int, given: Sequence[str] | None, path: Path) -> tuple[str, ...]:
    if given is not None:
        if len(given) != count:
            raise UserError(f"{path} was trained on {count} classes, and {len(given)} class names are given")
        return tuple(given)
    if file.class_names is not None and len(file.class_names) == count:
        return file.class_names
    if count == len(COCO_CLASSES):
        return COCO_CLASSES
    named = "no class names" if file.class_names is None else f"{len(file.class_names)} class names"
    raise UserError(f"{path} was trained on {count} classes and holds {named}; name them with --class-names")
