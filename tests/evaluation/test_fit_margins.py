from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tightbox.errors import UserError
from tightbox.evaluation.coco_files import from_coco
from tightbox.evaluation.fit_margins import (
    MatchedBoxes,
    Simultaneous,
    covered,
    fit_margins,
    images_needed,
    matched_boxes,
    outer_coverage,
)
from tightbox.evaluation.matching import match
from tightbox.promises import Unit, grown


def drawn(count: int, seed: int = 0, classes: int = 1) -> MatchedBoxes:
    """Boxes of 20 to 200 pixels whose sides are off by a fraction of their size that falls with the predicted IoU."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 500, (count, 2)), rng.uniform(20, 200, (count, 2))
    raw = rng.uniform(0.5, 1, count)
    labels = rng.integers(0, classes, count)
    spread = (1.02 - raw)[:, None] * np.tile(size, 2) * (1 + labels)[:, None]
    return MatchedBoxes(
        boxes=np.concatenate([corner, corner + size], axis=1),
        errors=0.3 * spread * rng.normal(size=(count, 4)),
        raw=raw,
        labels=labels,
        images=np.arange(count) // 2,
    )


def squares(errors: Any, images: Any = None, labels: Any = None) -> MatchedBoxes:
    """Boxes of 100 pixels that are trusted alike, off by these errors, (N, 4) or the same on all sides (N,)."""
    count = len(errors)
    return MatchedBoxes(
        boxes=np.tile([0.0, 0.0, 100.0, 100.0], (count, 1)),
        errors=errors if errors.ndim == 2 else np.tile(errors[:, None], (1, 4)),
        raw=np.full(count, 0.5),
        labels=np.zeros(count, dtype=np.int64) if labels is None else labels,
        images=np.arange(count) if images is None else images,
    )


@pytest.mark.parametrize("unit", ["iou", "size", "pixels"])
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("simultaneous", ["max", "bonferroni"])
def test_coverage_on_new_boxes(unit: Unit, inner: bool, simultaneous: Simultaneous) -> None:
    margins = fit_margins(drawn(2000), 0.9, unit, inner=inner, simultaneous=simultaneous)
    fraction = covered(drawn(20_000, seed=1), margins, inner=inner).mean()
    # 1000 scores: the coverage of split conformal prediction is Beta(901, 100), of the standard deviation 0.0095, and
    # room for one of 500 images adds 0.001. Four independent sides by Bonferroni cover 0.975^4 = 0.904.
    assert 0.9 - 3 * 0.0095 < fraction < 0.905 + 3 * 0.0095


def test_covered_is_that_the_grown_box_holds_the_object() -> None:
    found = drawn(500, seed=3)
    margins = fit_margins(drawn(500), 0.8)
    distances = margins.distances(found.boxes, found.raw, found.labels)
    objects, outer = grown(found.boxes, found.errors), grown(found.boxes, distances)
    holds = (outer[:, :2] <= objects[:, :2]).all(1) & (outer[:, 2:] >= objects[:, 2:]).all(1)
    assert (holds == covered(found, margins)).all()
    assert 0 < holds.sum() < 500


def test_scaled_margins_are_smaller_at_equal_coverage() -> None:
    found, new = drawn(4000), drawn(4000, seed=1)
    extra = {}
    for unit in ("iou", "size", "pixels"):
        distances = fit_margins(found, 0.9, unit).distances(new.boxes, new.raw, new.labels)
        outer = grown(new.boxes, distances)
        extra[unit] = ((outer[:, 2:] - outer[:, :2]).prod(1) / (new.boxes[:, 2:] - new.boxes[:, :2]).prod(1) - 1).mean()
    assert extra["iou"] < 0.85 * extra["size"] < 0.85 * extra["pixels"]


def test_the_quantile_by_hand() -> None:
    # One box in each of 40 images, 20 of them in the half of the quantile, all errors the same on the four sides.
    # With fewer than 25 boxes no proportions are learned, so the margin is the ⌈21 × 0.9⌉ = 19th of 20 errors.
    count = 40
    errors = np.random.default_rng(1).permutation(np.arange(1.0, count + 1))
    found = squares(errors)
    half = np.random.default_rng(7).permutation(count)[:20]
    rest = np.sort(np.delete(errors, half))
    for unit, size in (("pixels", 1.0), ("size", 100.0)):
        margins = fit_margins(found, 0.9, unit, seed=7)  # type: ignore[arg-type]
        assert margins.sides == pytest.approx((rest[18] / size,) * 4)


def test_the_quantile_of_several_boxes_in_each_image_by_hand() -> None:
    """Five boxes in each of 40 images: of 100 scores in 20 images the ⌈100 · 21/20 · 0.9⌉ = ⌈94.5⌉ = 95th."""
    errors = np.random.default_rng(1).permutation(np.arange(1.0, 201))
    images = np.arange(200) // 5
    found = squares(errors, images)
    half = np.random.default_rng(7).permutation(40)[:20]
    rest = np.sort(errors[~np.isin(images, half)])
    assert fit_margins(found, 0.9, "pixels", seed=7).sides == pytest.approx((rest[94],) * 4)


@pytest.mark.parametrize("images", [20, 22, 40])
def test_coverage_where_the_boxes_of_an_image_are_alike(images: int) -> None:
    """All ten errors of an image are the same, so that only images can be exchanged.

    Of the 10 (11, 20) images of the second half the 10th (11th, 19th) error is taken, which a new one exceeds in 1 of
    11 (1 of 12, 2 of 21) draws; the standard deviation over 400 calibrations is at most 0.09 / √400. Counting boxes
    would give the ⌈111 · 0.9⌉ = 100th of 110 scores, the 10th of 11 errors, which a new one exceeds in 1 of 6.
    """
    rng, kept = np.random.default_rng(0), []
    for seed in range(400):
        found = squares(np.repeat(rng.normal(size=images), 10), np.arange(10 * images) // 10)
        margins = fit_margins(found, 0.9, "pixels", seed=seed)
        new = rng.normal(size=4000)
        kept.append(np.mean(new <= max(margins.sides[0], 0)))
    assert np.mean(kept) > 0.9 - 3 * 0.09 / 20


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("outwards", [0.1, -0.1])
def test_outer_margins_are_of_objects_beyond_their_boxes_and_inner_ones_of_those_within(
    inner: bool, outwards: float
) -> None:
    found = squares(np.full(60, 100 * outwards))
    needed = max(-outwards if inner else outwards, 0)
    assert fit_margins(found, 0.9, "size", inner=inner).sides == pytest.approx((needed,) * 4)


def test_a_class_has_margins_where_all_together_need_none() -> None:
    """Nineteen of twenty boxes are far too large, of one class; those of the other are as often too small as not."""

    def two_classes(seed: int) -> MatchedBoxes:
        rng = np.random.default_rng(seed)
        labels = (rng.random(8000) < 0.05).astype(np.int64)
        loose, close = -rng.uniform(1, 5, (8000, 4)), rng.normal(0, 5, (8000, 4))
        return squares(np.where(labels[:, None] == 0, loose, close), labels=labels)

    margins, new = fit_margins(two_classes(0), 0.9, "size", classes=2), two_classes(1)
    assert margins.about["classes_without_own"] == []
    kept = covered(new, margins)
    assert kept[new.labels == 0].all()
    # Some 200 scores to learn from and 400 to see it: a standard deviation of √(0.09 / 200 + 0.09 / 400) = 0.026.
    assert kept[new.labels == 1].mean() == pytest.approx(0.9, abs=3 * 0.026)


@pytest.mark.parametrize(
    ("coverage", "simultaneous", "needed"),
    # (K + 1) / K · 0.9 ≤ 1 from K = 9 on: 10 / 9 · 0.9 = 1. Bonferroni at 0.975: 40 / 39 · 0.975 = 1.
    [(0.9, "max", 9), (0.95, "max", 19), (0.99, "max", 99), (0.5, "max", 1), (0.9, "bonferroni", 39)],
)
def test_images_needed(coverage: float, simultaneous: Simultaneous, needed: int) -> None:
    assert images_needed(coverage, simultaneous) == needed
    fit_margins(drawn(4 * needed), coverage, "size", simultaneous=simultaneous)  # two boxes in each image
    few = drawn(4 * needed)[np.arange(4 * needed - 4)]
    with pytest.raises(UserError, match=f"at least {needed} images with matched boxes"):
        fit_margins(few, coverage, "size", simultaneous=simultaneous)


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_a_coverage_that_is_none(coverage: float) -> None:
    with pytest.raises(UserError, match="more than 0 and less than 1"):
        fit_margins(drawn(100), coverage)


def test_classes_of_their_own() -> None:
    found = drawn(4000, classes=2)
    margins = fit_margins(found, 0.9, classes=3)
    assert margins.classes[2] is None
    assert margins.about["classes_without_own"] == [2]
    new = drawn(20_000, seed=1, classes=2)
    for label in (0, 1):
        part = new[new.labels == label]
        # Some 1000 scores of each class: a standard deviation of 0.0095; together the first class covers far more.
        assert covered(part, margins).mean() == pytest.approx(0.9, abs=0.03)
        assert abs(covered(part, fit_margins(found, 0.9)).mean() - 0.9) > 0.03


def test_nothing_learned_from_too_few_boxes_but_the_quantile() -> None:
    margins = fit_margins(drawn(60), 0.9)
    assert margins.factors == (1.0,)
    assert margins.factor([0.1, 0.9]).tolist() == [1, 1]


def test_predicted_ious_that_tell_nothing_change_nothing() -> None:
    found = drawn(1000)
    wrong = MatchedBoxes(found.boxes, found.errors, 1.5 - found.raw, found.labels, found.images)  # trusts the worst
    margins = fit_margins(wrong, 0.9)
    assert margins.factors == (1.0,)
    assert margins.sides == pytest.approx(fit_margins(wrong, 0.9, "size").sides)


def test_predicted_ious_are_needed() -> None:
    found = drawn(100)
    without = MatchedBoxes(found.boxes, found.errors, np.full(100, np.nan), found.labels, found.images)
    with pytest.raises(UserError, match="choose margins by size"):
        fit_margins(without, 0.9)
    fit_margins(without, 0.9, "size")


def test_exact_boxes_need_no_margin() -> None:
    found = drawn(200)
    exact = MatchedBoxes(found.boxes, 0 * found.errors, found.raw, found.labels, found.images)
    margins = fit_margins(exact, 0.9)
    assert margins.sides == (0.0,) * 4
    assert covered(exact, margins).all()
    assert (covered(found, margins) == (found.errors <= 1e-9).all(axis=1)).all()


def test_matched_boxes_of_files() -> None:
    def row(image: int, category: int, bbox: list[float], **more: Any) -> dict[str, Any]:
        return {"id": image, "image_id": image, "category_id": category, "bbox": bbox} | more

    content = {
        "images": [{"id": 1}, {"id": 2}],
        "annotations": [row(1, 5, [10, 10, 20, 20]), row(2, 3, [0, 0, 10, 10])],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    }
    results = [row(1, 5, [11, 9, 20, 19], score=0.9, iou=0.7), row(2, 3, [50, 50, 10, 10], score=0.8, iou=0.6)]
    found = matched_boxes(match(*from_coco(content, results), (0.5,)), class_names=["dog", "cat"])
    # The box (11, 9, 31, 28) and its object (10, 10, 30, 30): outside on the left by 1, above by -1, right -1, below 2.
    np.testing.assert_allclose(found.errors, [[1, -1, -1, 2]])
    assert (found.raw.tolist(), found.labels.tolist(), found.images.tolist()) == ([0.7], [0], [0])


def test_outer_boxes_that_hold_their_object() -> None:
    """Three objects in three images: one held, one held but for its right side, one without a detection on it."""
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 10, 10]]
    content = {
        "images": [{"id": i} for i in (1, 2, 3)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10]} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    rows = [
        {"image_id": i, "category_id": 1, "bbox": box, "score": 0.1 * i}
        for i, box in zip((1, 2, 3), boxes, strict=True)
    ]
    outer = np.array([[-1.0, 0, 11, 10], [-1, -1, 9.9, 11], [0, 0, 100, 100]])
    matches = match(*from_coco(content, rows))
    assert outer_coverage(matches, outer) == (1, 2)
    assert outer_coverage(match(*from_coco(content, [])), np.empty((0, 4))) == (0, 0)
