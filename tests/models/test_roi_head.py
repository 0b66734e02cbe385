from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tightbox.errors import UserError
from tightbox.models import roi_head
from tightbox.models.roi_head import BoxHead, IoUHead, Pyramid, decode, encode, image_of, pyramid_level

pytestmark = pytest.mark.usefixtures("device")


def constant_pyramid(pooling: str = "prroi") -> Pyramid:
    """Two images; every value of a map is ten times its image plus its level."""
    levels = [
        torch.stack([torch.full((1, 512 // stride, 512 // stride), 10.0 * image + level) for image in range(2)])
        for level, stride in enumerate((4, 8, 16, 32))
    ]
    return Pyramid(levels, torch.tensor([[512, 512]] * 2), pooling)  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["prroi", "roi_align"])
def test_each_box_pools_from_the_level_of_its_size_and_from_its_own_image(pooling: str) -> None:
    # FPN, eq. 1: level floor(4 + log2(sqrt(area) / 224)), of which 2 is the first here, and 5 the last.
    small, middle, large = [64.0, 64, 164, 164], [64.0, 64, 264, 264], [40.0, 40, 470, 470]  # sides 100, 200, 430
    boxes = [torch.tensor([large, small]), torch.tensor([middle, small, large])]
    pooled = constant_pyramid(pooling).pool_at(torch.cat(boxes), image_of(boxes))
    assert pooled.shape == (5, 1, 7, 7)
    expected = torch.tensor([2.0, 0.0, 11.0, 10.0, 12.0])
    torch.testing.assert_close(pooled, expected[:, None, None, None].expand_as(pooled))


def test_no_boxes_pool_nothing() -> None:
    assert constant_pyramid().pool_at(torch.zeros(0, 4), torch.zeros(0)).shape == (0, 1, 7, 7)


@pytest.mark.parametrize(
    ("side", "level"),
    [
        (0.0, 0),
        (111.0, 0),
        (112.0, 1),  # half of 224 is one level down from that of 224
        (224.0, 2),
        (447.0, 2),
        (448.0, 3),
        (5000.0, 3),  # the last level that boxes pool from
    ],
)
def test_pyramid_level(side: float, level: int) -> None:
    assert pyramid_level(torch.tensor([[3.0, 5.0, 3 + side, 5 + side]])).tolist() == [level]


def test_decode_undoes_encode_and_its_unit_is_a_tenth_of_the_box() -> None:
    rois = torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 45.0, 25.0]])
    boxes = torch.tensor([[1.0, 0.0, 11.0, 20.0], [0.0, 7.0, 50.0, 20.0]])
    torch.testing.assert_close(decode(rois, encode(rois, boxes)), boxes)
    # One pixel of a width of ten is 0.1, which the head says as 1.
    torch.testing.assert_close(encode(rois[0], boxes[0]), torch.tensor([1.0, 0.0, 0.0, 0.0]))


def test_box_head_shapes() -> None:
    logits, deltas = BoxHead(3, 8, 16)(torch.randn(5, 8, 7, 7))
    assert logits.shape == (5, 4)
    assert deltas.shape == (5, 3, 4)


def test_iou_head_gives_each_box_the_output_of_its_class() -> None:
    head = IoUHead(3, 2, 4, logistic=False)
    pooled = torch.randn(2, 2, 7, 7)
    by_class = torch.stack([head(pooled, torch.full((2,), label)) for label in range(3)], dim=1)
    picked = head(pooled, torch.tensor([2, 0]))
    assert picked.tolist() == [by_class[0, 2].item(), by_class[1, 0].item()]
    assert by_class[0, 0] != by_class[0, 2]


@pytest.mark.parametrize(
    ("logistic", "output", "iou", "loss", "predicted"),
    [
        (False, 0.6, 0.9, 0.02, 0.8),  # 2·0.9 − 1 = 0.8; smooth L1 of 0.2 is 0.2² / 2; (0.6 + 1) / 2
        (False, -1.0, 1.0, 1.5, 0.0),  # smooth L1 of 2 is 2 − 1/2
        (True, 0.0, 0.7, math.log(2), 0.5),  # −0.7 ln ½ − 0.3 ln ½
        (True, math.log(4), 1.0, math.log(1.25), 0.8),  # sigmoid(ln 4) = 4/5
    ],
)
def test_iou_scale_and_loss(logistic: bool, output: float, iou: float, loss: float, predicted: float) -> None:
    head = IoUHead(1, 1, 1, logistic=logistic)
    outputs = torch.tensor([output, output])
    torch.testing.assert_close(head.loss(outputs, torch.tensor([iou, iou])), torch.tensor([loss, loss]))
    torch.testing.assert_close(head.to_iou(outputs), torch.tensor([predicted, predicted]))


@pytest.mark.parametrize("pooling", ["prroi", "roi_align"])
def test_pooling_in_fixed_shapes_is_the_same(pooling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where every box goes to every level, and is empty in all but its own."""
    torch.manual_seed(0)
    levels = [torch.randn(2, 3, 512 // stride, 512 // stride, requires_grad=True) for stride in (4, 8, 16, 32)]
    pyramid = Pyramid(levels, torch.tensor([[512, 512]] * 2), pooling)
    sides = torch.tensor([50.0, 130, 200, 300, 420, 500])
    boxes = (sides[:, None] * torch.tensor([0.0, 0.1, 1.0, 0.9])).requires_grad_()
    weights, pooled = torch.randn(6, 3, 7, 7), []
    for fixed in (False, True):
        monkeypatch.setattr(roi_head, "uses_triton", lambda _, fixed=fixed: fixed)
        output = pyramid.pool_at(boxes, torch.tensor([0, 1, 0, 1, 0, 1]))
        leaves = levels if pooling == "roi_align" else [*levels, boxes]
        pooled.append([output, *torch.autograd.grad((output * weights).sum(), leaves)])
    for one, other in zip(*pooled, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("pooling", ["prroi", "roi_align"])
def test_a_box_that_is_no_number_is_one_sentence(pooling: Any, wrong: float) -> None:
    """RoIAlign would take it for an address, and the process would end."""
    levels = [torch.rand(1, 2, 64 // stride, 64 // stride) for stride in roi_head.STRIDES]
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, wrong]])
    with pytest.raises(UserError, match="box 1 is not finite"):
        Pyramid(levels, torch.tensor([[64, 64]]), pooling).pool_at(boxes, torch.zeros(2))
