"""Parity of imported files with mmdetection 3.3.0 for four published variants, from the file to the boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet50

import tightbox
from tests.helpers.references import (
    VARIANTS,
    assert_same_detections,
    layout,
    published_weights,
    recordings,
    slice_of,
)
from tightbox.models import Backbone, VFNet
from tightbox.models.mmdet import export_state, import_checkpoint
from tightbox.models.mmdet.names import to_published
from tightbox.models.mmdet.variants import recognise
from tightbox.structures import Detections, ImageBatch


def write(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"meta": {"mmdet_version": "2.6.0", "epoch": 12}, "state_dict": state}, path)
    return path


def image() -> Tensor:
    """What all four variants were shown; kept with the first."""
    return slice_of("vfnet_r50_names0")["input/image"]


def assert_raw_outputs(model: VFNet, variant: str) -> None:
    """The channel means of the stages and the head's three outputs."""
    stages: list[Tensor] = []
    hook = model.backbone.body.layer1.register_forward_hook(lambda *given: stages.append(given[2]))
    with torch.no_grad():
        stages += model.backbone(image())
        output = model(image())
    hook.remove()
    assert output.sizes == [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]
    counts = [height * width for height, width in output.sizes]
    for golden in recordings(f"vfnet_{variant}_names0"):
        assert "input/image" not in golden or golden["input/image"].equal(image())
        for name, stage in zip(("C2", "C3", "C4", "C5"), stages, strict=False):
            torch.testing.assert_close(stage.mean((2, 3)), golden[f"backbone/{name}_mean"], rtol=1e-3, atol=1e-3)
        for name, ours in {
            "cls_score": output.logits,
            "bbox_pred": output.initial,
            "bbox_pred_refine": output.distances,
        }.items():
            for level, part in enumerate(ours.split(counts, dim=1)):
                map_ = part.transpose(1, 2).unflatten(2, output.sizes[level])  # (1, channels, h, w), as published
                if name == "cls_score" and level < 2:
                    map_ = map_[:, ::8]  # every 8th class of the two largest maps was recorded
                theirs = golden.recorded(f"raw/{name}_{level}")
                torch.testing.assert_close(theirs.of(map_), theirs.values, rtol=1e-3, atol=1e-3)


def detect(model: VFNet, order: str) -> Detections:
    model.options = replace(model.options, top_k_of=order)
    # The reference image is normalised already; floating point takes the normalisation back well enough.
    pixels = image() * model.backbone.std + model.backbone.mean
    return model.detect(ImageBatch(pixels, ((256, 320),)))[0]


@pytest.mark.parametrize("variant", ["r50", "r50_mdconv", "x101_32x4d", "r2_101_mdconv"])
def test_published_variant(tmp_path: Path, variant: str) -> None:
    state = published_weights(variant, seed=0)
    model = import_checkpoint(write(tmp_path / "published.pth", state))
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == layout(variant)["parameters"]
    assert_raw_outputs(model, variant)
    for order in ("pairs", "locations"):  # mmdetection 3.3.0 ranks pairs; here, the 100 best boxes are the same
        found = detect(model, order)
        assert len(found) == 100
        assert_same_detections(found, slice_of(f"vfnet_{variant}_names0"), "pred/0")
    exported = export_state(model)
    assert exported.keys() == state.keys()
    assert all(exported[name].equal(value) and exported[name].dtype == value.dtype for name, value in state.items())
    again = tightbox.load(model.save(tmp_path / "model"))
    assert isinstance(again, VFNet)
    before, after = detect(model, "pairs"), detect(again, "pairs")
    assert before.boxes.equal(after.boxes)
    assert before.scores.equal(after.scores)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_published_layout_fits_exactly(variant: str) -> None:
    known = layout(variant)
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in known["shapes"].items()}
        found = recognise(tensors, variant)
        names = [str(i) for i in range(found.num_classes)]
        model = VFNet(backbone=Backbone(found.backbone), class_names=names, options=found.options)
    assert found.num_classes == 80
    assert (found.backbone.frozen_stages, found.backbone.frozen_norm) == (1, True)
    assert found.backbone.deformable == found.options.deformable == ("mdconv" in variant)
    published = to_published(model.state_dict())
    assert {name: list(tensor.shape) for name, tensor in published.items()} == known["shapes"]
    assert sum(p.numel() for p in model.parameters()) == known["parameters"]
    assert recognise(published, variant) == found


@pytest.mark.parametrize("variant", ["r50", "r2_101_mdconv"])
def test_other_weights_come_and_go_too(tmp_path: Path, variant: str) -> None:
    state = published_weights(variant, seed=1)
    model = import_checkpoint(write(tmp_path / "other.pth", state))
    exported = export_state(model)
    assert exported.keys() == state.keys()
    assert all(exported[name].equal(value) for name, value in state.items())
    with torch.no_grad():
        found = model.detect([torch.rand(3, 96, 128)])[0]
    assert len(found) > 0
    assert found.boxes.isfinite().all()


def test_resnet_50_computes_what_torchvisions_does(tmp_path: Path) -> None:
    """An oracle for any weights: torchvision names ResNet-50's parameters as mmdetection does."""
    state = published_weights("r50", seed=2)
    theirs = resnet50().eval()
    own = {name.removeprefix("backbone."): v for name, v in state.items() if name.startswith("backbone.")}
    assert theirs.load_state_dict(own, strict=False).missing_keys == ["fc.weight", "fc.bias"]
    model = import_checkpoint(write(tmp_path / "r50.pth", state))
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        features = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x)))))
        for stage, ours in zip((theirs.layer2, theirs.layer3, theirs.layer4), model.backbone(x), strict=True):
            features = stage(features)
            torch.testing.assert_close(ours, features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_are_normalised_as_published(variant: str) -> None:
    shapes = layout(variant)["shapes"]
    with torch.device("meta"):
        found = recognise({name: torch.empty(shape) for name, shape in shapes.items()}, variant)
    backbone = Backbone(replace(found.backbone, deformable=False))
    torch.testing.assert_close(backbone.mean.flatten() * 255, torch.tensor([123.675, 116.28, 103.53]))
    torch.testing.assert_close(backbone.std.flatten() * 255, torch.tensor([58.395, 57.12, 57.375]))
