from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.helpers.exported import CALIBRATION, SIZES, assert_same, disturb
from tests.helpers.models import image_batch, objects, tiny_iou_net, tiny_model, tiny_retinanet, tiny_unitbox
from tightbox.export.tensors import TensorDetector, guided_by_iou
from tightbox.models import Detector, UnitBox, VFNet
from tightbox.structures import Candidates, Detections, ImageBatch
from tightbox.suppress import iou_guided_nms, suppress

Make = Callable[[], Detector]
MODELS: dict[str, Make] = {
    "VFNet": tiny_model,
    "VFNet of pairs": lambda: tiny_model(top_k_of="pairs", top_k=50),
    "VFNet of few": lambda: tiny_model(top_k=3),
    "deformable VFNet, FCOS's points": lambda: tiny_model(deformable=True, assigner="fcos"),
    "baseline": lambda: tiny_model(varifocal=False, centerness=True),
    "IoU-aware RetinaNet": tiny_retinanet,
    "RetinaNet": lambda: tiny_retinanet(iou_head=False),
    "UnitBox": lambda: tiny_unitbox(2, dense_stride=8, top_k=40),
    "IoU-Net": lambda: tiny_iou_net(refine_steps=0),
    "IoU-Net of few": lambda: tiny_iou_net(refine_steps=0, top_k=7, max_detections=5, nms_iou=0.2),
    "VFNet, score voting": lambda: tiny_model(suppress="voting"),
    "IoU-Net, score x IoU": lambda: tiny_iou_net(refine_steps=0, rank_by_iou=True, iou_loss="bce"),
    "IoU-Net, greedy, RoIAlign": lambda: tiny_iou_net(refine_steps=0, suppress="greedy", pooling="roi_align"),
    "FPN": lambda: tiny_iou_net(iou_head=False),
}


def eager(model: Detector, batch: ImageBatch) -> list[Detections]:
    if not isinstance(model, UnitBox):
        return model.detect(batch)
    with torch.no_grad():  # the dense reading
        return [model.select(candidates) for candidates in model.candidates(batch)]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_same_as_image_by_image(make: Make) -> None:
    model = disturb(make())
    model.calibration = CALIBRATION
    for sizes in SIZES:
        batch = image_batch(*sizes)
        with torch.no_grad():
            outputs = TensorDetector(model)(batch.pixels, torch.tensor(batch.sizes))
        assert_same([value.numpy() for value in outputs], eager(model, batch))


def test_what_lies_outside_an_image_does_not_count() -> None:
    model = TensorDetector(disturb(tiny_model()))
    pixels, sizes = torch.rand(1, 3, 64, 96), torch.tensor([[50, 70]])
    changed = pixels.clone()
    changed[..., 50:, :] = torch.nan
    changed[..., 70:] = 9
    with torch.no_grad():
        for a, b in zip(model(pixels, sizes), model(changed, sizes), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_nothing_found() -> None:
    model = tiny_model().eval()
    model.options = replace(model.options, score_threshold=0.9)
    outputs = TensorDetector(model)(torch.rand(2, 3, 32, 32), torch.tensor([[32, 32], [1, 1]]))
    assert outputs.counts.tolist() == [0, 0]
    assert (outputs.labels == -1).all()
    assert outputs.ious.isnan().all()


def test_scores_that_are_not_numbers_are_not_detected() -> None:
    model = tiny_model().eval()
    assert isinstance(model, VFNet)
    assert model.head.classes.bias is not None
    with torch.no_grad():
        model.head.classes.bias[0] = torch.nan
        outputs = TensorDetector(model)(torch.rand(1, 3, 64, 64), torch.tensor([[64, 64]]))
    assert outputs.counts[0] > 0
    assert set(outputs.labels[0].tolist()) <= {1, -1}


def test_suppression_by_hand() -> None:
    """The second box covers 0.9 of the first, the third is alone; of class 1 only two are above 0.1."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]]])
    scores = torch.tensor([[[0.6, 0.8, 0.7], [0.1, 0.3, 0.2]]])
    kept = suppress(boxes, scores, 0.6, 0.1, 100)
    torch.testing.assert_close(kept, torch.tensor([[[0.1, 0.8, 0.7], [0.1, 0.3, 0.2]]]))
    assert (suppress(boxes, scores, 1.0, 0.1, 100) == scores).all()  # no IoU is above 1


@pytest.mark.parametrize("threshold", [0.1, 0.5, 1.0])
def test_iou_guided_suppression_in_fixed_shapes(threshold: float) -> None:
    corners = torch.rand(3, 60, 2) * 20
    boxes = torch.cat([corners, corners + 5 + 10 * torch.rand(3, 60, 2)], dim=2)
    scores = torch.rand(3, 60).sort(dim=1, descending=True).values
    own = torch.nn.functional.one_hot(torch.randint(3, (3, 60)), 3) * scores[..., None]
    ious = (torch.rand(3, 60) * 20).round() / 20  # of equal ones the higher score goes first
    candidates = Candidates(boxes, own, ious)
    kept = guided_by_iou(candidates, torch.where(own > 0.2, own, 0).mT, threshold, 60)
    for i in range(3):
        expected = iou_guided_nms(candidates[i], own[i], threshold, 0.2)
        label, row = (kept[i] > 0).nonzero().unbind(1)
        order = kept[i, label, row].argsort(descending=True)
        assert kept[i, label, row][order].equal(expected.scores)
        assert label[order].equal(expected.labels)
        assert boxes[i, row[order]].equal(expected.boxes)


def test_networks_compile_without_a_graph_break() -> None:
    """For `detect` and for `loss`, whose other parts depend on what is in the images."""
    images, targets = [torch.rand(3, 64, 96), torch.rand(3, 50, 61)], [objects((4, 4, 40, 36)), objects((8, 8, 30, 30))]
    for make in (tiny_model, tiny_retinanet, tiny_unitbox, tiny_iou_net):
        model = make()
        for training in (False, True):
            model.train(training)
            torch.manual_seed(0)
            plain = model.loss(images, targets) if training else model.detect(images)
            model.forward = torch.compile(type(model).forward, backend="eager", fullgraph=True).__get__(model)
            torch.manual_seed(0)
            fast = model.loss(images, targets) if training else model.detect(images)
            del model.forward
            if training:
                torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)
            else:
                assert [len(found) for found in fast] == [len(found) for found in plain]


@pytest.mark.parametrize("make", [MODELS["VFNet"], MODELS["IoU-aware RetinaNet"]], ids=["VFNet", "RetinaNet"])
def test_compiles_without_a_graph_break(make: Make) -> None:
    model = TensorDetector(disturb(make()))
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # a break would be an error
    images, sizes = torch.rand(2, 3, 64, 96), torch.tensor([[64, 96], [50, 61]])
    with torch.no_grad():
        for a, b in zip(model(images, sizes), compiled(images, sizes), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4, equal_nan=True)
