from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tightbox
from tests.helpers.arithmetic import area, intersection, sigmoid
from tests.helpers.models import BACKBONE, NOTHING, STRIDES, image_batch, level_sizes, objects
from tests.helpers.models import same_detections as same
from tests.helpers.models import tiny_retinanet as fresh
from tests.helpers.one_image import max_iou
from tightbox.assigners import BACKGROUND
from tightbox.errors import UserError
from tightbox.models import IoUAwareRetinaNet, create_model
from tightbox.models.dense import rows
from tightbox.models.iou_aware_retinanet import AnchorOutput
from tightbox.rank import by_class_score, by_power
from tightbox.structures import ImageBatch, Targets

pytestmark = pytest.mark.usefixtures("device")


def build(**options: Any) -> IoUAwareRetinaNet:
    """A tiny detector with scores, boxes and IoUs that differ from anchor to anchor."""
    model = fresh(**options)
    head = model.head
    assert head.classes.bias is not None
    nn.init.zeros_(head.classes.bias)
    for layer, spread in ((head.classes, 0.3), (head.deltas, 0.1), (head.iou, 0.3)):
        if layer is not None:
            nn.init.normal_(layer.weight, std=spread)
    return model.eval()


SIZES = ((96, 96), (50, 60))  # the second is padded beyond its next multiples of 32
TWO = [objects((4, 4, 60, 52), (40, 30, 90, 70)), objects((10, 20, 50, 48))]


def all_anchors(height: int, width: int) -> list[tuple[float, float, float, float]]:
    """x, y, width and height: areas of (4 strides)² times 1, 2^(2/3) and 2^(4/3); heights 1/2, 1 and 2 widths."""
    found = []
    for (down, across), stride in zip(level_sizes(height, width), STRIDES, strict=True):
        for y in range(down):
            for x in range(across):
                for octave in (0, 1 / 3, 2 / 3):
                    for ratio in (0.5, 1, 2):
                        side = 4 * stride * 2**octave
                        centre = (x + 0.5) * stride, (y + 0.5) * stride
                        found.append((*centre, side / math.sqrt(ratio), side * math.sqrt(ratio)))
    return found


def corners(anchor: tuple[float, float, float, float]) -> list[float]:
    x, y, width, height = anchor
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def inside(height: int, width: int, size: tuple[int, int]) -> list[bool]:
    """Whether each anchor's cell begins before the end of the image, rounded up to 32 pixels."""
    bottom, right = (math.ceil(side / 32) * 32 for side in size)
    found = []
    for (down, across), stride in zip(level_sizes(height, width), STRIDES, strict=True):
        found += [
            y * stride < bottom and x * stride < right for y in range(down) for x in range(across) for _ in "A" * 9
        ]
    return found


def quality(anchor: tuple[float, float, float, float], deltas: list[float], truth: list[float]) -> float:
    """IoU of the decoded box with its object."""
    x, y, width, height = anchor
    box = corners(
        (x + deltas[0] * width, y + deltas[1] * height, width * math.exp(deltas[2]), height * math.exp(deltas[3]))
    )
    inner = intersection(box, truth)
    return inner / (area(box) + area(truth) - inner)


def assignments(images: ImageBatch, targets: list[Targets], crowds: float | None = None) -> list[list[int]]:
    """What each anchor of each image learns."""
    height, width = images.pixels.shape[2:]
    anchors = torch.tensor([corners(a) for a in all_anchors(height, width)])
    return [
        max_iou(anchors, t, ignore_iof=crowds, valid=torch.tensor(inside(height, width, size))).tolist()
        for t, size in zip(targets, images.sizes, strict=True)
    ]


def reference_losses(
    model: IoUAwareRetinaNet, output: AnchorOutput, images: ImageBatch, targets: list[Targets]
) -> dict[str, float]:
    """Equations 1 to 4 as sums over images, anchors and classes."""
    options = model.options
    anchors = all_anchors(*images.pixels.shape[2:])
    terms = {"class": 0.0, "box": 0.0, "iou": 0.0}
    count = 0
    for i, matched in enumerate(assignments(images, targets, 0.5 if options.ignore_crowds else None)):
        count += max(sum(match >= 0 for match in matched), 1)
        for n, match in enumerate(matched):
            if match == -2:
                continue
            for label, logit in enumerate(output.logits[i, n].tolist()):
                p = sigmoid(logit)
                positive = match >= 0 and targets[i].labels[match] == label
                terms["class"] -= 0.25 * (1 - p) ** 2 * math.log(p) if positive else 0.75 * p**2 * math.log(1 - p)
            if match == -1:
                continue
            (x, y, width, height), truth = anchors[n], targets[i].boxes[match].tolist()
            deltas = output.deltas[i, n].tolist()
            goal = [
                ((truth[0] + truth[2]) / 2 - x) / width,
                ((truth[1] + truth[3]) / 2 - y) / height,
                math.log((truth[2] - truth[0]) / width),
                math.log((truth[3] - truth[1]) / height),
            ]
            for difference in (abs(a - b) for a, b in zip(deltas, goal, strict=True)):
                terms["box"] += difference**2 / 2 / 0.11 if difference < 0.11 else difference - 0.11 / 2
            if output.ious is not None:
                u, q = sigmoid(output.ious[i, n].item()), quality(anchors[n], deltas, truth)
                kinds = {"bce": -q * math.log(u) - (1 - q) * math.log(1 - u), "l1": abs(u - q), "l2": (u - q) ** 2}
                terms["iou"] += kinds[options.iou_loss]
    if output.ious is None:
        del terms["iou"]
    return {name: value / count for name, value in terms.items()}


@torch.no_grad()
def assert_losses(model: IoUAwareRetinaNet, images: ImageBatch, targets: list[Targets]) -> dict[str, float]:
    losses = {name: value.item() for name, value in model.loss(images, targets).items()}
    output = model(model._normalise(images)[0])
    assert losses == pytest.approx(reference_losses(model, output, images, targets), rel=1e-4, abs=1e-6)
    return losses


# The anchors


def test_anchors_of_the_first_cell_by_hand() -> None:
    """Stride 8 and scale 4: around (4, 4), areas of 32², 32² · 2^(2/3) and 32² · 2^(4/3)."""
    model = fresh()
    anchors = model._anchors(model(torch.zeros(1, 3, 64, 64)))
    assert anchors.shape == ((64 + 16 + 4 + 1 + 1) * 9, 4)
    first = anchors[:9]
    torch.testing.assert_close((first[:, :2] + first[:, 2:]) / 2, torch.full((9, 2), 4.0))
    width, height = (first[:, 2:] - first[:, :2]).unbind(1)
    areas = torch.tensor([1024.0, 1024 * 1.587401, 1024 * 2.519842]).repeat_interleave(3)
    torch.testing.assert_close(width * height, areas)
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1, 2]).repeat(3))
    # The square ones: half sides of 16 and 20.1587. The flat one: 32 · sqrt 2 = 45.2548 by 22.6274.
    assert first[1].tolist() == pytest.approx([-12, -12, 20, 20])
    assert first[4].tolist() == pytest.approx([4 - 20.1587, 4 - 20.1587, 4 + 20.1587, 4 + 20.1587], abs=1e-4)
    assert first[0].tolist() == pytest.approx([4 - 22.6274, 4 - 11.3137, 4 + 22.6274, 4 + 11.3137], abs=1e-4)
    assert anchors[10].tolist() == pytest.approx([-4, -12, 28, 20])  # one cell to the right
    assert anchors[8 * 9 + 1].tolist() == pytest.approx([-12, -4, 20, 28])  # one cell down
    assert anchors[-8].tolist() == pytest.approx([64 - 256, 64 - 256, 64 + 256, 64 + 256])  # stride 128: 512 pixels


@pytest.mark.parametrize("size", [(64, 64), (96, 32), (1, 1)])
def test_anchors_of_every_cell(size: tuple[int, int]) -> None:
    model = fresh().eval()
    found = model._anchors(model(torch.zeros(1, 3, *size)))
    torch.testing.assert_close(found, torch.tensor([corners(a) for a in all_anchors(*size)]))


def test_anchor_scale() -> None:
    model = fresh(anchor_scale=2.0).eval()
    assert model._anchors(model(torch.zeros(1, 3, 32, 32)))[1].tolist() == pytest.approx([-4, -4, 12, 12])


def test_outputs_are_in_the_order_of_the_anchors() -> None:
    x = torch.arange(2.0 * 6 * 4 * 5).view(2, 6, 4, 5)  # 3 anchors of 2 numbers each
    found = rows(x, 3)
    assert found.shape == (2, 60, 2)
    for batch, y, column, anchor, number in [(0, 0, 0, 0, 1), (1, 2, 3, 1, 0), (0, 3, 4, 2, 1)]:
        assert found[batch, (y * 5 + column) * 3 + anchor, number] == x[batch, anchor * 2 + number, y, column]

    model = fresh()
    for layer in (model.head.classes, model.head.deltas, model.head.iou):
        assert layer is not None
        nn.init.zeros_(layer.weight)
        assert layer.bias is not None
        layer.bias.data = torch.arange(float(layer.out_channels))
    output = model(torch.zeros(1, 3, 64, 64))
    assert output.logits.view(-1, 18).unique(dim=0).tolist() == [list(range(18))]
    assert output.deltas.view(-1, 36).unique(dim=0).tolist() == [list(range(36))]
    assert output.ious is not None
    assert output.ious.view(-1, 9).unique(dim=0).tolist() == [list(range(9))]


# The network


def test_number_of_parameters() -> None:
    with torch.device("meta"):
        models = [
            create_model("iou_aware_retinanet", num_classes=80, pretrained_backbone=False, iou_head=iou_head)
            for iou_head in (True, False)
        ]
    counts = [sum(p.numel() for p in model.parameters()) for model in models]
    assert counts[0] - counts[1] == 256 * 9 * 9 + 9
    # Eight tower convolutions of 256·9·256 + 256, 80 classes and 4 deltas for each of 9 anchors.
    tower = 256 * 9 * 256 + 256
    head = 8 * tower + 256 * 9 * 720 + 720 + 256 * 9 * 36 + 36
    # Laterals of C3, C4 and C5, three output convolutions, P6 from C5, and P7.
    pyramid = (512 + 1024 + 2048 + 3) * 256 + 3 * tower + 2048 * 9 * 256 + 256 + tower
    assert counts[1] == 23_508_032 + head + pyramid


def test_without_the_iou_head_all_else_is_the_same_bit_for_bit() -> None:
    on, off = fresh(seed=7), fresh(seed=7, iou_head=False)
    with_head, without = on.state_dict(), off.state_dict()
    assert with_head.keys() - without.keys() == {"head.iou.weight", "head.iou.bias"}
    for name, value in without.items():
        assert with_head[name].equal(value), name
    assert not fresh(seed=8, iou_head=False).head.classes.weight.equal(off.head.classes.weight)
    pixels = torch.rand(2, 3, 64, 64)
    a, b = on.eval()(pixels), off.eval()(pixels)
    assert a.logits.equal(b.logits)
    assert a.deltas.equal(b.deltas)
    assert b.ious is None


def test_scores_start_at_one_percent_and_ious_at_a_half() -> None:
    found = fresh().eval().candidates(image_batch((64, 64)))[0]
    assert found.class_scores.mean().item() == pytest.approx(0.01, rel=0.05)
    assert found.ious is not None
    assert found.ious.mean().item() == pytest.approx(0.5, rel=0.05)


def test_the_iou_is_predicted_beside_the_box_from_the_same_features() -> None:
    model = build()
    pixels = torch.rand(1, 3, 64, 64)
    before = model(pixels)
    nn.init.zeros_(model.head.class_tower[0].get_parameter("weight"))
    after = model(pixels)
    assert not after.logits.equal(before.logits)
    assert after.ious.equal(before.ious)
    nn.init.zeros_(model.head.box_tower[0].get_parameter("weight"))
    assert not model(pixels).ious.equal(before.ious)
    assert [type(m) for m in model.modules() if isinstance(m, nn.GroupNorm)] == []
    assert len([m for m in build(tower_norm=True).head.modules() if isinstance(m, nn.GroupNorm)]) == 2


# The loss


@pytest.mark.parametrize(
    "options", [{}, {"iou_loss": "l1"}, {"iou_loss": "l2"}, {"iou_head": False}, {"tower_norm": True}]
)
def test_losses_equal_sums_over_anchors(options: dict[str, Any]) -> None:
    losses = assert_losses(build(**options), image_batch(*SIZES), TWO)
    assert set(losses) == {"class", "box", "iou"} - ({"iou"} if options == {"iou_head": False} else set())
    assert all(value > 0 for value in losses.values())


@pytest.mark.parametrize("detach", [True, False])
def test_detaching_changes_no_loss(detach: bool) -> None:
    assert_losses(build(detach_target=detach), image_batch(*SIZES), TWO)


def test_a_image_without_objects_counts_as_one_positive() -> None:
    model = build()
    images = ImageBatch.of([torch.rand(3, 64, 64), torch.rand(3, 64, 64)])
    first = ImageBatch(images.pixels[:1], images.sizes[:1])
    positives = sum(match >= 0 for match in assignments(first, TWO[1:])[0])
    alone, both = assert_losses(model, first, TWO[1:]), assert_losses(model, images, [TWO[1], NOTHING])
    for name in ("box", "iou"):
        assert both[name] == pytest.approx(alone[name] * positives / (positives + 1), rel=1e-5)
    empty = assert_losses(model, images, [NOTHING, NOTHING])
    assert (empty["box"], empty["iou"]) == (0, 0)
    assert empty["class"] > 0


@pytest.mark.parametrize("options", [{}, {"iou_loss": "l1"}, {"iou_head": False}])
def test_batch_without_objects_has_gradients(options: dict[str, Any]) -> None:
    model = build(**options)
    torch.stack(list(model.loss(image_batch(*SIZES), [NOTHING, NOTHING]).values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters())
    assert model.head.deltas.weight.grad is not None
    assert not model.head.deltas.weight.grad.any()
    assert model.head.classes.weight.grad is not None
    assert model.head.classes.weight.grad.any()


def test_crowds_are_left_out_of_the_class_loss_only_if_asked() -> None:
    images = image_batch((96, 96), (96, 96))
    everywhere = [[-500.0, -500.0, 600.0, 600.0]]
    crowded, plain = [objects((4, 4, 60, 52), ignore=everywhere), TWO[0]], [objects((4, 4, 60, 52)), TWO[0]]
    model = build()
    published = assert_losses(model, images, crowded)
    assert published == assert_losses(model, images, plain)
    model.options = replace(model.options, ignore_crowds=True)
    ignoring = assert_losses(model, images, crowded)
    assert ignoring["class"] < published["class"]
    assert (ignoring["box"], ignoring["iou"]) == (published["box"], published["iou"])


class Given:
    """The loss as a function of outputs in double precision, of two images of 64 pixels with objects."""

    def __init__(self, **options: Any) -> None:
        self.model = build(**options)
        self.images = image_batch((64, 64), (64, 64))
        self.targets = [objects((4, 4, 40, 36), (20, 30, 60, 62)), objects((10, 20, 50, 48))]
        cells = (64 + 16 + 4 + 1 + 1) * 9
        # Boxes near their anchors, which overlap their objects, as IoUs of 0 have no gradient.
        self.logits = torch.randn(2, cells, 2, dtype=torch.float64, requires_grad=True)
        self.deltas = (torch.randn(2, cells, 4, dtype=torch.float64) / 10).requires_grad_()
        self.ious = torch.randn(2, cells, dtype=torch.float64, requires_grad=True)
        output = AnchorOutput(self.logits, self.deltas, self.ious, level_sizes(64, 64))
        self.model.forward = lambda pixels: output  # type: ignore[method-assign]
        matched = assignments(self.images, self.targets)
        self.positives = [(i, n, g) for i, row in enumerate(matched) for n, g in enumerate(row) if g >= 0]

    def gradient(self, loss: str, of: Tensor) -> Tensor:
        found = torch.autograd.grad(self.model.loss(self.images, self.targets)[loss], of, allow_unused=True)[0]
        return torch.zeros_like(of) if found is None else found


def test_the_gradient_through_the_target_is_that_of_the_paper() -> None:
    """∂L_IoU/∂ÎoU = ln((1 − u)/u) / N, times the slope of ÎoU in each delta, here by central differences."""
    given = Given()
    anchors = all_anchors(64, 64)
    expected = torch.zeros_like(given.deltas)
    for i, n, g in given.positives:
        u, truth = sigmoid(given.ious[i, n].item()), given.targets[i].boxes[g].tolist()
        for k in range(4):
            ends = []
            for step in (1e-6, -1e-6):
                deltas = given.deltas[i, n].tolist()
                deltas[k] += step
                ends.append(quality(anchors[n], deltas, truth))
            expected[i, n, k] = math.log((1 - u) / u) * (ends[0] - ends[1]) / 2e-6 / len(given.positives)
    found = given.gradient("iou", given.deltas)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_a_confident_estimate_pulls_the_box_to_its_object() -> None:
    """For u > 1/2 the gradient is below zero in ÎoU: a step down the loss raises the mean IoU; for u < 1/2 it falls."""
    for logit, sign in ((2.0, 1), (-2.0, -1)):
        given = Given()
        given.ious.data.fill_(logit)
        anchors = all_anchors(64, 64)

        def mean_quality(deltas: Tensor, given: Given = given, anchors: Any = anchors) -> float:
            places = given.positives
            return sum(
                quality(anchors[n], deltas[i, n].tolist(), given.targets[i].boxes[g].tolist()) for i, n, g in places
            )

        step = given.deltas.detach() - 0.1 * given.gradient("iou", given.deltas)
        assert sign * (mean_quality(step) - mean_quality(given.deltas.detach())) > 0


@pytest.mark.parametrize("iou_loss", ["bce", "l1", "l2"])
def test_detached_the_boxes_get_exactly_nothing(iou_loss: str) -> None:
    given = Given(detach_target=True, iou_loss=iou_loss)
    assert not given.gradient("iou", given.deltas).any()
    assert given.gradient("iou", given.ious).any()
    assert given.gradient("box", given.deltas).any()
    attached = Given(iou_loss=iou_loss)
    assert attached.gradient("iou", attached.deltas).any()


def test_detached_the_box_layer_gets_exactly_nothing() -> None:
    """In the whole network, too; the tower that it shares with the IoU layer does learn from the IoU loss."""
    for detach in (True, False):
        model = build(detach_target=detach)
        model.loss(image_batch(*SIZES), TWO)["iou"].backward()
        grad = model.head.deltas.weight.grad
        assert (grad is not None and bool(grad.any())) is not detach
        gradient = model.head.box_tower[0].get_parameter("weight").grad
        assert gradient is not None
        assert gradient.any()
        assert all(p.grad is None for p in model.head.class_tower.parameters())


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("iou_loss", ["bce", "l1", "l2"])
def test_the_estimate_learns_on_positives_only(iou_loss: str, detach: bool) -> None:
    """Slopes in the logit x of u: u − q for BCE; sign(u − q)·u(1 − u) for L1; 2(u − q)·u(1 − u) for L2."""
    given = Given(iou_loss=iou_loss, detach_target=detach)
    expected = torch.zeros_like(given.ious)
    for i, n, g in given.positives:
        u = sigmoid(given.ious[i, n].item())
        q = quality(all_anchors(64, 64)[n], given.deltas[i, n].tolist(), given.targets[i].boxes[g].tolist())
        slope = {"bce": u - q, "l1": math.copysign(u * (1 - u), u - q), "l2": 2 * (u - q) * u * (1 - u)}[iou_loss]
        expected[i, n] = slope / len(given.positives)
    torch.testing.assert_close(given.gradient("iou", given.ious), expected, rtol=1e-4, atol=1e-8)
    others = torch.ones_like(expected, dtype=torch.bool)
    for i, n, _ in given.positives:
        others[i, n] = False
    assert not given.gradient("iou", given.ious)[others].any()
    assert not given.gradient("iou", given.deltas)[others].any()
    assert not given.gradient("iou", given.logits).any()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("bce", math.log(2)),  # u = 1/2, whatever the target
        ("l1", 0.25),  # |1/2 − 3/4|
        ("l2", 0.0625),
    ],
)
def test_iou_losses_by_hand(kind: str, expected: float) -> None:
    found = fresh(iou_loss=kind)._iou_loss(torch.tensor([0.0, 0.0]), torch.tensor([0.75, 0.25]))
    assert found.sum().item() == pytest.approx(2 * expected)


def test_everything_learns() -> None:
    model = fresh().train()
    images, optimizer = image_batch((128, 128), (128, 96)), torch.optim.SGD(model.parameters(), 0.01)
    targets = [objects((8, 8, 110, 100)), objects((30, 20, 80, 90))]
    first = model.loss(images, targets)
    for step in range(4):
        total = torch.stack(list(model.loss(images, targets).values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            # A residual block's last norm starts at zero, so that its convolutions learn from the second step on.
            assert parameter.grad.any() or step == 0, name
    assert model.loss(images, targets)["box"] < first["box"]


def test_losses_under_bf16_are_finite_and_in_float32() -> None:
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(image_batch(*SIZES), TWO)
        found = model.detect(image_batch(*SIZES))[0]
    assert {value.dtype for value in losses.values()} == {torch.float32}
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters())
    assert found.boxes.dtype == torch.float32
    assert len(found) > 0


# Detections


@pytest.mark.parametrize("top_k", [3, 1000])
def test_alpha_of_one_is_retinanet_exactly(top_k: int) -> None:
    model = build(top_k=top_k, nms_iou=0.3)
    plain = fresh(seed=1, iou_head=False, top_k=top_k, nms_iou=0.3).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.iou")})
    images = image_batch(*SIZES)
    expected = plain.detect(images)
    assert not same(model.detect(images)[0], expected[0])
    model.options = replace(model.options, alpha=1.0)
    for found, own in zip(model.detect(images), expected, strict=True):
        assert same(found, own)
        assert found.ious is not None
        assert own.ious is None
    candidates = model.candidates(images)[0]
    assert same(model.select(candidates, partial(by_power, alpha=1.0)), expected[0])
    assert same(model.select(candidates, by_class_score), expected[0])


@pytest.mark.parametrize("own", [0.5, 0.35])
def test_candidates_serve_a_whole_sweep(own: float) -> None:
    """The best of each level under every α are there: detections are those chosen among all anchors."""
    model = build(top_k=4, alpha=own, nms_iou=0.9)
    images = image_batch((96, 96))
    few = model.candidates(images)[0]
    model.options = replace(model.options, top_k=10**6)
    everything = model.candidates(images)[0]
    assert len(everything) == len(all_anchors(96, 96))
    assert len(few) < len(everything) / 4
    model.options = replace(model.options, top_k=4)
    detections = []
    for alpha in [own, *(step / 10 for step in range(11))]:
        rank = partial(by_power, alpha=alpha)
        detections.append(model.select(few, rank))
        whole = model.select(everything, rank)
        # Powers of the same numbers differ in their last bit with their place in a vector.
        torch.testing.assert_close(detections[-1].scores, whole.scores)
        torch.testing.assert_close(detections[-1].boxes, whole.boxes)
        assert detections[-1].labels.equal(whole.labels)
    found = model.detect(images)[0]
    torch.testing.assert_close(detections[0].scores, found.scores)
    torch.testing.assert_close(detections[0].boxes, found.boxes)
    assert not same(detections[1], detections[-1])


def test_candidates_that_learn_are_among_them_however_low_their_score() -> None:
    model, images = build(top_k=1), image_batch(*SIZES)
    expected = assignments(images, TWO)
    anchors = torch.tensor([corners(a) for a in all_anchors(96, 96)])
    nn.init.zeros_(model.head.deltas.weight)  # so that boxes are anchors
    for i, (found, matched) in enumerate(model.assigned_candidates(images, TWO)):
        assert matched.min() == BACKGROUND
        height, width = SIZES[i]
        learning = [n for n, g in enumerate(expected[i]) if g >= 0]
        assert matched[matched >= 0].tolist() == [expected[i][n] for n in learning]
        clipped = anchors[learning].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        torch.testing.assert_close(found.boxes[matched >= 0], clipped)
    for found in model.candidates(images):
        assert len(found) <= 5 * 11  # one of each level for each α


def test_candidates_with_targets_change_no_detection() -> None:
    model, images = build(top_k=2), image_batch(*SIZES)
    for (found, _), expected in zip(model.assigned_candidates(images, TWO), model.detect(images), strict=True):
        assert same(model.select(found), expected)


def test_detections_are_ranked_by_the_root_of_score_times_iou() -> None:
    model, images = build(), image_batch((96, 96))
    candidates, found = model.candidates(images)[0], model.detect(images)[0]
    assert candidates.ious is not None
    assert found.ious is not None
    best = (candidates.class_scores * candidates.ious[:, None]).sqrt()
    assert found.scores[0].item() == pytest.approx(best.max().item())
    assert found.ious[0] == candidates.ious[best.amax(dim=1).argmax()]
    assert candidates.centerness is None
    plain = build(iou_head=False)
    assert plain.candidates(images)[0].ious is None
    assert plain.detect(images)[0].scores[0] == plain.candidates(images)[0].class_scores.max()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["classes", "deltas", "iou"])
def test_broken_weights_give_no_boxes_or_sound_ones(value: float, part: str) -> None:
    model = build(top_k=5)
    for parameter in getattr(model.head, part).parameters():
        nn.init.constant_(parameter, value)
    found = model.detect(image_batch((64, 64)))[0]
    assert found.boxes.isfinite().all()
    assert found.scores.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (33, 47)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    model = build()
    found = model.detect([torch.rand(3, *size)])[0]
    assert (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([size[1], size[0]] * 2)).all()
    losses = model.loss([torch.rand(3, *size)], [objects((0, 0, size[1], size[0]))])
    assert torch.stack(list(losses.values())).isfinite().all()


@pytest.mark.parametrize("options", [{}, {"iou_head": False}])
def test_saved_and_loaded_it_detects_the_same(tmp_path: Path, options: dict[str, Any]) -> None:
    model, images = build(alpha=0.3, **options), image_batch((64, 64))
    loaded = tightbox.load(model.save(tmp_path / "model"))
    assert isinstance(loaded, IoUAwareRetinaNet)
    assert loaded.options == model.options
    assert same(loaded.detect(images)[0], model.detect(images)[0])


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("retinanet", {}, "no model named 'retinanet'; there is: .*iou_aware_retinanet"),
        ("iou_aware_retinanet", {"varifocal": True}, "iou_aware_retinanet has no option varifocal; it has .*iou_head"),
        ("iou_aware_retinanet", {"alpha": 1.5}, r"alpha is 1.5; it must be in \[0, 1\]"),
        ("iou_aware_retinanet", {"alpha": math.nan}, "alpha is nan; it must be a finite number"),
        ("iou_aware_retinanet", {"anchor_scale": 0}, "anchor_scale is 0; it must be more than 0"),
        ("iou_aware_retinanet", {"channels": 40, "tower_norm": True}, "channels is 40; .*multiple of 32"),
        ("iou_aware_retinanet", {"top_k": 0}, "top_k is 0; it must be at least 1"),
    ],
)
def test_create_model_refuses_in_one_sentence(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        create_model(name, num_classes=2, backbone=BACKBONE, **options)
    assert "\n" not in str(caught.value)
