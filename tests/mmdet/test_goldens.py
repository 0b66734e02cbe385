"""Parity of imported files with mmdetection 3.3.0 for four published variants, from the file to the boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import resnet50

import tightbox
from tests.mmdet.published import VARIANTS, layout, weights
from tightbox.models import Backbone, VFNet
from tightbox.models.mmdet import export_state, import_checkpoint
from tightbox.models.mmdet.names import to_published
from tightbox.models.mmdet.variants import recognise
from tightbox.structures import Detections, ImageBatch


def write(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save({"meta": {"mmdet_version": "2.6.0", "epoch": 12}, "state_dict": state}, path)
    return path


def assert_raw_outputs(model: VFNet, golden: dict[str, Tensor]) -> None:
    """The channel means of the stages and the head's three outputs."""
    stages: list[Tensor] = []
    hook = model.backbone.body.layer1.register_forward_hook(lambda *given: stages.append(given[2]))
    with torch.no_grad():
        stages += model.backbone(golden["input/image"])
        output = model(golden["input/image"])
    hook.remove()
    for name, stage in zip(("C2", "C3", "C4", "C5"), stages, strict=False):
        torch.testing.assert_close(stage.mean((2, 3)), golden[f"backbone/{name}_mean"], rtol=1e-3, atol=1e-3)
    assert output.sizes == [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]
    counts = [height * width for height, width in output.sizes]
    every = {0: slice(None, None, 8), 1: slice(None, None, 8)}  # every 8th class of the two largest maps is stored
    for name, ours in {
        "cls_score": output.logits,
        "bbox_pred": output.initial,
        "bbox_pred_refine": output.distances,
    }.items():
        for level, part in enumerate(ours.split(counts, dim=1)):
            theirs = golden[f"raw/{name}_{level}"].permute(0, 2, 3, 1).flatten(1, 2)
            part = part[..., every.get(level, slice(None))] if name == "cls_score" else part
            torch.testing.assert_close(part, theirs, rtol=1e-3, atol=1e-3)


def detect(model: VFNet, golden: dict[str, Tensor], order: str) -> Detections:
    model.options = replace(model.options, top_k_of=order)
    # The reference image is normalised already; floating point takes the normalisation back well enough.
    pixels = golden["input/image"] * model.backbone.std + model.backbone.mean
    return model.detect(ImageBatch(pixels, ((256, 320),)))[0]


def assert_same_detections(ours: Detections, golden: dict[str, Tensor]) -> None:
    """Matched as sets, since float noise swaps the order of nearly equal scores."""
    boxes, scores, labels = (golden[f"pred/0/{name}"] for name in ("bboxes", "scores", "labels"))
    assert len(ours) == len(boxes) == 100
    near = (ours.boxes[:, None] - boxes).abs().amax(-1) < 0.1
    near &= ((ours.scores[:, None] - scores).abs() < 2e-3) & (ours.labels[:, None] == labels)
    assert near.any(0).all()
    assert near.any(1).all()


@pytest.mark.parametrize("variant", ["r50", "r50_mdconv", "x101_32x4d", "r2_101_mdconv"])
def test_published_variant(shared: Path, tmp_path: Path, variant: str) -> None:
    golden = load_file(shared / "goldens" / f"vfnet_{variant}_names0.safetensors")
    state = weights(shared, variant, seed=0)
    model = import_checkpoint(write(tmp_path / "published.pth", state))
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == layout(shared, variant)["parameters"]
    assert_raw_outputs(model, golden)
    for order in ("pairs", "locations"):  # mmdetection 3.3.0 ranks pairs; here, the 100 best boxes are the same
        assert_same_detections(detect(model, golden, order), golden)
    exported = export_state(model)
    assert exported.keys() == state.keys()
    assert all(exported[name].equal(value) and exported[name].dtype == value.dtype for name, value in state.items())
    again = tightbox.load(model.save(tmp_path / "model"))
    before, after = detect(model, golden, "pairs"), detect(again, golden, "pairs")
    assert before.boxes.equal(after.boxes)
    assert before.scores.equal(after.scores)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_published_layout_fits_exactly(shared: Path, variant: str) -> None:
    known = layout(shared, variant)
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
def test_other_weights_come_and_go_too(shared: Path, tmp_path: Path, variant: str) -> None:
    state = weights(shared, variant, seed=1)
    model = import_checkpoint(write(tmp_path / "other.pth", state))
    exported = export_state(model)
    assert exported.keys() == state.keys()
    assert all(exported[name].equal(value) for name, value in state.items())
    with torch.no_grad():
        found = model.detect([torch.rand(3, 96, 128)])[0]
    assert len(found) > 0
    assert found.boxes.isfinite().all()


def test_resnet_50_computes_what_torchvisions_does(shared: Path, tmp_path: Path) -> None:
    """An oracle for any weights: torchvision names ResNet-50's parameters as mmdetection does."""
    state = weights(shared, "r50", seed=2)
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
def test_images_are_normalised_as_published(shared: Path, variant: str) -> None:
    shapes = layout(shared, variant)["shapes"]
    with torch.device("meta"):
        found = recognise({name: torch.empty(shape) for name, shape in shapes.items()}, variant)
    backbone = Backbone(replace(found.backbone, deformable=False))
    torch.testing.assert_close(backbone.mean.flatten() * 255, torch.tensor([123.675, 116.28, 103.53]))
    torch.testing.assert_close(backbone.std.flatten() * 255, torch.tensor([58.395, 57.12, 57.375]))
