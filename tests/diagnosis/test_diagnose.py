from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.results import example, many
from tightbox.diagnosis.diagnose import diagnose_results
from tightbox.diagnosis.evidence import Evidence, gather_evidence
from tightbox.diagnosis.gallery import pick_cards
from tightbox.diagnosis.numbers import Diagnosis
from tightbox.diagnosis.sentences import sentences
from tightbox.errors import UserError
from tightbox.evaluation.coco import AveragePrecision, evaluate
from tightbox.evaluation.coco_files import from_coco
from tightbox.evaluation.matching import match
from tightbox.inference.before_suppression import BestCandidates


def diagnosed(ground_truth: Any, results: Any) -> Diagnosis:
    return diagnose_results(*from_coco(ground_truth, results), title="an example")


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnosed(*example())


def test_what_there_is(diagnosis: Diagnosis) -> None:
    assert (diagnosis.images, diagnosis.objects, diagnosis.detections) == (3, 4, 5)
    # Objects 1 and 2 are found, by boxes of IoU 0.6 and 0.8; the best boxes have 0.95, 0.8, 0.4 and none.
    assert diagnosis.all.found == 0.5
    assert diagnosis.all.mean_iou == pytest.approx(0.7)
    assert diagnosis.all.best_iou == pytest.approx((0.95 + 0.8 + 0.4 + 0) / 4)
    assert diagnosis.per_size["small"].objects == 1
    assert diagnosis.per_size["medium"].found == 0
    assert diagnosis.per_size["large"].mean_iou == pytest.approx(0.7)
    assert diagnosis.per_class["emu"].group.objects == 0
    assert diagnosis.per_class["emu"].lrp.error is None


def test_tightness_counts_every_object_once(diagnosis: Diagnosis) -> None:
    # Kept 0.6, 0.8, the nearest 0.4, and none; best 0.95 instead of 0.6. These are edges of bins, so look around them.
    kept, best = diagnosis.tightness.kept, diagnosis.tightness.best
    assert [sum(kept[start:stop]) for start, stop in ((0, 1), (7, 9), (11, 13), (15, 17), (18, 20))] == [1, 1, 1, 1, 0]
    assert [sum(best[start:stop]) for start, stop in ((0, 1), (7, 9), (11, 13), (15, 17), (18, 20))] == [1, 1, 0, 1, 1]
    assert sum(diagnosis.tightness.kept) == sum(diagnosis.tightness.best) == diagnosis.objects


def test_ap_lost(diagnosis: Diagnosis) -> None:
    # Cats: 3 objects, detections at 0.9 (IoU 0.6), 0.7 (0.4), 0.6 (0.95). At the IoUs 0.50 to 0.60 the first is right
    # and the others are wrong, so recall 1/3 at precision 1: 34 of 101 recalls. From 0.65 on the third is right only:
    # 34 of 101 at precision 1/3. Dogs: 1 to IoU 0.80, then 0. AP is the mean of both classes over ten thresholds.
    third = 34 / 101
    cat, dog = (3 * third + 7 * third / 3) / 10, 0.7
    assert diagnosis.aps.by_class["cat"] == pytest.approx(cat)
    assert diagnosis.aps.ap == pytest.approx((cat + dog) / 2)
    # Ranked by true IoU the cats' order is 0.95, 0.7 (its box is on no object, so it keeps its score), 0.6: the first
    # is right at all thresholds.
    assert diagnosis.lost["ranking"] is not None
    assert diagnosis.lost["ranking"].by_class["cat"] == pytest.approx(third - cat)
    assert diagnosis.lost["ranking"].by_class["dog"] == pytest.approx(0)
    # With ground-truth boxes the first of the cats and the dog are right at all thresholds.
    assert diagnosis.lost["localisation"] is not None
    assert diagnosis.lost["localisation"].ap == pytest.approx((third + 1) / 2 - (cat + dog) / 2)
    # Two of the three cats have no box on them. Without these recall is 1 where it was 1/3.
    assert diagnosis.lost["misses"] is not None
    assert diagnosis.lost["misses"].by_class["cat"] == pytest.approx((3 + 7 / 3) / 10 - cat)
    assert diagnosis.lost["suppression"] is None
    assert diagnosis.lost["misses"].by_class["emu"] is None


def test_tide_and_reliability(diagnosis: Diagnosis) -> None:
    count = diagnosis.errors.count
    assert (count.localisation, count.duplicate, count.background) == (1, 1, 1)
    # |predicted - true| of the predicted IoUs, alone in their bins but for the two of 0.8, whose means are 0.8, 0.875.
    expected = (abs(0.7 - 0.6) + 2 * abs(0.8 - 0.875) + abs(0.5 - 0.4) + abs(0.3 - 0)) / 5
    assert diagnosis.predicted_iou is not None
    assert diagnosis.predicted_iou.error == pytest.approx(expected)
    # Over boxes above 0.5: scores 0.9, 0.8, 0.6 of IoUs 0.6, 0.8, 0.95 are in the wrong order throughout.
    assert diagnosis.score.correlation.spearman == pytest.approx(-1)
    assert sorted(diagnosis.score.points) == [(0.5, 0.0), (0.6, 0.95), (0.7, 0.4), (0.8, 0.8), (0.9, 0.6)]


def test_gallery(diagnosis: Diagnosis) -> None:
    assert diagnosis.better_boxes == 1
    assert diagnosis.iou_lost == pytest.approx(0.35)
    better, small, medium, *false = sorted(
        diagnosis.gallery, key=lambda card: (card.kind != "better", card.kind != "miss", card.severity)
    )
    assert (better.kind, better.image.id, better.class_name, better.size) == ("better", 1, "cat", "large")
    assert better.severity == pytest.approx(0.35)
    assert better.kept is not None
    assert better.better is not None
    assert better.kept.score == 0.9
    assert better.kept.iou == pytest.approx(0.6)
    assert (better.better.score, better.better.predicted_iou) == (0.6, 0.8)
    assert better.better.iou == pytest.approx(0.95)
    assert better.why == "the better box was out-ranked"
    assert (small.size, small.kept, small.why) == ("small", None, "no box of its class touches it")
    assert (medium.size, medium.why) == ("medium", "the nearest box of its class is too loose")
    assert [(card.severity, card.class_name) for card in false] == [(0.5, "emu"), (0.6, "cat"), (0.7, "cat")]
    assert [card.why for card in false] == [
        "on no object",
        "a second box on an object that was found",
        "on its object, but too loose",
    ]


# What candidates add: the objects of the example, with a tightest candidate of this IoU each.


def with_candidates(ious: list[float], any_ious: list[float]) -> Evidence:
    """The example's evidence; every candidate is reported as a box at (1, 2) with the score 0.25 and no IoU."""
    matches = match(*from_coco(*example()), (0.5,))
    boxes = np.array([[1.0, 2, 3, 4]] * 4)
    candidates = BestCandidates(np.array(ious), boxes, np.full(4, 0.25), np.full(4, np.nan), np.array(any_ious))
    return gather_evidence(matches, candidates)


def test_evidence_of_candidates() -> None:
    # Object 1 has detections of 0.6 (kept) and 0.95, object 2 one of 0.8 (kept), object 3 one of 0.4, object 4 none.
    evidence = with_candidates([0.97, 0.8005, 0.7, 0.3], [1.0, 1.0, 1.0, 0.6])
    assert evidence.kept_iou.tolist() == pytest.approx([0.6, 0.8, 0, 0])
    assert evidence.nearest_iou.tolist() == pytest.approx([0.95, 0.8, 0.4, 0])
    # A candidate less than 0.001 tighter than the nearest detection is that detection.
    assert evidence.from_candidates.tolist() == [True, False, True, True]
    assert evidence.best_iou.tolist() == pytest.approx([0.97, 0.8, 0.7, 0.3])
    assert evidence.had_better_box.tolist() == [True, False, False, False]
    assert evidence.missed.tolist() == [False, False, True, True]
    assert evidence.suppressed.tolist() == [False, False, True, False]
    assert evidence.scored_low.tolist() == [False, False, False, True]


def test_cards_of_candidates() -> None:
    cards = [
        card
        for card in pick_cards(with_candidates([0.97, 0.8, 0.7, 0.3], [1, 1, 1, 0.6]))
        if card.kind != "false_positive"
    ]
    told = {(card.kind, card.size): (card.why, None if card.better is None else card.better.iou) for card in cards}
    assert told == {
        ("better", "large"): ("the better box was suppressed", 0.97),
        ("miss", "medium"): ("a good box was there, and was suppressed", 0.7),
        ("miss", "small"): ("a good box was there, but scored below the threshold", None),
    }
    shown = cards[0].better
    assert shown is not None
    assert (shown.box, shown.class_name, shown.score, shown.predicted_iou) == ((1, 2, 3, 4), "cat", 0.25, None)
    nothing = pick_cards(with_candidates([0.0] * 4, [0.0] * 4))
    assert {card.why for card in nothing if card.kind == "miss"} == {"no candidate of any score overlaps it by 0.5"}


@pytest.mark.parametrize("nearest", [0.4995, 0.3])
def test_a_suppressed_box_is_one_in_the_counts_and_on_its_card(nearest: float) -> None:
    """Also where it is hardly tighter than the nearest detection, which is not on the object."""
    ground_truth, results = example()
    results[3]["bbox"][2] = 50 * nearest  # the detection of object 3, as high as it
    matches = match(*from_coco(ground_truth, results), (0.5,))
    columns = np.full((5, 4), 0.5)
    evidence = gather_evidence(matches, BestCandidates(columns[0], columns[:4], columns[1], columns[2], columns[3]))
    card = next(c for c in pick_cards(evidence) if c.kind == "miss" and c.size == "medium")
    assert evidence.suppressed[2]
    assert card.why == "a good box was there, and was suppressed"
    assert card.better is not None


def test_no_class_or_size_is_crowded_out() -> None:
    """100 large false positives of high scores, and 3 small ones of another class: the small ones are all shown."""
    ground_truth, _ = example()
    rows = [
        {"image_id": 2, "category_id": 1, "bbox": [300, 200, 120, 120], "score": 0.9 - 0.001 * i} for i in range(100)
    ] + [{"image_id": 2, "category_id": 3, "bbox": [500, 20, 9, 9 + i], "score": 0.1} for i in range(3)]
    wrong = [card for card in diagnosed(ground_truth, rows).gallery if card.kind == "false_positive"]
    assert len(wrong) == 48
    assert [card.class_name for card in wrong].count("emu") == 3
    assert [card.severity for card in wrong] == sorted((card.severity for card in wrong), reverse=True)


def test_notes_name_what_cannot_be_known(diagnosis: Diagnosis) -> None:
    assert any("what suppression removed cannot be known" in note for note in diagnosis.notes)
    assert any("emu" in note and "1 detections" in note for note in diagnosis.notes)


def test_sentences(diagnosis: Diagnosis) -> None:
    said = sentences(diagnosis)
    assert said["better"].startswith("For 1 of 4 objects a tighter box was there in the file")
    assert "50% of the 4 objects are found, with a mean IoU of 0.700" in said["tight"]
    assert "dog does best" in said["groups"]
    assert said["lost"].startswith(f"{100 * diagnosis.lost['localisation'].ap:.1f} points of AP are lost")  # type: ignore[union-attr, operator]


def test_the_ladder_is_the_evaluators_of_changed_results() -> None:
    """Which are made here row by row: a box on an object of its class gets that object's box, 1, or the true IoU."""
    ground_truth, results = many(4)
    changed: dict[str, list[dict[str, Any]]] = {"as predicted": results}
    for row in results:
        objects = [a for a in ground_truth["annotations"] if (a["image_id"], a["category_id"]) == _place(row)]
        iou, nearest = max(((_iou(row["bbox"], a["bbox"]), a["bbox"]) for a in objects), default=(0.0, []))
        for name, on_object in (
            ("box := ground-truth box", {"bbox": nearest}),
            ("class score := 1", {"score": 1.0}),
            ("class score := true IoU", {"score": iou}),
        ):
            changed.setdefault(name, []).append(row | on_object if iou >= 0.5 else row)
    ladder = {variant.name: variant.alone for variant in diagnosed(ground_truth, results).ladder}
    assert set(ladder) == set(changed)
    for name, rows in changed.items():
        ours, theirs = ladder[name], AveragePrecision.of_coco(evaluate(*from_coco(ground_truth, rows)))
        assert ours is not None
        assert ours.ap == pytest.approx(theirs.ap, abs=1e-6), name
        assert ours.by_iou == pytest.approx(theirs.by_iou, abs=1e-6), name


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return row["image_id"], row["category_id"]


def _iou(a: list[float], b: list[float]) -> float:
    sides = [min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def test_json_is_plain(diagnosis: Diagnosis) -> None:
    text = json.dumps(diagnosis.to_json(), allow_nan=False)
    assert json.loads(text)["coco"]["ap"] == diagnosis.coco.ap


# Bad input


def _unknown_image(ground_truth: Any, results: Any) -> None:
    results[1]["image_id"] = 77


def _unknown_class(ground_truth: Any, results: Any) -> None:
    results[1]["category_id"] = 77


def _nan(ground_truth: Any, results: Any) -> None:
    results[2]["score"] = float("nan")


def _logit(ground_truth: Any, results: Any) -> None:
    results[2]["score"] = 3.5


def _nameless(ground_truth: Any, results: Any) -> None:
    del ground_truth["categories"][0]["name"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_unknown_image, "result 2 has the image_id 77"),
        (_unknown_class, "result 2 has the category_id 77"),
        (_nan, "result 3 has the score nan"),
        (_logit, "result 3 has the score 3.5"),
        (_nameless, "category with the id 1 has no name"),
    ],
)
def test_bad_rows(change: Any, message: str) -> None:
    ground_truth, results = example()
    change(ground_truth, results)
    with pytest.raises(UserError, match=message):
        diagnosed(ground_truth, results)


def test_corners_are_recognised() -> None:
    ground_truth, results = many(10)
    for row in ground_truth["annotations"]:
        row["bbox"][1] += 200
    for row in results:
        x, y, width, height = row["bbox"]
        row["bbox"] = [x, y + 200, x + width, y + 200 + height]
    with pytest.raises(UserError, match="look like corners"):
        diagnosed(ground_truth, results)


def test_no_detections(tmp_path: Path) -> None:
    ground_truth, _ = example()
    empty = diagnosed(ground_truth, [])
    assert empty.aps.ap == 0
    assert empty.all.mean_iou is None
    assert empty.predicted_iou is None
    assert {card.kind for card in empty.gallery} == {"miss"}
    assert any("not a single detection" in note for note in empty.notes)
    said = sentences(empty)
    assert all(said.values())
    assert said["lost"] == "All 4 objects are missed, so AP is 0.0."
    assert said["kinds"].startswith("Every object is missed")
    assert said["groups"] == "All 2 classes with objects have the same AP, 0.0."
    assert said["better"] == "No box was kept on any object, so there is none to be tighter than."


def test_sentences_of_one_class_and_of_a_tie() -> None:
    ground_truth, results = example()
    one = ground_truth | {"annotations": ground_truth["annotations"][:1]}
    assert sentences(diagnosed(one, []))["lost"] == "The only object is missed, so AP is 0.0."
    assert sentences(diagnosed(one, results))["groups"].startswith("There is one class with objects")
    # Both large objects are found as they are: every class has AP 1.
    large = ground_truth | {"annotations": ground_truth["annotations"][:2]}
    found = [row | {"score": 0.9} for row in large["annotations"]]
    said = sentences(diagnosed(large, found))
    assert said["groups"] == "All 2 classes with objects have the same AP, 100.0."
    assert said["lost"] == "AP is 100.0, and none of the stages costs any."
    said = sentences(diagnosed(ground_truth, [row for row in found if row["category_id"] == 1]))
    assert "cat does best" in said["groups"]
    assert "dog worst (0.0)" in said["groups"]


def test_large_ids_change_nothing_but_themselves() -> None:
    ground_truth, results = example()
    expected = diagnosed(ground_truth, results)
    for row in (*ground_truth["annotations"], *results):
        row["image_id"] += 2**53
        row["category_id"] += 10**30
    for key, first in (("images", 2**53), ("categories", 10**30)):
        for row in ground_truth[key]:
            row["id"] += first
    found = diagnosed(ground_truth, results)
    assert (found.coco, found.lost, found.errors) == (expected.coco, expected.lost, expected.errors)
    assert {card.image.id for card in found.gallery} == {2**53 + card.image.id for card in expected.gallery}


def test_no_objects() -> None:
    ground_truth, results = example()
    nothing = diagnosed(ground_truth | {"annotations": []}, results)
    assert nothing.aps.ap is None
    assert {card.kind for card in nothing.gallery} == {"false_positive"}
    assert sentences(nothing)["lost"] == "There is no object in the truth, so there is no AP to lose."
    assert sentences(nothing)["kinds"] == "There is no object, so there is no AP50 for mistakes to cost."
    assert sentences(nothing)["groups"] == "There is no class with objects, so there is nothing to compare."
    json.dumps(nothing.to_json(), allow_nan=False)


def test_no_images_at_all() -> None:
    empty = diagnosed({"images": [], "annotations": [], "categories": []}, [])
    assert empty.objects == 0
    assert empty.gallery == ()
    assert all(sentences(empty).values())
