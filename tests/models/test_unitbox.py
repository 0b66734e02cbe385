from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.models import targets_of as of
from tests.helpers.models import tiny_unitbox as tiny
from tests.helpers.one_image import pixel_regions
from tightbox.boxes import decode_distances
from tightbox.errors import UserError
from tightbox.evaluation.ladder import TRUE_BOX
from tightbox.inference.oracle import replaced
from tightbox.models import UnitBox, create_model, load
from tightbox.models.unitbox import PixelOutput, _enlarged
from tightbox.structures import ImageBatch, Targets

pytestmark = pytest.mark.usefixtures("device")


def constant(logit: float, distance: float, classes: int = 1, **options: Any) -> UnitBox:
    """A model that says the same of every pixel."""
    model = tiny(classes, **options)
    torch.nn.init.zeros_(model.head.classes.weight)
    torch.nn.init.zeros_(model.head.distances.weight)
    assert model.head.classes.bias is not None
    torch.nn.init.constant_(model.head.classes.bias, logit)
    assert model.head.distances.bias is not None
    torch.nn.init.constant_(model.head.distances.bias, distance / model.options.distance_unit)
    return model.eval()


def knowing(targets: Targets, size: tuple[int, int], classes: int = 1, **options: Any) -> UnitBox:
    """A model that says what the targets are."""
    model = tiny(classes, **options).eval()
    maps = pixel_regions(size, targets, classes, model.options.region)
    height, width = (-(-side // 32) * 32 for side in size)
    padding = (0, width - size[1], 0, height - size[0])
    # In the padding it is sure of an object, which must not come out.
    logits = F.pad(20 * maps.confidence - 10, padding, value=10.0)
    output = PixelOutput(logits[None], F.pad(maps.distances, padding, value=7.0)[None])
    model.forward = lambda pixels: output  # type: ignore[method-assign]
    return model


# The network


@pytest.mark.parametrize(("height", "width"), [(64, 32), (33, 70), (45, 100), (5, 7), (1, 1)])
@pytest.mark.parametrize("pooled", [True, False])
def test_maps_are_as_large_as_the_input(height: int, width: int, pooled: bool) -> None:
    output = tiny(3, pooled=pooled).eval()(torch.randn(2, 3, height, width))
    assert output.logits.shape == (2, 3, height, width)
    assert output.distances.shape == (2, 4, height, width)
    assert output.distances.min() >= 0.5


def test_distances_are_not_negative_whatever_the_branch_says() -> None:
    assert constant(0, -1e4)(torch.randn(1, 3, 32, 32)).distances.unique().tolist() == [0.5]


def test_each_branch_is_one_convolution() -> None:
    layers: dict[str, Any] = {}
    for name, layer in tiny(2).head.named_children():
        assert isinstance(layer, nn.Conv2d)
        layers[name] = (layer.kernel_size, layer.stride, layer.out_channels)
    assert layers == {"classes": ((3, 3), (1, 1), 2), "distances": ((3, 3), (1, 1), 4)}


def test_a_cell_speaks_for_the_pixels_that_it_lies_over() -> None:
    # One step in the cells: between their centres at 4 and 12 the value rises by 1/8 a pixel, from 4.5 - 4 on.
    enlarged = _enlarged(torch.tensor([[[[0.0, 1.0]]]]), 8)[0, 0]
    expected = torch.tensor([0.0] * 4 + [(2 * i + 1) / 16 for i in range(8)] + [1.0] * 4)
    torch.testing.assert_close(enlarged, expected.expand(8, 16))


def test_enlarging_is_a_transposed_convolution_with_bilinear_weights_but_at_the_border() -> None:
    maps, stride = torch.randn(1, 1, 5, 6), 8
    hat = 1 - (torch.arange(2 * stride) + 0.5 - stride).abs() / stride
    transposed = F.conv_transpose2d(maps, (hat[:, None] * hat)[None, None], stride=stride, padding=stride // 2)
    inside = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(_enlarged(maps, stride)[inside], transposed[inside])


def test_vgg_is_the_published_backbone_and_pooled_after_stage_4() -> None:
    torch.manual_seed(0)
    model = create_model("unitbox", num_classes=1, pretrained_backbone=False)
    assert isinstance(model, UnitBox)
    assert (model.backbone.options.name, model.confidence_stride, model.box_stride) == ("vgg16", 16, 32)
    pixels = torch.randn(1, 3, 64, 32)
    layers = list(model.backbone.body.values())
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in layers) == 13
    stage4 = pixels
    for layer in layers[:24]:  # ten convolutions and their ReLUs, four poolings: VGG-16 up to pool4
        stage4 = layer(stage4)
    stage5 = stage4
    for layer in layers[24:]:
        stage5 = layer(stage5)
    assert (stage4.shape, stage5.shape) == ((1, 512, 4, 2), (1, 512, 2, 1))
    logits, raw = model.head(stage4, stage5)
    output = model(pixels)
    torch.testing.assert_close(output.logits, _enlarged(logits, 16))
    torch.testing.assert_close(output.distances, _enlarged(32 * raw, 32))


def test_before_pooling_vgg_has_strides_8_and_16() -> None:
    model = create_model("unitbox", num_classes=1, backbone="vgg11", pretrained_backbone=False, pooled=False)
    features = model.backbone(torch.randn(1, 3, 32, 32))
    assert [tuple(map_.shape) for map_ in features] == [(1, 512, 4, 4), (1, 512, 2, 2)]
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 1, 32, 32)


@pytest.mark.parametrize("pooled", [True, False])
def test_unshared_starts_as_shared_with_a_network_of_its_own_for_each_branch(pooled: bool) -> None:
    one, two = tiny(pooled=pooled).eval(), tiny(pooled=pooled, shared=False).eval()
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(one(pixels).logits, two(pixels).logits)
    torch.testing.assert_close(one(pixels).distances, two(pixels).distances)
    assert two.box_backbone is not None
    shared, own, second = (
        sum(p.numel() for p in part.parameters()) for part in (one.backbone, two.box_backbone, two.backbone)
    )
    assert own == shared
    assert 0 < second < shared  # without the stage that only boxes need
    memory = [{p.data_ptr() for p in part.parameters()} for part in (two.backbone, two.box_backbone)]
    assert not memory[0] & memory[1]


@pytest.mark.parametrize("options", [{}, {"shared": False}, {"pooled": False}, {"pooled": False, "shared": False}])
def test_every_weight_learns(options: dict[str, Any]) -> None:
    model = tiny(2, **options)
    torch.stack(list(model.loss([torch.rand(3, 40, 50)], [of((4, 4, 40, 30))]).values())).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_with_one_network_each_the_losses_do_not_meet() -> None:
    model = tiny(shared=False)
    model.loss([torch.rand(3, 64, 64)], [of((4, 4, 40, 30))])["box"].backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.head.classes.weight.grad is None


def test_the_losses_share_one_network_of_the_same_size() -> None:
    sizes = [{name: p.shape for name, p in tiny(loss=loss).named_parameters()} for loss in ("iou", "l2")]
    assert sizes[0] == sizes[1]


# The loss


def by_hand(loss: str, distance: float, box: tuple[int, ...]) -> list[float]:
    """The box loss of each pixel of an image that is the box."""
    terms = []
    for y, x in itertools.product(range(box[1], box[3]), range(box[0], box[2])):
        truth = (x + 0.5 - box[0], y + 0.5 - box[1], box[2] - x - 0.5, box[3] - y - 0.5)
        if loss == "l2":
            terms.append(sum((distance - t) ** 2 for t in truth))
            continue
        width, height = (min(distance, truth[i]) + min(distance, truth[i + 2]) for i in (0, 1))
        union = 4 * distance**2 + (box[2] - box[0]) * (box[3] - box[1]) - width * height
        terms.append(-math.log(width * height / union))
    return terms


@pytest.mark.parametrize("loss", ["iou", "l2"])
def test_loss_by_hand(loss: str) -> None:
    model = constant(0.0, 2.0, loss=loss, region="box", distance_unit=1.0)
    found = model.loss([torch.rand(3, 4, 6)], [of((0, 0, 6, 4))])
    assert found["confidence"].item() == pytest.approx(math.log(2))  # −ln sigmoid(0), everywhere
    terms = by_hand(loss, 2.0, (0, 0, 6, 4))
    assert found["box"].item() == pytest.approx(sum(terms) / 24, rel=1e-5)
    if loss == "l2":
        # Across, 2 - x̃ is 1.5, 0.5, -0.5, ..., -3.5: squares 2.25, 0.25, 0.25, 2.25, 6.25, 12.25 to either side, whose
        # mean is 23.5/6; down, the four 2.25, 0.25, 0.25, 2.25 have the mean 1.25.
        assert found["box"].item() == pytest.approx(2 * (23.5 / 6 + 1.25), rel=1e-5)


def test_unit_of_length_scales_the_squares_only() -> None:
    targets = [of((0, 0, 6, 4))]
    for loss, share in (("iou", 1.0), ("l2", 1 / 64)):
        values = []
        for unit in (1.0, 8.0):
            model = constant(0.0, 2.0, loss=loss, region="box", distance_unit=unit)
            values.append(model.loss([torch.rand(3, 4, 6)], targets)["box"].item())
        assert values[1] == pytest.approx(share * values[0], rel=1e-5)


def test_reduction_and_weights() -> None:
    images, targets = [torch.rand(3, 4, 6), torch.rand(3, 8, 8)], [of((0, 0, 6, 4)), of()]
    one = constant(1.0, 2.0, region="box").loss(images, targets)
    # 24 pixels of object, −ln σ(1), and 64 of background, −ln σ(−1); what is padded to 32 x 32 counts nowhere.
    on, off = (math.log(1 + math.exp(-sign)) for sign in (1, -1))
    assert one["confidence"].item() == pytest.approx((24 * on + 64 * off) / 88, rel=1e-5)
    assert one["box"].item() == pytest.approx(sum(by_hand("iou", 2.0, (0, 0, 6, 4))) / 24, rel=1e-5)
    weighted: dict[str, Any] = {"region": "box", "reduction": "sum", "confidence_weight": 3.0, "box_weight": 5.0}
    two = constant(1.0, 2.0, **weighted).loss(images, targets)
    assert two["confidence"].item() == pytest.approx(3 * one["confidence"].item() * 88 / 2, rel=1e-5)
    assert two["box"].item() == pytest.approx(5 * one["box"].item() * 24 / 2, rel=1e-5)


def test_regions_to_be_ignored_have_no_part() -> None:
    ignore = torch.tensor([[2.0, 0.0, 6.0, 4.0]])
    model = constant(1.0, 2.0, region="box", reduction="sum")
    found = model.loss([torch.rand(3, 4, 6)], [of((0, 0, 1, 4), ignore=ignore)])
    on, off = (math.log(1 + math.exp(-sign)) for sign in (1, -1))
    assert found["confidence"].item() == pytest.approx(4 * on + 4 * off, rel=1e-5)  # 16 pixels are not counted
    assert found["box"].item() == pytest.approx(sum(by_hand("iou", 2.0, (0, 0, 1, 4))), rel=1e-5)


def test_each_class_has_its_map_and_all_one_box() -> None:
    # The large object of class 0 and the small one of class 1 share 4 pixels: these are positive in both maps.
    model = constant(0.0, 2.0, classes=2, region="box", reduction="sum")
    assert model.head.classes.bias is not None
    torch.nn.init.constant_(model.head.classes.bias[1:], 1.0)
    targets = of((0, 0, 6, 4), (0, 0, 2, 2), labels=[0, 1])
    found = model.loss([torch.rand(3, 4, 6)], [targets])
    on, off = (math.log(1 + math.exp(-sign)) for sign in (1, -1))
    assert found["confidence"].item() == pytest.approx(24 * math.log(2) + 4 * on + 20 * off, rel=1e-5)
    inner = [(y, x) for y, x in itertools.product(range(4), range(6)) if y >= 2 or x >= 2]
    large = dict(zip(itertools.product(range(4), range(6)), by_hand("iou", 2.0, (0, 0, 6, 4)), strict=True))
    expected = sum(large[place] for place in inner) + sum(by_hand("iou", 2.0, (0, 0, 2, 2)))
    assert found["box"].item() == pytest.approx(expected, rel=1e-5)


def test_nothing_in_the_images() -> None:
    model = tiny(2)
    losses = model.loss([torch.rand(3, 20, 30), torch.rand(3, 40, 9)], [of(), of()])
    assert losses["box"].item() == 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_objects_of_one_pixel_and_none() -> None:
    losses = tiny().loss([torch.rand(3, 50, 60)], [of((3, 3, 4, 4), (7.2, 8.1, 7.3, 8.2), (5, 5, 5, 9))])
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("loss", ["iou", "l2"])
def test_a_dead_pixel_recovers(loss: str) -> None:
    model = constant(0.0, -20.0, loss=loss)
    layer = model.head.distances
    assert layer.bias is not None
    optimizer = torch.optim.SGD([layer.bias], lr=0.1)
    history = []
    for _ in range(60):
        value = model.loss([torch.rand(3, 32, 32)], [of((4, 4, 28, 28))])["box"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append(value.item())
    assert history[-1] < 0.7 * history[0]
    assert (model(torch.rand(1, 3, 32, 32)).distances > 4).all()


def test_half_precision_only_where_it_does_no_harm() -> None:
    model = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.rand(1, 3, 64, 64))
        losses = model.loss([torch.rand(3, 64, 64)], [of((4, 4, 28, 28))])
    assert {output.logits.dtype, output.distances.dtype, *(v.dtype for v in losses.values())} == {torch.float32}


# Detection


@pytest.mark.parametrize("region", ["ellipse", "box"])
@pytest.mark.parametrize(("height", "width"), [(64, 96), (61, 83)])
def test_k_drawn_objects_give_k_exact_boxes(region: str, height: int, width: int) -> None:
    generator = torch.Generator(torch.get_default_device()).manual_seed(height)
    boxes = []
    for row, column in itertools.product(range(0, height - 20, 20), range(0, width - 20, 20)):
        low = torch.rand(2, generator=generator) * 6 + 1  # at most 7
        high = 19 - torch.rand(2, generator=generator) * 6  # at least 13: neighbours are 2 pixels apart or more
        boxes.append((column + low[0], row + low[1], column + high[0], row + high[1]))
    targets = of(*(tuple(map(float, box)) for box in boxes))
    found = knowing(targets, (height, width), region=region).detect([torch.zeros(3, height, width)])[0]
    assert len(found) == len(boxes) >= 8
    nearest = torch.cdist(found.boxes, targets.boxes, p=math.inf).amin(dim=0)
    assert nearest.max() < 1e-4
    assert found.labels.tolist() == [0] * len(found)
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-10))] * len(found))


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (5, 7, (1, 1, 6, 4)),  # smaller than every stride
        (1, 1, (0, 0, 1, 1)),  # one pixel
        (33, 31, (10.25, 10.25, 10.75, 10.75)),  # a region of one pixel
        (40, 200, (2, 5, 190, 35)),
        (40, 30, (-5, -5, 12, 12)),  # clipped
    ],
)
def test_odd_images(height: int, width: int, box: tuple[float, ...]) -> None:
    found = knowing(of(box), (height, width)).detect([torch.zeros(3, height, width)])[0]
    expected = torch.tensor(box, dtype=torch.float32).clamp(min=0)
    torch.testing.assert_close(found.boxes, expected[None], atol=1e-4, rtol=0)


def test_several_classes_are_read_from_their_own_maps() -> None:
    targets = of((2, 2, 20, 20), (6, 6, 14, 14), (30, 4, 40, 30), labels=[0, 2, 1])
    found = knowing(targets, (40, 48), classes=3).detect([torch.zeros(3, 40, 48)])[0]
    # The small object lies in the middle of the first: both regions have their centre there, and read the small box.
    by_label = {label: box for box, label in zip(found.boxes.tolist(), found.labels.tolist(), strict=True)}
    assert by_label.keys() == {0, 1, 2}
    assert by_label[1] == pytest.approx([30, 4, 40, 30])
    assert by_label[2] == pytest.approx([6, 6, 14, 14])
    assert by_label[0] == by_label[2]


def test_maps_with_no_region() -> None:
    found = constant(-9.0, 5.0).detect([torch.zeros(3, 40, 48), torch.zeros(3, 8, 8)])
    assert [(f.boxes.shape, f.scores.shape, f.labels.shape) for f in found] == [((0, 4), (0,), (0,))] * 2


def test_a_map_of_nan_detects_nothing() -> None:
    assert len(constant(math.nan, 5.0).detect([torch.zeros(3, 40, 48)])[0]) == 0
    assert len(constant(9.0, math.nan).detect([torch.zeros(3, 40, 48)])[0]) == 0


def crafted(logits: Tensor, **options: Any) -> UnitBox:
    """A model with these logits (32, 32), and boxes that reach 50 pixels everywhere."""
    model = tiny(**options).eval()
    output = PixelOutput(logits[None, None], torch.full((1, 4, 32, 32), 50.0))
    model.forward = lambda pixels: output  # type: ignore[method-assign]
    return model


def test_score_size_suppression_and_threshold() -> None:
    logits = torch.full((32, 32), -5.0)
    logits[4:7, 4:7] = 1.0
    logits[5, 5] = 3.0  # the middle
    logits[20:22, 20:22] = 2.0
    image = [torch.zeros(3, 32, 32)]
    low, middle, other = (1 / (1 + math.exp(-x)) for x in (1, 3, 2))

    def scores(**options: Any) -> list[float]:
        found = crafted(logits, **options).detect(image)[0]
        assert found.boxes.tolist() == [[0, 0, 32, 32]] * len(found)
        return found.scores.tolist()

    assert scores() == pytest.approx([middle, other])
    assert scores(score="mean") == pytest.approx([other, (8 * low + middle) / 9])
    assert scores(min_region=5) == pytest.approx([middle])
    assert scores(nms=True) == pytest.approx([middle])  # both boxes are the whole image
    assert scores(threshold=0.9) == pytest.approx([middle])  # σ(2) is 0.88
    assert scores(max_detections=1) == pytest.approx([middle])
    assert scores(score_threshold=0.9) == pytest.approx([middle])


def test_each_image_of_a_batch_is_read_in_its_own_size() -> None:
    found = constant(5.0, 200.0).detect([torch.zeros(3, 20, 30), torch.zeros(3, 40, 9)])
    assert [f.boxes.tolist() for f in found] == [[[0, 0, 30, 20]], [[0, 0, 9, 40]]]


def test_dense_candidates_are_pixels_of_a_grid() -> None:
    model = tiny(2, dense_stride=8, top_k=1000).eval()
    image = torch.rand(3, 40, 50)
    candidates, matched = model.assigned_candidates([image], [of()])[0]
    assert candidates.points is not None
    grid = [[x + 0.5, y + 0.5] for y in range(4, 40, 8) for x in range(4, 50, 8)]
    assert candidates.points.tolist() == grid
    assert candidates.ious is None
    assert matched.tolist() == [-1] * len(grid)
    output = model(model._normalise([image])[0])
    x, y = candidates.points.long().unbind(1)
    torch.testing.assert_close(candidates.class_scores, output.logits[0, :, y, x].T.sigmoid())
    whole = decode_distances(candidates.points, output.distances[0, :, y, x].T)
    inside = (whole >= 0).all(dim=1) & (whole[:, 2] <= 50) & (whole[:, 3] <= 40)
    torch.testing.assert_close(candidates.boxes[inside], whole[inside])
    assert (candidates.boxes.amin().item(), candidates.boxes[:, 2].amax().item()) == (0, 50)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2), (1, 40), (5, 5)])
def test_dense_candidates_of_the_smallest_images(height: int, width: int) -> None:
    candidates, matched = tiny().eval().assigned_candidates([torch.rand(3, height, width)], [of((0, 0, width, 1))])[0]
    assert len(candidates) == len(matched) >= 1


def test_dense_candidates_with_what_they_learn() -> None:
    ignore = torch.tensor([[0.0, 30.0, 8.0, 38.0]])
    targets = of((4, 4, 30, 30), (10, 10, 20, 20), ignore=ignore)
    model = tiny(dense_stride=2, top_k=5).eval()
    candidates, matched = model.assigned_candidates([torch.rand(3, 40, 50)], [targets])[0]
    assert candidates.points is not None
    owners = pixel_regions((40, 50), targets).matched
    x, y = candidates.points.long().unbind(1)
    assert matched.tolist() == owners[y, x].clamp(min=-1).tolist()
    assert set(matched.tolist()) >= {0, 1}
    on_grid = owners[1::2, 1::2]
    assert (matched >= 0).sum() == (on_grid >= 0).sum()  # every one that learns, and at most 5 more
    assert (matched < 0).sum() <= 5


def test_the_dense_reading_can_be_ranked_suppressed_and_given_the_truth() -> None:
    targets = of((4, 4, 30, 30), (36, 6, 46, 34))
    model = constant(1.0, 3.0)
    candidates, matched = model.assigned_candidates([torch.rand(3, 40, 50)], [targets])[0]
    found = model.select(replaced(candidates, matched, targets)[TRUE_BOX], suppress=model.greedy_nms)
    exact = torch.cdist(found.boxes, targets.boxes, p=math.inf).amin(dim=0)
    assert exact.max() == 0
    assert len(model.select(candidates)) > 2  # boxes of 6 pixels do not reach each other


def test_the_dense_reading_of_a_perfect_map_is_the_truth_too() -> None:
    targets = of((4, 4, 30, 30), (36, 6, 46, 34))
    model = knowing(targets, (40, 50))
    found = model.select(model.candidates([torch.zeros(3, 40, 50)])[0])
    assert len(found) == 2
    assert torch.cdist(found.boxes, targets.boxes, p=math.inf).amin(dim=0).max() < 1e-4


@pytest.mark.parametrize("options", [{}, {"shared": False}, {"pooled": False, "shared": False, "loss": "l2"}])
def test_saved_and_loaded_it_says_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny(2, threshold=0.05, **options).eval()
    if model.box_backbone is not None:  # the two backbones must not be taken for one
        torch.nn.init.normal_(next(model.box_backbone.parameters()))
    image = torch.rand(3, 50, 40)
    again = load(model.save(tmp_path))
    assert again.options == model.options
    for mine, its in zip(vars(model([image][0][None])).values(), vars(again(image[None])).values(), strict=True):
        assert mine.equal(its)
    assert again.detect([image])[0].boxes.equal(model.detect([image])[0].boxes)


def test_prediction_in_the_original_image() -> None:
    # 128 x 96 becomes 85 x 64; its middle pixel is (42, 32), whose box reaches beyond everything.
    found = constant(5.0, 500.0).predict(torch.zeros(3, 96, 128))
    assert found.boxes.tolist() == [[0, 0, 128, 96]]


def test_it_learns_one_image() -> None:
    model = tiny(pooled=False)
    torch.manual_seed(0)
    targets = of((8, 8, 40, 36))
    image = torch.rand(3, 64, 64) * 0.3
    image[:, 8:36, 8:40] += 0.6
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(100):
        loss = torch.stack(list(model.loss(ImageBatch.of([image] * 2), [targets] * 2).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = model.train().detect([image] * 2)[0]  # batch norms by this batch: their averages lag behind
    assert len(found) >= 1
    torch.testing.assert_close(found.boxes[:1], targets.boxes, atol=4, rtol=0)


# Options


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"threshold": 1.0}, "threshold is 1.0; it must be in"),
        ({"distance_unit": 0.0}, "distance_unit is 0.0; it must be more than 0"),
        ({"box_weight": -1.0}, "box_weight is -1.0; it must be 0 or more"),
        ({"dense_stride": 0}, "dense_stride is 0; it must be at least 1"),
        ({"nms_iou": 0.0}, "nms_iou is 0.0; it must be in"),
    ],
)
def test_options_that_make_no_sense(option: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tiny(**option)
