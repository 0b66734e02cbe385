from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.models import small_state, small_vfnet, tiny_model
from tests.helpers.references import DATA_ROOTS
from tightbox.errors import UserError
from tightbox.models import create_model
from tightbox.models.mmdet import export_state, import_checkpoint, settings
from tightbox.models.mmdet.convert import COCO_CLASSES
from tightbox.options import BackboneOptions, Preprocess, VFNetOptions

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return small_state()


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def write(state: State, meta: Any = None) -> Path:
        path = tmp_path / "vfnet.pth"
        torch.save({"meta": meta or {}, "state_dict": state}, path)
        return path

    return write


def test_settings_are_the_published_ones(state: State, file: Callable[..., Path]) -> None:
    random = torch.get_rng_state()
    model = import_checkpoint(file(state), ["a", "b", "c"])
    assert torch.get_rng_state().equal(random)  # nothing is drawn only to be overwritten
    assert model.class_names == ("a", "b", "c")
    assert model.backbone.options == BackboneOptions(
        name="resnet18", pretrained=False, frozen_stages=1, frozen_norm=True
    )
    assert model.preprocess == Preprocess(long_side=1333, short_side=800)
    assert model.options == VFNetOptions(channels=64, tower_depth=1)
    assert (model.options.score_threshold, model.options.top_k, model.options.nms_iou) == (0.05, 1000, 0.6)
    assert (model.options.max_detections, model.options.top_k_of) == (100, "locations")
    assert model.metrics == {"imported_from": "vfnet.pth"}
    assert import_checkpoint(file(state), ["a", "b", "c"], top_k_of="pairs").options.top_k_of == "pairs"


def test_values_land_in_their_places(state: State, file: Callable[..., Path]) -> None:
    state = dict(state) | {f"bbox_head.scales.{i}.scale": torch.tensor(1.0 + i) for i in range(5)}
    state["neck.fpn_convs.4.conv.bias"] = torch.full((64,), 4.0)
    state["backbone.layer1.0.bn1.num_batches_tracked"] = torch.tensor(77)
    model = import_checkpoint(file(state), ["a", "b", "c"])
    assert model.head.box_scale.tolist() == [1, 2, 3, 4, 5]
    assert model.head.refine_scale.tolist() == [1] * 5
    assert model.fpn.get_parameter("p7.bias").eq(4).all()
    assert model.backbone.body.layer1[0].bn1.num_batches_tracked == 77
    exported = export_state(model)
    assert all(exported[name].equal(value) for name, value in state.items())
    assert exported["bbox_head.scales.2.scale"].shape == ()
    exported["bbox_head.scales.2.scale"].zero_()
    assert model.head.box_scale[2] == 3  # exported tensors are copies


def test_classes(file: Callable[..., Path]) -> None:
    three, eighty = small_state(), small_state(classes=80)
    assert import_checkpoint(file(three, {"CLASSES": ("x", "y", "z")})).class_names == ("x", "y", "z")
    assert import_checkpoint(file(three, {"CLASSES": ("x", "y", "z")}), ["a", "b", "c"]).class_names == ("a", "b", "c")
    assert import_checkpoint(file(eighty)).class_names == COCO_CLASSES
    assert import_checkpoint(file(eighty, {"CLASSES": [f"own {i}" for i in range(80)]})).class_names[0] == "own 0"
    with pytest.raises(UserError, match=r"was trained on 3 classes and holds no class names; name them"):
        import_checkpoint(file(three))
    with pytest.raises(UserError, match=r"was trained on 3 classes and holds 80 class names; name them"):
        import_checkpoint(file(three, {"CLASSES": COCO_CLASSES}))
    with pytest.raises(UserError, match=r"was trained on 80 classes, and 2 class names are given"):
        import_checkpoint(file(eighty), ["a", "b"])
    with pytest.raises(UserError, match="all different"):
        import_checkpoint(file(three), ["a", "b", "a"])


def test_coco_classes_are_in_order_of_their_ids() -> None:
    categories = json.loads((DATA_ROOTS[0] / "coco-mini" / "val.json").read_text())["categories"]
    assert tuple(row["name"] for row in sorted(categories, key=lambda row: row["id"])) == COCO_CLASSES


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda s: s.pop("neck.fpn_convs.4.conv.bias"),
            r"lacks neck\.fpn_convs\.4\.conv\.bias and 0 more tensors that the model needs$",
        ),
        (
            lambda s: [s.pop(n) for n in list(s) if n.endswith("num_batches_tracked")],
            r"lacks backbone\.bn1\.num_batches_tracked and 19 more tensors that the model needs$",
        ),
        (
            lambda s: s.update({"bbox_head.cls_convs.0.conv.bias": torch.zeros(64)}),
            r"holds bbox_head\.cls_convs\.0\.conv\.bias and 0 more tensors that the model does not have$",
        ),
        (
            lambda s: s.update({"neck.lateral_convs.0.conv.weight": torch.zeros(64, 128, 3, 3)}),
            r"neck\.lateral_convs\.0\.conv\.weight is \(64, 128, 3, 3\), the model's \(64, 128, 1, 1\)$",
        ),
        (
            lambda s: s.update({"bbox_head.scales.1.scale": torch.ones(1)}),
            r"bbox_head\.scales\.1\.scale is \(1,\), the model's \(\)$",
        ),
        (lambda s: s["bbox_head.vfnet_reg.bias"].fill_(torch.nan), r"bbox_head\.vfnet_reg\.bias holds NaN or infinity"),
        (
            lambda s: s.update({"backbone.layer4.2.conv1.weight": torch.zeros(1)}),
            r"not known here \(2-2-2-3 blocks, .*ResNet-50",
        ),
        (
            lambda s: s.update({"backbone.layer1.0.conv2.weight": torch.zeros(7, 7, 3, 3)}),
            "first 3x3 convolution 7 wide",
        ),
        (
            lambda s: s.update({"neck.downsample_convs.0.conv.weight": torch.zeros(1)}),
            r"holds neck\.downsample_convs\.0\.conv\.weight and 0 more tensors that the model does not have$",
        ),
        (
            lambda s: s.update({"neck.pafpn_convs.0.conv.weight": torch.zeros(64, 64, 3, 3)}),
            r"lacks neck\.downsample_convs\.0\.conv\.bias and 8 more",
        ),
        (lambda s: s.update({"bbox_head.vfnet_cls.weight": torch.zeros(3, 72, 3, 3)}), "channels is 72"),
    ],
)
def test_misfits_are_named(
    state: State, file: Callable[..., Path], change: Callable[[State], object], sentence: str
) -> None:
    state = {name: value.clone() for name, value in state.items()}
    change(state)
    with pytest.raises(UserError, match=sentence) as caught:
        import_checkpoint(file(state), ["a", "b", "c"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["backbone.conv1.weight", "bbox_head.retina_cls.weight"], "RetinaNet"),
        (["backbone.conv1.weight", "bbox_head.conv_centerness.weight"], "FCOS"),
        (["backbone.conv1.weight", "bbox_head.atss_cls.weight"], "ATSS"),
        (["backbone.conv1.weight", "bbox_head.multi_level_cls.weight"], "another detector of mmdetection"),
        (["backbone.conv1.weight", "roi_head.bbox_head.fc_cls.weight"], "a two-stage detector"),
        (["backbone.conv1.weight", "bbox_head.vfnet_cls.weight"], "VFNet with another head"),
        (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], "a ResNet without a detector"),  # torchvision
        (["backbone.body.conv1.weight", "head.classes.weight"], "a tightbox model already"),
    ],
)
def test_other_models_are_said_to_be_that(file: Callable[..., Path], names: list[str], what: str) -> None:
    with pytest.raises(UserError, match=f"is not a VFNet of mmdetection: it looks like {what}"):
        import_checkpoint(file({name: torch.zeros(1) for name in names}))
    with pytest.raises(UserError, match="it begins with embed"):
        import_checkpoint(file({"embed.weight": torch.zeros(1)}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"star": False}, "has star and refine, and no centerness"),
        ({"refine": False}, "has star and refine, and no centerness"),
        ({"centerness": True, "varifocal": False}, "has star and refine, and no centerness"),
        ({"channels": 32}, "needs 64 channels or more, and this model has 32"),
        (
            {"backbone": BackboneOptions(name="seresnet50", pretrained=False)},
            "does not compute seresnet50 as this model",
        ),
        ({"backbone": BackboneOptions(name="res2net101d", pretrained=False)}, "does not compute res2net101d as this"),
        (
            {"backbone": BackboneOptions(name="convnext_atto", pretrained=False)},
            "this model is a VFNet on a backbone that",
        ),
    ],
)
def test_what_mmdetection_has_not_is_not_exported(changes: dict[str, Any], sentence: str) -> None:
    arguments: dict[str, Any] = {"num_classes": 2, "channels": 64, "backbone": "resnet18"}
    arguments |= {"pretrained_backbone": False} | changes
    with pytest.raises(UserError, match=sentence):
        export_state(create_model("vfnet", **arguments))


@pytest.mark.parametrize("changes", [{"star_norm": True}, {"lateral_norm": True}])
def test_what_has_no_name_there_is_not_exported(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"has no norms after its stars.*cannot be exported to it"):
        export_state(small_vfnet(**changes))


def test_what_mmdetections_configuration_needs() -> None:
    published = create_model("vfnet", num_classes=2, backbone="resnet18", pretrained_backbone=False)
    assert settings(published) == {"bbox_head.num_classes": "2"}
    model = small_vfnet(distance_unit="stride", neck_norm=True, lateral_norm=True)
    assert settings(model) == {
        "bbox_head.num_classes": "3",
        "neck.out_channels": "64",
        "bbox_head.in_channels": "64",
        "bbox_head.feat_channels": "64",
        "bbox_head.stacked_convs": "1",
        "bbox_head.bbox_norm_type": "'stride'",
        "neck.norm_cfg": "dict(type='GN', num_groups=32)",
        "neck.no_norm_on_lateral": "False",
    }


def test_norms_of_the_pyramid_come_back(file: Callable[..., Path]) -> None:
    model = small_vfnet(neck_norm=True, lateral_norm=True)
    imported = import_checkpoint(file(export_state(model)), model.class_names)
    assert imported.options == model.options
    for name, value in imported.state_dict().items():
        assert value.equal(model.state_dict()[name]), name


def test_other_detectors_are_not_exported() -> None:
    other = create_model(
        "iou_aware_retinanet", num_classes=2, backbone="resnet18", pretrained_backbone=False, channels=32
    )
    with pytest.raises(UserError, match="this is a iou_aware_retinanet"):
        export_state(other)
    with pytest.raises(UserError, match="needs 64 channels"):
        export_state(tiny_model())


def test_a_tag_of_timm_does_not_matter_for_export() -> None:
    backbone = BackboneOptions(name="resnet18.tv_in1k", pretrained=False)
    model = create_model("vfnet", num_classes=3, backbone=backbone, channels=64, tower_depth=1)
    assert export_state(model).keys() == small_state().keys()


def test_last_tower_convolutions_may_be_deformable(file: Callable[..., Path]) -> None:
    model = small_vfnet(deformable=True, tower_depth=2)
    offsets = [name for name in model.state_dict() if "conv_offset" in name]
    assert offsets == [
        f"head.{tower}_tower.1.conv.conv_offset.{part}" for tower in ("class", "box") for part in ("weight", "bias")
    ]
    assert all((model.state_dict()[name] == 0).all() for name in offsets)
    model.get_parameter("head.class_tower.1.conv.conv_offset.bias").data[5] = 0.5
    imported = import_checkpoint(file(export_state(model)), model.class_names)
    assert imported.options == VFNetOptions(channels=64, tower_depth=2, deformable=True)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert imported(image).logits.equal(model.eval()(image).logits)
    assert asdict(imported.options) == asdict(model.options)
