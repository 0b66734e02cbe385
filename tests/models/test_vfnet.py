from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.arithmetic import area, intersection, sigmoid
from tests.helpers.models import NOTHING, STRIDES, image_batch, level_sizes, objects, tiny_model
from tests.helpers.one_image import atss, fcos_assign
from tightbox.assigners import atss_anchors
from tightbox.boxes import pairwise_iou
from tightbox.models import VFNet, create_model
from tightbox.models.dense import inside_images
from tightbox.structures import Detections, ImageBatch, Targets

pytestmark = pytest.mark.usefixtures("device")

LADDER = {
    "baseline": {"varifocal": False, "star": False, "refine": False, "centerness": True},
    "raw": {"varifocal": False, "star": False, "refine": False},
    "+ varifocal": {"star": False, "refine": False},
    "+ star": {"refine": False},
    "+ refinement": {},
}


def build(**options: Any) -> VFNet:
    """A tiny VFNet with scores about a half, so that classes and boxes differ from point to point."""
    model = tiny_model(**options)
    assert isinstance(model, VFNet)
    assert model.head.classes.bias is not None
    torch.nn.init.zeros_(model.head.classes.bias)
    torch.nn.init.normal_(model.head.classes.weight, std=0.3)
    assert model.head.box.bias is not None
    torch.nn.init.constant_(model.head.box.bias, -1.0)  # e⁻¹ of each level's range: boxes that overlap their objects
    torch.nn.init.normal_(model.head.box.weight, std=0.05)
    return model.eval()


TWO = [objects((4, 4, 60, 52), (40, 30, 90, 70)), objects((10, 20, 50, 90))]


def overlap(a: list[float], b: list[float]) -> tuple[float, float]:
    """IoU and GIoU."""
    inner = intersection(a, b)
    outer = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    union = area(a) + area(b) - inner
    return inner / union, inner / union - (outer - union) / outer


def reference_losses(model: VFNet, images: ImageBatch, targets: list[Targets]) -> dict[str, float]:
    """Equation 3 and the released code's weights, written as sums over points."""
    options = model.options
    with torch.no_grad():
        pixels, sizes = model._normalise(images)
        output = model(pixels)
    points, strides = [], []
    shift = 0 if options.assigner == "atss" else 0.5
    for (rows, columns), stride in zip(level_sizes(*pixels.shape[2:]), STRIDES, strict=True):
        points += [((x + shift) * stride, (y + shift) * stride) for y in range(rows) for x in range(columns)]
        strides += [stride] * (rows * columns)
    positives, terms = 0, {"class": 0.0, "box": 0.0, "initial_box": 0.0, "centerness": 0.0}
    weights = {"box": 0.0, "initial_box": 0.0}
    for i, (target, (height, width)) in enumerate(zip(targets, sizes, strict=True)):
        bottom, right = (math.ceil(side / 32) * 32 for side in (height, width))
        # A point is in the image if its cell, whose corner it is, begins there.
        inside = [
            y - shift * s < math.ceil(bottom / s) * s and x - shift * s < math.ceil(right / s) * s
            for (x, y), s in zip(points, strides, strict=True)
        ]
        tensor, of_points = torch.tensor(points).float(), torch.tensor(strides).float()
        if options.assigner == "atss":
            counts = [rows * columns for rows, columns in level_sizes(*pixels.shape[2:])]
            crowds, valid = 0.5 if options.ignore_crowds else None, torch.tensor(inside)
            anchors = atss_anchors(tensor, of_points)
            matched = atss(anchors, counts, target, options.atss_topk, ignore_iof=crowds, valid=valid)
        else:
            ends = torch.tensor([-1, 64, 128, 256, 512, math.inf])
            level = torch.tensor([STRIDES.index(s) for s in strides])
            ranges = torch.stack([ends[level], ends[level + 1]], dim=1)
            matched = fcos_assign(tensor, of_points, ranges, target)
        for n, match in enumerate(matched.tolist()):
            logits, (x, y) = output.logits[i, n].tolist(), points[n]
            goal = [0.0] * len(logits)
            if match >= 0:
                positives += 1
                truth = target.boxes[match].tolist()
                boxes = {
                    name: [x - d[0], y - d[1], x + d[2], y + d[3]]
                    for name, side in (("box", output.distances), ("initial_box", output.initial))
                    for d in [side[i, n].tolist()]
                }
                quality = {name: max(overlap(box, truth)[0], 1e-6) for name, box in boxes.items()}
                goal[target.labels[match]] = quality["box"] if options.varifocal else 1.0
                weight = quality
                if options.normaliser == "num_positives":
                    weight = dict.fromkeys(quality, quality["box"])
                if options.centerness:
                    left, top, right_, bottom_ = x - truth[0], y - truth[1], truth[2] - x, truth[3] - y
                    ratio = min(left, right_) / max(left, right_) * min(top, bottom_) / max(top, bottom_)
                    weight = dict.fromkeys(quality, math.sqrt(ratio))
                    assert output.centerness is not None
                    c = sigmoid(output.centerness[i, n].item())
                    terms["centerness"] -= weight["box"] * math.log(c) + (1 - weight["box"]) * math.log(1 - c)
                if not options.iou_weighted_boxes:
                    weight = dict.fromkeys(quality, 1.0)
                for name, box in boxes.items():
                    terms[name] += weight[name] * (1 - overlap(box, truth)[1])
                    weights[name] += weight[name]
            if match == -2 or (not options.varifocal and not inside[n]):
                continue
            for logit, q in zip(logits, goal, strict=True):
                p = sigmoid(logit)
                entropy = -q * math.log(p) - (1 - q) * math.log(1 - p)
                if options.varifocal:
                    terms["class"] += entropy * ((q if options.iou_weighted else 1) if q > 0 else 0.75 * p**2)
                else:
                    terms["class"] += entropy * (0.25 * (1 - p) ** 2 if q > 0 else 0.75 * p**2)
    count = max(positives, 1)
    by = {n: max(w, 1.0) if options.normaliser == "iou_sum" else count for n, w in weights.items()}
    losses = {"class": terms["class"] / count, "box": options.box_weight * 2 * terms["box"] / by["box"]}
    if options.refine:
        losses["initial_box"] = options.box_weight * 1.5 * terms["initial_box"] / by["initial_box"]
    if options.centerness:
        losses["centerness"] = terms["centerness"] / count
    return losses


def assert_losses(model: VFNet, images: ImageBatch, targets: list[Targets]) -> dict[str, float]:
    with torch.no_grad():
        losses = {name: value.item() for name, value in model.loss(images, targets).items()}
    assert losses == pytest.approx(reference_losses(model, images, targets), rel=1e-4, abs=1e-6)
    return losses


@pytest.mark.parametrize("variant", LADDER)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normaliser": "num_positives"},
        {"assigner": "fcos"},
        {"atss_topk": 2},
        {"box_weight": 0.4, "iou_weighted": False, "iou_weighted_boxes": False},
    ],
)
def test_losses_equal_sums_over_points(variant: str, changes: dict[str, Any]) -> None:
    assert_losses(build(**LADDER[variant], **changes), image_batch((96, 96), (90, 70)), TWO)


def test_an_object_has_at_most_as_many_positives_of_a_level_as_it_has_candidates() -> None:
    images, model = image_batch((96, 96)), build(atss_topk=1)
    pixels, sizes = model._normalise(images)
    output = model(pixels)
    inside = inside_images(output.sizes, STRIDES, sizes)
    matched = model._assign(output, model._points(output), inside, [objects((20, 20, 76, 76))])
    of_levels = matched[0].split([height * width for height, width in output.sizes])
    # One anchor of each level is a candidate, of 64, 128, ... pixels around the point nearest to its middle. Their IoUs
    # with it are 56²/64² = 0.77, 0.19 and less: only the first reaches the mean plus the standard deviation, 0.53.
    assert [int((level == 0).sum()) for level in of_levels] == [1, 0, 0, 0, 0]


def test_normalisers_differ() -> None:
    """The paper divides by the number of positives, which is more than the sum of their IoUs."""
    images = image_batch((96, 96), (96, 96))
    model = build()
    code = model.loss(images, TWO)
    model.options = replace(model.options, normaliser="num_positives")
    paper = model.loss(images, TWO)
    assert paper["box"] < code["box"]
    assert paper["class"] == code["class"]


@pytest.mark.parametrize("variant", LADDER)
def test_every_variant_learns(variant: str) -> None:
    torch.manual_seed(1)
    model = tiny_model(**LADDER[variant]).train()
    images, optimizer = image_batch((128, 128), (128, 96)), torch.optim.SGD(model.parameters(), 0.01)
    targets = [objects((8, 8, 110, 100)), objects((30, 20, 80, 90))]
    first = model.loss(images, targets)
    names = {"class", "box"} | ({"initial_box"} if variant == "+ refinement" else set())
    assert set(first) == names | ({"centerness"} if variant == "baseline" else set())
    for step in range(4):
        total = torch.stack(list(model.loss(images, targets).values())).sum()
        assert torch.isfinite(total)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            # A residual block's last norm starts at zero, so that its convolutions learn from the second step on.
            assert parameter.grad.any() or step == 0, name
    # Better boxes raise the class loss's targets, so that only the box loss must fall.
    assert model.loss(images, targets)["box"] < first["box"]


def test_number_of_parameters_is_the_published_one() -> None:
    with torch.device("meta"):
        model = create_model("vfnet", num_classes=80, pretrained_backbone=False)
    assert isinstance(model, VFNet)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.head, model.fpn, model.backbone)]
    assert counts == [5_514_850, 3_868_672, 23_508_032]
    assert sum(p.numel() for p in model.parameters()) == 32_891_554


def test_scores_start_at_one_percent() -> None:
    scores = torch.cat([c.class_scores for c in tiny_model().eval().candidates(image_batch((64, 64)))])
    assert scores.mean().item() == pytest.approx(0.01, rel=0.05)


def gradient(model: VFNet, terms: tuple[str, ...], of: Tensor) -> Tensor:
    """What the named losses ask of a parameter."""
    torch.manual_seed(5)
    losses = model.loss(image_batch((96, 96), (96, 96)), TWO)
    total = torch.stack([losses[name] for name in terms]).sum()
    found = torch.autograd.grad(total, of, allow_unused=True)[0]
    return torch.zeros_like(of) if found is None else found


@pytest.mark.parametrize("terms", [("box",), ("class",)])
def test_only_the_offsets_lead_from_the_second_look_to_the_initial_box(terms: tuple[str, ...]) -> None:
    """With the share m of the gradient through the offsets, the initial box gets m times the whole: none for m = 0."""
    model = build(offset_gradient=1.0)
    whole = gradient(model, terms, model.head.box.weight)
    assert whole.norm() > 1e-6
    for share in (0.0, 0.1):
        model.head.options = replace(model.options, offset_gradient=share)
        found = gradient(model, terms, model.head.box.weight)
        assert (found - share * whole).norm() <= 2e-3 * share * whole.norm() + 1e-9
    model.head.options = replace(model.options, offset_gradient=0.0)
    assert gradient(model, ("initial_box",), model.head.box.weight).norm() > 1e-4


def test_the_refined_box_teaches_the_initial_one_if_it_is_to() -> None:
    """Where the refinement changes nothing, both losses are of one box, and differ by their weights, 2 and 1.5."""
    model = build(offset_gradient=0.0, refine_gradient=True)
    torch.nn.init.zeros_(model.head.refine.weight)  # scales by exp(0)
    first = gradient(model, ("initial_box",), model.head.box.weight)
    assert first.norm() > 1e-4
    torch.testing.assert_close(gradient(model, ("box",), model.head.box.weight), 2 / 1.5 * first)
    model.head.options = replace(model.options, refine_gradient=False)
    assert not gradient(model, ("box",), model.head.box.weight).any()


def test_quality_is_a_constant_of_the_class_loss() -> None:
    """The class loss must not move the refined box, whose IoU is its target."""
    model = build()
    assert not gradient(model, ("class",), model.head.refine.weight).any()
    assert gradient(model, ("box",), model.head.refine.weight).any()


def test_refined_box_scales_the_initial_one() -> None:
    model = build()
    torch.nn.init.zeros_(model.head.refine.weight)
    assert model.head.refine.bias is not None
    torch.nn.init.constant_(model.head.refine.bias, math.log(2))
    output = model(torch.rand(1, 3, 64, 64))
    torch.testing.assert_close(output.distances, 2 * output.initial)


@pytest.mark.parametrize("variant", LADDER)
def test_batch_without_objects(variant: str) -> None:
    model = build(**LADDER[variant])
    images = image_batch((96, 96), (64, 64))
    losses = assert_losses(model, images, [NOTHING, NOTHING])
    assert losses["class"] > 0
    assert [value for name, value in losses.items() if name != "class"] == [0] * (len(losses) - 1)
    torch.stack(list(model.loss(images, [NOTHING, NOTHING]).values())).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_image_without_objects_only_adds_background() -> None:
    model = build()
    first, second = torch.rand(3, 96, 96), torch.rand(3, 96, 96)
    alone = model.loss([first], TWO[:1])
    both = model.loss([first, second], [TWO[0], NOTHING])
    for name in ("box", "initial_box"):
        torch.testing.assert_close(both[name], alone[name], rtol=1e-4, atol=1e-6)
    assert both["class"] > alone["class"]


def test_crowds_are_left_out_of_the_class_loss_only_if_asked() -> None:
    images = image_batch((96, 96), (96, 96))
    crowded = [objects((4, 4, 60, 52), ignore=[[0.0, 0.0, 96.0, 96.0]]), TWO[1]]
    plain = [objects((4, 4, 60, 52)), TWO[1]]
    model = build()
    published = assert_losses(model, images, crowded)
    assert published == assert_losses(model, images, plain)
    model.options = replace(model.options, ignore_crowds=True)
    ignoring = assert_losses(model, images, [Targets.of(NOTHING.boxes, NOTHING.labels, crowded[0].ignore), TWO[1]])
    assert ignoring["class"] < assert_losses(model, images, [NOTHING, TWO[1]])["class"]


def test_images_of_one_size_do_not_see_each_other() -> None:
    """True only without padding: group norms average over a batch's padding too, as published."""
    model = build()
    images = [torch.rand(3, 64, 96) for _ in range(3)]
    for image, together in zip(images, model.candidates(images), strict=True):
        alone = model.candidates([image])[0]
        order = together.class_scores[:, 0].argsort(), alone.class_scores[:, 0].argsort()
        torch.testing.assert_close(together.class_scores[order[0]], alone.class_scores[order[1]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.boxes[order[0]], alone.boxes[order[1]], rtol=1e-3, atol=1e-2)


def test_padding_is_zero_after_normalising_and_bounds_the_boxes() -> None:
    model = build()
    images = image_batch((64, 96), (40, 30))
    pixels, _ = model._normalise(images)
    assert not pixels[1, :, 40:].any()
    assert not pixels[1, :, :, 30:].any()
    expected = (images.pixels[1, :, :40, :30] - model.backbone.mean[0]) / model.backbone.std[0]
    torch.testing.assert_close(pixels[1, :, :40, :30], expected)
    for candidates, (height, width) in zip(model.candidates(images), images.sizes, strict=True):
        assert candidates.boxes.min() >= 0
        assert candidates.boxes[:, 0::2].max() == width
        assert candidates.boxes[:, 1::2].max() == height


@pytest.mark.parametrize("variant", LADDER)
@pytest.mark.parametrize("threshold", [0.0, 0.25])
def test_both_ways_to_cut_agree_when_nothing_is_cut(variant: str, threshold: float) -> None:
    model = build(**LADDER[variant], score_threshold=threshold, max_detections=100)
    images = image_batch((96, 64))
    whole = model.detect(images)[0]
    model.options = replace(model.options, top_k_of="pairs")
    pairs = model.detect(images)[0]
    assert len(whole) > 3
    torch.testing.assert_close(pairs.scores, whole.scores)
    torch.testing.assert_close(pairs.boxes, whole.boxes)
    assert pairs.labels.equal(whole.labels)


@pytest.mark.parametrize(("top_k", "pairs"), [(1, 5), (3, 14), (10**6, 2 * 62)])
def test_number_of_candidates_is_fixed_by_the_size_of_the_image(top_k: int, pairs: int) -> None:
    """64x48 pixels, padded to 64x64: levels of 64, 16, 4, 1 and 1 points."""
    model = build(top_k=top_k)
    counts = [64, 16, 4, 1, 1]
    expected = sum(min(top_k, count) for count in counts)
    for _ in range(2):
        found = model.candidates(image_batch((64, 48)))[0]
        assert found.boxes.shape == (expected, 4)
        assert found.class_scores.shape == (expected, 2)
        assert found.ious is found.class_scores
        assert found.centerness is None
        torch.nn.init.normal_(model.head.classes.weight)


def test_the_best_locations_of_each_level_are_kept() -> None:
    model = build(top_k=3)
    images = image_batch((64, 64))
    output = model(model._normalise(images)[0])
    scores = output.logits.sigmoid()[0].amax(dim=1).split([64, 16, 4, 1, 1])
    best = torch.cat([level.sort(descending=True).values[:3] for level in scores])
    found = model.candidates(images)[0]
    kept = [found.class_scores.amax(dim=1)[found.levels == level].sort(descending=True).values for level in range(5)]
    torch.testing.assert_close(torch.cat(kept), best)


def test_baseline_ranks_by_score_times_centerness_and_estimates_no_iou() -> None:
    model = build(**LADDER["baseline"])
    images = image_batch((64, 64))
    found = model.candidates(images)[0]
    assert found.ious is None
    assert found.centerness is not None
    assert found.centerness.shape == (64 + 16 + 4 + 1 + 1,)
    best = (found.class_scores * found.centerness[:, None]).max()
    detections = model.detect(images)[0]
    torch.testing.assert_close(detections.scores[0], best)
    assert detections.ious is None


def test_detections_are_suppressed_within_a_class() -> None:
    model = build(nms_iou=0.4)
    found: Detections = model.detect(image_batch((96, 96)))[0]
    same = found.labels[:, None] == found.labels
    overlaps = pairwise_iou(found.boxes, found.boxes).fill_diagonal_(0)
    assert overlaps[same].max() <= 0.4 + 1e-5
    assert found.scores.equal(found.scores.sort(descending=True).values)
    assert found.ious is not None
    assert found.ious.equal(found.scores)  # the IACS is the IoU estimate


@pytest.mark.parametrize("options", [{}, {"top_k_of": "pairs"}, LADDER["baseline"]])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["box", "classes"])
def test_broken_weights_give_no_boxes_or_sound_ones(options: dict[str, Any], value: float, part: str) -> None:
    model = build(**options)
    for parameter in getattr(model.head, part).parameters():
        torch.nn.init.constant_(parameter, value)
    found = model.detect(image_batch((64, 64)))[0]
    assert found.boxes.isfinite().all()
    assert found.scores.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (33, 47), (31, 32), (129, 5)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    model = build()
    found = model.detect([torch.rand(3, *size)])[0]
    assert found.boxes.shape == (len(found), 4)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([size[1], size[0]] * 2)).all()
    losses = model.loss([torch.rand(3, *size)], [objects((0, 0, size[1], size[0]))])
    assert torch.stack(list(losses.values())).isfinite().all()


@pytest.mark.parametrize("unit", ["range", "stride"])
def test_distance_unit(unit: str) -> None:
    model = build(distance_unit=unit, refine=False)
    torch.nn.init.zeros_(model.head.box.weight)
    assert model.head.box.bias is not None
    torch.nn.init.zeros_(model.head.box.bias)
    initial = model(torch.rand(1, 3, 64, 64)).initial[0].split([64, 16, 4, 1, 1])
    # exp(0) = 1 of the unit at every point.
    units = {"range": [64, 128, 256, 512, 1024], "stride": [8, 16, 32, 64, 128]}[unit]
    assert [level.unique().tolist() for level in initial] == [[value] for value in units]
