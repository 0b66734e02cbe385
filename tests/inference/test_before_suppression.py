from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.data import three_images
from tests.helpers.models import tiny_iou_net, tiny_model, tiny_unitbox
from tightbox.diagnosis.diagnose import diagnose_results
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.inference.before_suppression import look_before_suppression, true_suppression
from tightbox.inference.candidates import iterate_assigned, iterate_detected
from tightbox.inference.detect import Loading, detect_data
from tightbox.models import Detector
from tightbox.structures import Candidates, Targets
from tightbox.suppress import greedy_nms

# One object 100 wide; boxes of the same height and a fraction of the width have that share as IoU.
OBJECT = Targets.of(torch.tensor([[0.0, 0, 100, 100]]), torch.tensor([0]))
OWN = partial(greedy_nms, iou_threshold=0.6)
SUPPRESS = partial(true_suppression, own=OWN, targets=OBJECT, score_threshold=0.05)


def candidates(*rows: tuple[float, float, float]) -> tuple[Candidates, torch.Tensor]:
    """From (width, score of a cat, score of a dog); the predicted IoU is the width in per cent."""
    boxes = torch.tensor([[0.0, 0, width, 100] for width, *_ in rows])
    scores = torch.tensor([scores for _, *scores in rows])
    return Candidates(boxes, scores, ious=boxes[:, 2] / 100), scores


def test_the_tightest_box_is_left_with_the_best_score() -> None:
    # Greedy NMS keeps the box of IoU 0.7 for its score, and the one of 0.55, which overlaps it by more, goes; that of
    # 0.95 overlaps it by 0.74 and goes too.
    given = candidates((70, 0.9, 0), (95, 0.3, 0), (55, 0.2, 0))
    assert OWN(*given).boxes[:, 2].tolist() == [70]
    found = SUPPRESS(*given)
    assert found.boxes[:, 2].tolist() == [95]
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.ious is not None
    assert found.ious.tolist() == pytest.approx([0.95])


def test_second_boxes_on_an_object_go_and_others_stay() -> None:
    # 100 and 55 overlap by 0.55 only, so greedy NMS keeps both; that of 30 per cent is on no object, and so is a dog's.
    given = candidates((100, 0.5, 0), (55, 0.8, 0), (30, 0.4, 0), (90, 0, 0.7))
    assert len(OWN(*given)) == 4
    found = SUPPRESS(*given)
    assert found.scores.tolist() == pytest.approx([0.8, 0.7, 0.4])
    assert found.boxes[:, 2].tolist() == [100, 90, 30]
    assert found.labels.tolist() == [0, 1, 0]


def test_scores_below_the_threshold_are_no_candidates() -> None:
    found = SUPPRESS(*candidates((60, 0.9, 0), (100, 0.04, 0)))
    assert found.boxes[:, 2].tolist() == [60]


def test_without_objects_it_is_the_detectors_own() -> None:
    nothing = Targets.of(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    given = candidates((70, 0.9, 0), (95, 0.3, 0))
    found = true_suppression(*given, own=OWN, targets=nothing, score_threshold=0.05)
    assert found.boxes.tolist() == OWN(*given).boxes.tolist()
    empty = Candidates(torch.zeros(0, 4), torch.zeros(0, 2)), torch.zeros(0, 2)
    assert len(true_suppression(*empty, own=OWN, targets=OBJECT, score_threshold=0.05)) == 0


@pytest.mark.parametrize("make", [tiny_model, tiny_iou_net, tiny_unitbox])
def test_the_network_runs_once_and_finds_what_it_finds_alone(
    make: Callable[..., Detector], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    data = three_images(tmp_path)
    model, passes = make(class_names=data.class_names), []
    alone = detect_data(model, data, loading=Loading(batch_size=1))
    images = list(iterate_assigned(model, data, loading=Loading(batch_size=1)))
    network = type(model).forward

    def counted(self: Detector, pixels: torch.Tensor) -> object:
        passes.append(len(pixels))
        return network(self, pixels)

    monkeypatch.setattr(type(model), "forward", counted)
    both = list(iterate_detected(model, data, loading=Loading(batch_size=1)))
    assert passes == [1, 1, 1]
    for (image, found), expected in zip(both, images, strict=True):
        assert image.index == expected.index
        assert torch.equal(image.matched, expected.matched)
        assert torch.equal(image.candidates.boxes, expected.candidates.boxes)
        assert torch.equal(image.candidates.class_scores, expected.candidates.class_scores)
        assert torch.equal(found.boxes, alone[image.index].boxes)
        assert torch.equal(found.scores, alone[image.index].scores)
    # Afterwards the model sees every batch anew.
    detect_data(model, data, loading=Loading(batch_size=1))
    assert passes == [1] * 6


def test_what_is_seen_of_a_detector(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, data = tiny_model(), three_images(tmp_path)
    before = look_before_suppression(model, data)
    objects = sum(len(record.boxes) for record in data.records)
    assert len(before.best.ious) == len(before.best.scores) == len(before.best.any_ious) == objects
    # What is above the threshold is among all of them, and here everything is above it.
    np.testing.assert_allclose(before.best.ious, before.best.any_ious, atol=1e-6)
    # The boxes are those of the IoUs, in pixels of the original image.
    truth = np.concatenate([record.boxes for record in data.records])
    ends, true_ends = before.best.boxes[:, :2] + before.best.boxes[:, 2:], truth[:, 2:]
    sides = (np.minimum(ends, true_ends) - np.maximum(before.best.boxes[:, :2], truth[:, :2])).clip(0)
    shared = sides.prod(axis=1)
    union = before.best.boxes[:, 2:].prod(axis=1) + (truth[:, 2:] - truth[:, :2]).prod(axis=1) - shared
    np.testing.assert_allclose(before.best.ious, shared / union, atol=1e-4)

    predictions = Predictions.from_detections(detect_data(model, data), data)
    diagnosis = diagnose_results(GroundTruth.from_data(data), predictions, title="tiny", before=before)
    assert diagnosis.from_candidates
    assert diagnosis.aps.ap == pytest.approx(before.as_it_is.ap, abs=1e-6)
    # No final box is tighter than the tightest candidate.
    assert diagnosis.all.best_iou == pytest.approx(before.best.ious.mean(), abs=1e-3)
    assert diagnosis.miss_breakdown is not None
    assert diagnosis.lost["suppression"] is not None
    assert diagnosis.before_suppression.keys() == {"score", "predicted IoU"}
    missed = sum(diagnosis.miss_breakdown.values())
    assert missed == sum(card.kind == "miss" for card in diagnosis.gallery)
