from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, t

from tightbox.errors import UserError
from tightbox.evaluation.coco_files import from_coco
from tightbox.evaluation.fit_miss_bound import bound_of_scores, fit_miss_bound, misses_allowed, object_scores
from tightbox.evaluation.matching import Matches, match
from tightbox.promises import MissBound


def found(scores: list[float | None]) -> Matches:
    """One object in each image, found with this score, or not at all."""
    box: dict[str, Any] = {"category_id": 1, "bbox": [0, 0, 10, 10]}
    content = {
        "images": [{"id": i} for i in range(len(scores))],
        "annotations": [{"id": i + 1, "image_id": i} | box for i in range(len(scores))],
        "categories": [{"id": 1, "name": "cat"}],
    }
    rows = [{"image_id": i, "score": s} | box for i, s in enumerate(scores) if s is not None]
    return match(*from_coco(content, rows), (0.5,))


@pytest.mark.parametrize("objects", [22, 50, 200, 1000])
@pytest.mark.parametrize("delta", [0.05, 0.1])
def test_allowed_misses_are_those_of_clopper_and_pearson(objects: int, delta: float) -> None:
    # The upper bound of k misses in n at confidence 1 - δ is the quantile 1 - δ of Beta(k + 1, n - k).
    bounds = [beta.ppf(1 - delta, k + 1, objects - k) for k in range(objects)]
    assert misses_allowed(objects, 0.1, delta) == sum(bound <= 0.1 for bound in bounds) - 1


def test_threshold_by_hand() -> None:
    # 50 objects, of which 2 may be missed: P(Binomial(50, 0.1) ≤ 1) = 0.0338 and ≤ 2 0.1117 > 0.1, so only 1.
    assert misses_allowed(50, 0.1, 0.1) == 1
    scores = [None, *(0.02 * i for i in range(1, 50))]
    bound = fit_miss_bound(found(scores), 0.1, 0.1)
    assert bound == MissBound(0.1, 0.1, 0.5, 0.02, 50, 1)
    assert np.count_nonzero(object_scores(found(scores)) == -np.inf) == 1


def test_the_promise_is_kept_in_nine_of_ten_draws() -> None:
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(400):
        bound = fit_miss_bound(found(np.round(rng.uniform(0, 1, 100), 6).tolist()), 0.1, 0.1)
        kept.append(bound.threshold <= 0.1)  # the fraction that is missed at a threshold is the threshold itself
    # At least 0.9, with a standard deviation of 0.015 over 400 draws.
    assert np.mean(kept) > 0.9 - 3 * 0.015
    assert not all(kept)


@pytest.mark.parametrize(
    ("scores", "miss", "delta", "message"),
    [
        ([0.5] * 21, 0.1, 0.1, "at least 22 objects, but there are 21"),  # 0.9^22 = 0.098, 0.9^21 = 0.109
        ([], 0.1, 0.1, "there are 0"),
        ([None] * 30 + [0.5] * 30, 0.1, 0.1, "30 of 60 objects are missed at every score"),
        ([0.5] * 30, 0.0, 0.1, "miss is 0"),
        ([0.5] * 30, 0.1, 1.0, "delta is 1"),
    ],
)
def test_what_cannot_be_promised(scores: list[float | None], miss: float, delta: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_miss_bound(found(scores), miss, delta)


def test_objects_that_are_missed_together_count_as_fewer() -> None:
    """40 images of 10 objects, each image with one score: there are but 40 facts, not 400."""
    scores = np.repeat(np.linspace(0, 1, 40), 10)
    together = bound_of_scores(scores, np.repeat(np.arange(40), 10), 0.2, 0.1)
    apart = bound_of_scores(scores, np.arange(400), 0.2, 0.1)
    assert together.threshold < apart.threshold
    # All that a slow reading of the formula would allow, with one image of ten missed objects more.
    allowed = -1
    for k in range(misses_allowed(400, 0.2, 0.1) + 1):
        missed = np.append(np.bincount(np.repeat(np.arange(40), 10)[:k], minlength=40), 10)
        ratio = (k + 10) / 410
        spread = np.sqrt(41 / 40 * np.sum((missed - ratio * 10) ** 2)) / 410
        if ratio + t.ppf(0.9, 40) * spread > 0.2:
            break
        allowed = k
    assert 0 < allowed < misses_allowed(400, 0.2, 0.1)
    assert together.threshold == scores[allowed]


@pytest.mark.parametrize(("images", "objects"), [(1, 30), (3, 10), (10, 10)])
def test_few_images_promise_nothing_however_many_objects_they_have(images: int, objects: int) -> None:
    of_image = np.repeat(np.arange(images), objects)
    with pytest.raises(UserError, match=f"takes objects of more than {images} images"):
        bound_of_scores(np.linspace(0.5, 1, images * objects), of_image, 0.1, 0.1)


@pytest.mark.parametrize(("images", "objects"), [(30, 10), (100, 10)])
def test_the_promise_is_kept_where_some_images_are_hard(images: int, objects: int) -> None:
    """Twelve of a hundred images are hard, and all of their objects have low scores."""
    rng, of_image = np.random.default_rng(0), np.repeat(np.arange(images), objects)
    kept = []
    for _ in range(400):
        hard, chance = rng.random(images) < 0.12, rng.random(images * objects)
        scores = np.where(hard[of_image], 0.05 + 0.05 * chance, 0.5 + 0.5 * chance)
        threshold = bound_of_scores(scores, of_image, 0.1, 0.1).threshold
        missed = 0.12 * np.clip((threshold - 0.05) / 0.05, 0, 1) + 0.88 * np.clip((threshold - 0.5) / 0.5, 0, 1)
        kept.append(missed <= 0.1)
    assert np.mean(kept) > 0.9 - 3 * 0.015  # at least 0.9, with a standard deviation of 0.015 over 400 draws


def test_json_and_back() -> None:
    bound = MissBound(0.1, 0.05, 0.5, 0.3, 100, 4)
    assert MissBound.from_json(bound.to_json()) == bound
    with pytest.raises(UserError, match="calibrate again"):
        MissBound.from_json({"miss": "x"})
