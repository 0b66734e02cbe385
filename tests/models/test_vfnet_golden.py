"""Parity with mmdetection 3.3.0's VFNet: raw outputs, losses, gradients, three training steps, detections."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.models import NOTHING, TinyResNet50
from tests.helpers.references import Golden, assert_same_detections, recordings, slice_of
from tightbox.assigners import atss, atss_anchors, level_points, per_point
from tightbox.boxes import encode_distances, pairwise_iou
from tightbox.models import VFNet
from tightbox.models.dense import inside_images
from tightbox.models.fpn import STRIDES
from tightbox.models.mmdet import load_published
from tightbox.models.mmdet.names import to_published
from tightbox.ops.star_conv import StarSampling
from tightbox.options import VFNetOptions
from tightbox.structures import Detections, ImageBatch, Targets

pytestmark = pytest.mark.usefixtures("device")

OPTIONS = VFNetOptions(channels=64, top_k_of="pairs")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """Float32 noise: our own gradients differ by up to 4e-3 between one thread and two, as sums are split elsewhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def golden() -> Golden:
    """What every test starts from, and the numbers of which all are kept."""
    return slice_of("vfnet_tiny_io_seed0")


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return slice_of("vfnet_tiny_weights_seed0").whole()


def build(weights: dict[str, Tensor], options: VFNetOptions = OPTIONS) -> VFNet:
    model = VFNet(backbone=TinyResNet50(), class_names=[str(i) for i in range(20)], options=options)
    load_published(model, weights, "the reference weights")
    return model.train()


def batch(golden: Golden, sizes: tuple[tuple[int, int], ...] = ((320, 416), (320, 416))) -> ImageBatch:
    return ImageBatch(golden["input/image"], sizes)


def targets(golden: Golden) -> list[Targets]:
    return [Targets.of(golden[f"gt/{i}/bboxes"], golden[f"gt/{i}/labels"]) for i in (0, 1)]


def assert_losses(losses: dict[str, Tensor], golden: Golden, prefix: str, rtol: float = 1e-4) -> None:
    pairs = {"class": "loss_cls", "initial_box": "loss_bbox", "box": "loss_bbox_rf"}
    for ours, theirs in pairs.items():
        expected = golden[f"{prefix}/{theirs}"].to(losses[ours].dtype)
        torch.testing.assert_close(losses[ours], expected, rtol=rtol, atol=1e-6)


def test_raw_outputs(golden: Golden, weights: dict[str, Tensor]) -> None:
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
            map_ = part.transpose(1, 2).unflatten(2, output.sizes[level])  # (B, channels, h, w), as published
            for file in recordings("vfnet_tiny_io_seed0"):
                theirs = file.recorded(f"raw/{name}_{level}")
                torch.testing.assert_close(theirs.of(map_), theirs.values, rtol=1e-3, atol=1e-3)


def test_features(golden: Golden, weights: dict[str, Tensor]) -> None:
    model = build(weights)
    with torch.no_grad():
        stages = model.backbone(golden["input/image"])
        levels = model.fpn(list(stages))
    ours = {f"backbone/C{i}": stage for i, stage in enumerate(stages, 3)}
    ours |= {f"neck/P{i}": level for i, level in enumerate(levels, 3)}
    assert len(ours) == 8
    for file in recordings("vfnet_tiny_feats_seed0"):
        for name, features in ours.items():
            theirs = file.recorded(name)
            torch.testing.assert_close(theirs.of(features), theirs.values, rtol=1e-3, atol=1e-3)


def gradients(model: VFNet, images: ImageBatch, truth: list[Targets], golden: Golden) -> dict[str, Tensor]:
    """Of the total loss for each parameter, by its published name."""
    losses = model.loss(images, truth)
    assert_losses(losses, golden, "loss")
    torch.stack(list(losses.values())).sum().backward()
    found = to_published({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert set(found) == set(json.loads(golden.metadata["grad_names"]))  # no other parameter has a gradient
    return found


@pytest.mark.complete
def test_losses_and_gradients_in_float32(golden: Golden, weights: dict[str, Tensor]) -> None:
    complete = recordings("vfnet_tiny_io_seed0")[1]
    ours = gradients(build(weights), batch(golden), targets(golden), golden)
    for i, name in enumerate(json.loads(golden.metadata["grad_names"])):
        torch.testing.assert_close(ours[name].norm(), golden["grad/norm"][i], rtol=1e-3, atol=1e-5)
        expected = complete[f"grad/full/{name}"]
        assert (ours[name] - expected).norm() <= 1e-3 * expected.norm() + 1e-6, name


def in_float64(model: VFNet, monkeypatch: pytest.MonkeyPatch) -> VFNet:
    """The same model without its own conversions to float32: it rounds alike on every machine."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    return model.double()


# A gradient jumps where a tap of the star crosses a pixel and where a ReLU's input crosses zero, and float32 rounds a
# few of them to another side on another machine: one unit in the last place of the image moves the gradient of some
# parameter by anything up to a fifth. In float64 nothing moves, and the taps are put where they were recorded. What is
# left are ReLUs that the recording itself rounded across zero: 4.7e-3 of a gradient at worst, and nothing behind them.
BEHIND_THE_TOWERS = ("vfnet_reg.", "vfnet_reg_refine", "vfnet_cls", "scales")


def test_losses_and_gradients_in_float64(
    golden: Golden, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = {stride: golden[f"raw/bbox_pred_{level}"].double() for level, stride in enumerate(STRIDES)}
    monkeypatch.setattr(
        "tightbox.models.vfnet.StarSampling",
        lambda distances, stride: StarSampling(distances + (recorded[stride] - distances).detach(), stride),
    )
    model = in_float64(build(weights), monkeypatch)
    images = ImageBatch(golden["input/image"].double(), ((320, 416), (320, 416)))
    ours = gradients(model, images, targets(golden), golden)
    files, behind = recordings("vfnet_tiny_io_seed0"), 0
    for i, name in enumerate(json.loads(golden.metadata["grad_names"])):
        last = name.startswith(tuple(f"bbox_head.{part}" for part in BEHIND_THE_TOWERS)) and "reg_conv" not in name
        behind += last
        rtol = 1e-3 if last else 5e-3
        torch.testing.assert_close(ours[name].norm(), golden["grad/norm"][i].double(), rtol=rtol, atol=1e-5)
        for file in files:
            expected = file.recorded(f"grad/full/{name}")
            difference = expected.of(ours[name]) - expected.values
            assert difference.norm() <= rtol * expected.values.norm() + 1e-6, (file, name)
    assert behind == 18  # three convolutions with biases, two stars without, and a scale of each branch and level


def train(model: VFNet, images: ImageBatch, golden: Golden, tolerances: tuple[float, ...]) -> None:
    """SGD on one batch: the losses before each step."""
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.01, 0.9, weight_decay=1e-4)
    for step, rtol in enumerate(tolerances):
        losses = model.loss(images, targets(golden))
        assert_losses(losses, golden, f"sgd/step{step}", rtol)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()


@pytest.mark.complete
def test_three_training_steps_in_float32(golden: Golden, weights: dict[str, Tensor]) -> None:
    # The steps amplify noise: one part in a million on the input moves the losses of the third by up to 2e-2.
    train(build(weights), batch(golden), golden, (1e-4, 1e-3, 2e-2))


def test_two_training_steps_in_float64(
    golden: Golden, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImageBatch(golden["input/image"].double(), ((320, 416), (320, 416)))
    train(in_float64(build(weights), monkeypatch), images, golden, (1e-4, 1e-3))


@pytest.mark.parametrize(("prefix", "second"), [("targets", (320, 416)), ("pad/targets", (270, 350))])
def test_targets(golden: Golden, prefix: str, second: tuple[int, int]) -> None:
    """What each point of each image learns, level by level; the second image fills its place or is padded."""
    sizes = [(40, 52), (20, 26), (10, 13), (5, 7), (3, 4)]
    counts = [height * width for height, width in sizes]
    points = level_points(sizes, STRIDES)
    anchors = atss_anchors(points, per_point(points.new_tensor(STRIDES), sizes))
    truth = targets(golden)
    if prefix == "pad/targets":
        truth[1] = Targets.of(golden["pad/gt/1/bboxes"], golden["pad/gt/1/labels"])
    inside = inside_images(sizes, STRIDES, torch.tensor([(320, 416), second]))
    matched = atss(anchors, counts, truth, valid=inside)

    def level_by_level(parts: list[Tensor] | Tensor) -> Tensor:
        return torch.cat([torch.cat(level) for level in zip(*(part.split(counts) for part in parts), strict=True)])

    labels = [
        torch.where(m >= 0, t.labels[m.clamp(min=0)], torch.tensor(20)) for t, m in zip(truth, matched, strict=True)
    ]
    assert torch.equal(level_by_level(labels), torch.cat([golden[f"{prefix}/labels_{level}"] for level in range(5)]))
    assert torch.equal(level_by_level(inside).float(), golden[f"{prefix}/label_weights"])
    if prefix == "targets":
        boxes = level_by_level([t.boxes[m.clamp(min=0)] for t, m in zip(truth, matched, strict=True)])
        positive = level_by_level(labels) < 20
        assert positive.sum() == 68
        found = encode_distances(level_by_level([points, points])[positive], boxes[positive])
        torch.testing.assert_close(found, golden["targets/positives"])


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
    prefix: str, changes: dict[str, Any], golden: Golden, weights: dict[str, Tensor]
) -> None:
    model = build(weights, replace(OPTIONS, **changes))
    assert_losses(model.loss(batch(golden), targets(golden)), golden, prefix)


@pytest.mark.parametrize("case", ["loss_gt1_empty", "loss_all_empty"])
def test_losses_of_images_without_objects(case: str, golden: Golden, weights: dict[str, Tensor]) -> None:
    truth = [targets(golden)[0] if case == "loss_gt1_empty" else NOTHING, NOTHING]
    losses = build(weights).loss(batch(golden), truth)
    assert_losses(losses, golden, case)
    torch.stack(list(losses.values())).sum().backward()  # zero box losses still have a gradient path


def test_detections(golden: Golden, weights: dict[str, Tensor]) -> None:
    for i, ours in enumerate(build(weights).eval().detect(batch(golden))):
        assert_same_detections(ours, golden, f"pred/{i}")


def test_candidates_before_suppression(golden: Golden, weights: dict[str, Tensor]) -> None:
    for i, ours in enumerate(build(weights).eval().candidates(batch(golden))):
        scores, labels = ours.class_scores.max(dim=1)
        theirs = golden[f"pred_before_nms/{i}/scores"]
        assert len(scores) == len(theirs)
        torch.testing.assert_close(scores.sort().values, theirs.sort().values, rtol=0, atol=2e-3)
        assert pairwise_iou(ours.boxes[:50], golden[f"pred_before_nms/{i}/bboxes"]).amax(1).min() > 0.999
        assert labels.bincount(minlength=20).sum() == len(theirs)


def test_padded_batch(golden: Golden, weights: dict[str, Tensor]) -> None:
    metas = json.loads(golden.metadata["pad_metas"])
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
