"""Parity with mmdetection 3.3.0's VFNet: raw outputs, losses, gradients, three training steps, detections."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.models.mmdet import TinyResNet50
from tightbox.boxes import pairwise_iou
from tightbox.models import VFNet
from tightbox.models.mmdet import load_published
from tightbox.models.mmdet.names import to_published
from tightbox.options import VFNetOptions
from tightbox.structures import Detections, ImageBatch, Targets

OPTIONS = VFNetOptions(channels=64, top_k_of="pairs")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """Float32 noise: our own gradients differ by up to 4e-3 between one thread and two, as sums are split elsewhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def golden(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "goldens" / "vfnet_tiny_io_seed0.safetensors")


@pytest.fixture
def metadata(shared: Path) -> dict[str, str]:
    with safe_open(shared / "goldens" / "vfnet_tiny_io_seed0.safetensors", "pt") as file:
        return file.metadata()


@pytest.fixture
def weights(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "goldens" / "vfnet_tiny_weights_seed0.safetensors")


def build(weights: dict[str, Tensor], options: VFNetOptions = OPTIONS) -> VFNet:
    model = VFNet(backbone=TinyResNet50(), class_names=[str(i) for i in range(20)], options=options)
    load_published(model, weights, "the reference weights")
    return model.train()


def batch(golden: dict[str, Tensor], sizes: tuple[tuple[int, int], ...] = ((320, 416), (320, 416))) -> ImageBatch:
    return ImageBatch(golden["input/image"], sizes)


def targets(golden: dict[str, Tensor]) -> list[Targets]:
    return [Targets.of(golden[f"gt/{i}/bboxes"], golden[f"gt/{i}/labels"]) for i in (0, 1)]


NONE = Targets.of(torch.zeros(0, 4), torch.zeros(0))


def assert_losses(losses: dict[str, Tensor], golden: dict[str, Tensor], prefix: str, rtol: float = 1e-4) -> None:
    pairs = {"class": "loss_cls", "initial_box": "loss_bbox", "box": "loss_bbox_rf"}
    for ours, theirs in pairs.items():
        torch.testing.assert_close(losses[ours], golden[f"{prefix}/{theirs}"], rtol=rtol, atol=1e-6)


def assert_same_detections(ours: Detections, golden: dict[str, Tensor], prefix: str) -> None:
    """Matched as sets, since float noise swaps the order of nearly equal scores."""
    boxes, scores, labels = (golden[f"{prefix}/{name}"] for name in ("bboxes", "scores", "labels"))
    assert len(ours) == len(boxes)
    near = (ours.boxes[:, None] - boxes).abs().amax(-1) < 0.1
    near &= ((ours.scores[:, None] - scores).abs() < 2e-3) & (ours.labels[:, None] == labels)
    assert near.any(0).all()
    assert near.any(1).all()


def test_raw_outputs(golden: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    model = build(weights)
    with torch.no_grad():
        output = model(golden["input/image"])
    counts = [h * w for h, w in output.sizes]
    assert output.sizes == [(40, 52), (20, 26), (10, 13), (5, 7), (3, 4)]
    for name, ours in {
        "cls_score": output.logits,
        "bbox_pred": output.initial,
        "bbox_pred_refine": output.distances,
    }.items():
        for level, part in enumerate(ours.split(counts, dim=1)):
            theirs = golden[f"raw/{name}_{level}"].permute(0, 2, 3, 1).flatten(1, 2)
            torch.testing.assert_close(part, theirs, rtol=1e-3, atol=1e-3)


def test_features(shared: Path, golden: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    features = load_file(shared / "goldens" / "vfnet_tiny_feats_seed0.safetensors")
    model = build(weights)
    with torch.no_grad():
        backbone = model.backbone(golden["input/image"])
        levels = model.fpn(list(backbone))
    for name, ours in zip(("C3", "C4", "C5"), model.backbone(golden["input/image"]), strict=True):
        torch.testing.assert_close(ours, features[f"backbone/{name}"], rtol=1e-3, atol=1e-3)
    for name, ours in zip(("P3", "P4", "P5", "P6", "P7"), levels, strict=True):
        torch.testing.assert_close(ours, features[f"neck/{name}"], rtol=1e-3, atol=1e-3)


def test_losses_and_gradients(golden: dict[str, Tensor], weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    model = build(weights)
    losses = model.loss(batch(golden), targets(golden))
    assert_losses(losses, golden, "loss")
    sum(losses.values()).backward()
    ours = to_published({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    names = json.loads(metadata["grad_names"])
    assert set(ours) == set(names)  # no other parameter has a gradient
    for i, name in enumerate(names):
        torch.testing.assert_close(ours[name].norm(), golden["grad/norm"][i], rtol=1e-3, atol=1e-5)
        expected = golden[f"grad/full/{name}"]
        assert (ours[name] - expected).norm() <= 1e-3 * expected.norm() + 1e-6, name


def test_three_training_steps(golden: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    model = build(weights)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.01, 0.9, weight_decay=1e-4)
    # The steps amplify noise: one part in a million on the input moves the losses of the third by up to 2e-2.
    for step, rtol in enumerate((1e-4, 1e-3, 2e-2)):
        losses = model.loss(batch(golden), targets(golden))
        assert_losses(losses, golden, f"sgd/step{step}", rtol)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("prefix", "changes"),
    [
        ("loss_atss_focal", {"varifocal": False}),
        ("loss_fcos_vfl", {"assigner": "fcos"}),
        ("loss_fcos_center", {"assigner": "fcos", "center_sampling": True}),
        ("loss_vfl_not_iou_weighted", {"iou_weighted": False}),
        ("loss_norm_stride", {"distance_unit": "stride"}),
    ],
)
def test_losses_of_the_other_options(
    prefix: str, changes: dict[str, object], golden: dict[str, Tensor], weights: dict[str, Tensor]
) -> None:
    model = build(weights, replace(OPTIONS, **changes))
    assert_losses(model.loss(batch(golden), targets(golden)), golden, prefix)


@pytest.mark.parametrize("case", ["loss_gt1_empty", "loss_all_empty"])
def test_losses_of_images_without_objects(case: str, golden: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    truth = [targets(golden)[0] if case == "loss_gt1_empty" else NONE, NONE]
    losses = build(weights).loss(batch(golden), truth)
    assert_losses(losses, golden, case)
    sum(losses.values()).backward()  # zero box losses still have a gradient path


def test_detections(golden: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    for i, ours in enumerate(build(weights).eval().detect(batch(golden))):
        assert_same_detections(ours, golden, f"pred/{i}")


def test_candidates_before_suppression(golden: dict[str, Tensor], weights: dict[str, Tensor]) -> None:
    for i, ours in enumerate(build(weights).eval().candidates(batch(golden))):
        scores, labels = ours.class_scores.max(dim=1)
        theirs = golden[f"pred_before_nms/{i}/scores"]
        assert len(scores) == len(theirs)
        torch.testing.assert_close(scores.sort().values, theirs.sort().values, rtol=0, atol=2e-3)
        assert pairwise_iou(ours.boxes[:50], golden[f"pred_before_nms/{i}/bboxes"]).amax(1).min() > 0.999
        assert labels.bincount(minlength=20).sum() == len(theirs)


def test_padded_batch(golden: dict[str, Tensor], weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    metas = json.loads(metadata["pad_metas"])
    sizes = tuple(tuple(meta["img_shape"]) for meta in metas)
    images = batch(golden, sizes)
    truth = [targets(golden)[0], Targets.of(golden["pad/gt/1/bboxes"], golden["pad/gt/1/labels"])]
    model = build(weights)
    assert_losses(model.loss(images, truth), golden, "pad/loss")
    for i, ours in enumerate(model.eval().detect(images)):
        assert_same_detections(ours, golden, f"pad/pred_rescale0/{i}")
        factor = torch.tensor(metas[i]["scale_factor"]).repeat(2)
        rescaled = Detections(ours.boxes / factor, ours.scores, ours.labels)
        assert_same_detections(rescaled, golden, f"pad/pred_rescale1/{i}")
