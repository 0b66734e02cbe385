"""Detectors on a GPU against the same on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from tests.helpers.models import image_batch, objects, tiny_iou_net, tiny_model, tiny_retinanet, tiny_unitbox
from tightbox.models import Detector
from tightbox.models.captured import captured

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _all_digits() -> Iterator[None]:
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def losses(model: Detector, device: str, *, half: bool = False) -> dict[str, float]:
    """The terms of the loss of one batch, and the norm of the gradient of their sum."""
    torch.manual_seed(0)
    images, targets = image_batch((64, 50), (40, 64)), [objects((4.0, 4, 44, 60), (10, 5, 30, 20)), objects()]
    targets = [replace(target, labels=target.labels % len(model.class_names)) for target in targets]
    model = copy.deepcopy(model).train().to(device)
    with torch.autocast(device, torch.bfloat16, enabled=half):
        terms = model.loss(images.to(device), [target.to(device) for target in targets])
    torch.autograd.backward(torch.stack(list(terms.values())).sum())
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return {name: value.item() for name, value in terms.items()} | {
        "gradient": float(torch.nn.utils.get_total_norm(gradients))
    }


# IoU-Net draws anchors and boxes at random, and a GPU draws others.
@pytest.mark.parametrize("make", [tiny_model, tiny_retinanet, tiny_unitbox])
def test_losses_and_gradients_are_the_cpus(make: Callable[[], Detector]) -> None:
    model = make()
    expected = losses(model, "cpu")
    assert losses(model, "cuda") == pytest.approx(expected, rel=1e-3, abs=1e-5)
    # Three significant digits in each of a few dozen layers, whose errors are independent.
    assert losses(model, "cuda", half=True) == pytest.approx(expected, rel=0.05, abs=1e-3)


@pytest.mark.parametrize("make", [tiny_model, tiny_retinanet])
@pytest.mark.parametrize("half", [False, True])
def test_replayed_detections_are_the_same(make: Callable[[], Detector], half: bool) -> None:
    model = make().eval().to("cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        for number in range(6):
            images = image_batch((64, 50), (40, 64) if number % 2 else (64, 64)).to("cuda")  # of one padded shape
            if number == 3:  # the same graph with other weights
                model.head.classes.bias.data += 0.5  # type: ignore[operator, union-attr]
            expected = model.detect(images)
            for found, right in zip(model.detect(images, replay=True), expected, strict=True):
                assert abs(len(found) - len(right)) <= 2 * half
                most = min(len(found), len(right), 10)
                # cuDNN may choose other kernels for a graph.
                torch.testing.assert_close(
                    found.scores[:most], right.scores[:most], rtol=0, atol=0.02 if half else 1e-4
                )


def test_a_model_that_moves_forgets_its_graphs() -> None:
    model, images = tiny_model().eval().to("cuda"), image_batch((64, 64)).to("cuda")
    for _ in range(3):
        model.detect(images, replay=True)
    assert captured(model)._graphs
    model.to("cpu")
    assert not captured(model)._graphs
    assert len(copy.deepcopy(model).to("cuda").detect(images, replay=True)) == 1


def certain_unitbox() -> Detector:
    """One that takes all pixels for an object's: of random weights, it would find nothing."""
    return tiny_unitbox(threshold=0.005, score_threshold=0.0)


@pytest.mark.parametrize("make", [tiny_model, tiny_retinanet, tiny_iou_net, certain_unitbox])
def test_detections_are_the_cpus(make: Callable[[], Detector]) -> None:
    model, images = make().eval(), image_batch((64, 50), (40, 64))
    expected = model.detect(images)
    assert all(len(right) for right in expected)
    for found, right in zip(copy.deepcopy(model).to("cuda").detect(images.to("cuda")), expected, strict=True):
        assert len(found) == len(right)
        # As sets: scores that are equal but for rounding change places. Boxes to 0.02 px, and scores to 0.0002.
        ours, theirs = (
            torch.cat([found.boxes, 100 * found.scores[:, None], 100 * found.labels[:, None]], dim=1)
            for found in (found.to("cpu"), right)
        )
        distances = torch.cdist(ours, theirs, p=torch.inf)
        assert (distances.amin(dim=0) < 0.02).all()
        assert (distances.amin(dim=1) < 0.02).all()
