from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.data import three_images
from tests.helpers.models import tiny_model
from tightbox.data.records import DetectionData
from tightbox.diagnosis.ladder_plot import draw_ladder
from tightbox.evaluation import ladder
from tightbox.evaluation.ladder import OracleVariant
from tightbox.inference.oracle import has_estimate, oracle_study, replaced
from tightbox.models import Detector
from tightbox.options import Preprocess
from tightbox.rank import by_class_score, by_power
from tightbox.structures import Candidates, Targets

# A box of half its object, the object itself, one that learns nothing, and one beside its object.
TRUTH = Targets.of(torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]), torch.tensor([1, 0]))
MATCHED = torch.tensor([0, 1, -1, 1])


def hand_made(**estimates: Tensor) -> Candidates:
    boxes = torch.tensor([[0.0, 0, 10, 5], [20, 0, 30, 10], [0, 0, 10, 8], [40, 0, 50, 10]])
    scores = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]])
    return Candidates(boxes, scores, **estimates)


def test_true_class_scores_one() -> None:
    found = replaced(hand_made(), MATCHED, TRUTH)[ladder.CLASS_SCORE_ONE]
    assert found.class_scores.flatten().tolist() == pytest.approx([0.1, 1, 1, 0.4, 0.5, 0.6, 1, 0.8])
    assert found.boxes.equal(hand_made().boxes)


def test_true_class_scores_the_iou() -> None:
    found = replaced(hand_made(), MATCHED, TRUTH)[ladder.TRUE_IOU_SCORE]
    # 50 of 100, all, untouched, and none.
    assert found.class_scores.flatten().tolist() == pytest.approx([0.1, 0.5, 1, 0.4, 0.5, 0.6, 0, 0.8])


def test_true_box() -> None:
    found = replaced(hand_made(), MATCHED, TRUTH)[ladder.TRUE_BOX]
    assert found.boxes.tolist() == [[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 8], [20, 0, 30, 10]]
    assert found.class_scores.equal(hand_made().class_scores)


def test_true_estimate_of_each_kind() -> None:
    nine = torch.full((4,), 0.9)
    found = replaced(hand_made(ious=nine), MATCHED, TRUTH)[ladder.TRUE_PREDICTED_IOU].ious
    assert found is not None
    assert found.tolist() == pytest.approx([0.5, 1, 0.9, 0])
    found = replaced(hand_made(centerness=nine, points=torch.zeros(4, 2)), MATCHED, TRUTH)[
        ladder.CENTERNESS_IOU
    ].centerness
    assert found is not None
    assert found.tolist() == pytest.approx([0.5, 1, 0.9, 0])
    by_class = replaced(hand_made(ious=torch.full((4, 2), 0.9)), MATCHED, TRUTH)[ladder.TRUE_PREDICTED_IOU]
    assert by_class.ious is not None
    assert by_class.ious.flatten().tolist() == pytest.approx([0.9, 0.5, 1, 0.9, 0.9, 0.9, 0, 0.9])
    assert nine.eq(0.9).all()


def test_true_centerness() -> None:
    points = torch.tensor([[5.0, 5], [22, 1], [5, 5], [25, 2]])
    candidates = hand_made(centerness=torch.full((4,), 0.9), points=points)
    found = replaced(candidates, MATCHED, TRUTH)[ladder.TRUE_CENTERNESS]
    assert found.centerness is not None
    # The middle; sqrt(2/8 · 1/9); untouched; sqrt(1 · 2/8).
    assert found.centerness.tolist() == pytest.approx([1, 1 / 6, 0.9, 0.5])


def test_nearest_iou_is_of_every_candidate_and_any_class() -> None:
    found = replaced(hand_made(ious=torch.zeros(4)), MATCHED, TRUTH)[ladder.NEAREST_IOU]
    assert found.ious is not None
    assert found.ious.tolist() == pytest.approx([0.5, 1, 0.8, 0])
    by_class = replaced(hand_made(ious=torch.zeros(4, 2)), MATCHED, TRUTH)[ladder.NEAREST_IOU]
    assert by_class.ious is not None
    assert by_class.ious.flatten().tolist() == pytest.approx([0.5, 0.5, 1, 1, 0.8, 0.8, 0, 0])


@pytest.mark.parametrize("targets", [TRUTH, Targets.of(torch.zeros(0, 4), torch.zeros(0))])
def test_replacements_change_nothing_where_nothing_is_learnt(targets: Targets) -> None:
    points, centerness = torch.zeros(4, 2), torch.full((4,), 0.5)
    for candidates in (hand_made(), hand_made(ious=centerness), hand_made(centerness=centerness, points=points)):
        nothing = replaced(candidates[:0], torch.full((0,), -1), targets)
        assert [len(found) for found in nothing.values()] == [0] * len(nothing)
        for name, found in replaced(candidates, torch.full((4,), -1), targets).items():
            if "every" in name:
                continue
            for field, value in vars(candidates).items():
                changed = getattr(found, field)
                assert (changed is None and value is None) or changed.equal(value), (name, field)


def test_what_can_be_replaced_and_in_which_order() -> None:
    both = ["box := ground-truth box", "class score := 1", "class score := true IoU"]
    scores = hand_made().class_scores
    for candidates, names in (
        (hand_made(), []),
        (hand_made(ious=scores), []),  # the class score itself
        (
            hand_made(centerness=torch.ones(4), points=torch.zeros(4, 2)),
            ["centerness := true centerness", "centerness := true IoU"],
        ),
        (
            hand_made(ious=torch.ones(4)),
            ["predicted IoU := true IoU", "every predicted IoU := IoU with the nearest object"],
        ),
    ):
        candidates = replace(candidates, class_scores=scores)
        found = replaced(candidates, MATCHED, TRUTH)
        assert list(found) == ["as predicted", *names, *both]
        assert [name for name in found if name in ladder.OF_ESTIMATES] == names
        assert has_estimate(candidates) is bool(names)


# The ladder


@dataclass(frozen=True)
class Options:
    top_k: int = 10
    score_threshold: float = 0.05
    nms_iou: float = 0.6
    max_detections: int = 10


class Stub(Detector):
    """Every object has two boxes that learn it: three quarters of it, and the object itself, with a lower score.

    Scores are 0.4 and 0.35, the estimates 0.5 and 0.3: neither knows which box is tight.
    """

    name = "stub"

    def __init__(self, estimate: bool) -> None:
        backbone: Any = nn.Module()
        backbone.mean = torch.zeros(1)
        preprocess = Preprocess(long_side=64, short_side=64)
        super().__init__(backbone=backbone, class_names=["cat", "dog"], options=Options(), preprocess=preprocess)
        self.estimate = estimate

    def loss(self, images: Any, targets: Sequence[Targets]) -> dict[str, Tensor]:
        raise NotImplementedError

    def candidates(self, images: Any) -> list[Candidates]:
        raise NotImplementedError

    def assigned_candidates(self, images: Any, targets: Any) -> list[tuple[Candidates, Tensor]]:
        found = []
        for target in targets:
            loose = target.boxes.clone()
            loose[:, 3] = target.boxes[:, 1] + (target.boxes[:, 3] - target.boxes[:, 1]) * 0.75
            count = len(target)
            scores = torch.tensor([0.4] * count + [0.35] * count)[:, None]
            ious = torch.tensor([0.5] * count + [0.3] * count)
            labels = nn.functional.one_hot(target.labels.repeat(2), 2)
            boxes = torch.cat([loose, target.boxes])
            found.append(
                (
                    Candidates(boxes, scores * labels, ious=ious if self.estimate else None),
                    torch.arange(count).repeat(2),
                )
            )
        return found

    def rank(self, candidates: Candidates) -> Tensor:
        return by_class_score(candidates) if candidates.ious is None else by_power(candidates)


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    return three_images(tmp_path)


def aps(variant: OracleVariant) -> list[float | None]:
    found = [None if m is None else m.ap for m in (variant.alone, variant.with_estimate)]
    return [None if ap is None else round(ap, 6) for ap in found]


def test_ladder_by_hand(data: DetectionData) -> None:
    """A box of IoU 0.75 counts at 6 of COCO's 10 thresholds: AP is 0.6 where loose boxes win, 1 where true ones do."""
    study = oracle_study(Stub(estimate=True), data)
    found = {variant.name: aps(variant) for variant in study.variants}
    del found["class score := 1"]  # two equal scores
    assert found == {
        "as predicted": [0.6, 0.6],  # 0.4 beats 0.35, and 0.4 · 0.5 beats 0.35 · 0.3
        "predicted IoU := true IoU": [None, 1.0],  # 0.4 · 0.75 loses to 0.35 · 1
        "every predicted IoU := IoU with the nearest object": [None, 1.0],
        "box := ground-truth box": [1.0, 1.0],
        "class score := true IoU": [1.0, 0.6],  # 0.75 loses to 1, but 0.75 · 0.5 beats 1 · 0.3
    }
    assert study.lost_to_ranking == pytest.approx(1.0 - 0.6)
    # Six boxes; the loose ones with the higher score and estimate.
    for name in ("score", "predicted IoU"):
        assert study.correlations[name].pearson == pytest.approx(-1)
        assert study.correlations[name].spearman == pytest.approx(-1)
        assert study.correlations[name].pairs == 6


def test_ladder_without_an_estimate(data: DetectionData) -> None:
    study = oracle_study(Stub(estimate=False), data)
    assert [variant.name for variant in study.variants] == [
        "as predicted", "box := ground-truth box", "class score := 1", "class score := true IoU",
    ]  # fmt: skip
    assert all(variant.with_estimate is None for variant in study.variants)
    assert aps(study.variants[0]) == [0.6, None]
    assert aps(study.variants[3]) == [1.0, None]
    assert set(study.correlations) == {"score"}


def test_ladder_without_objects(data: DetectionData, tmp_path: Path) -> None:
    study = oracle_study(Stub(estimate=True), replace(data, records=data.records[2:]))
    assert len(study.variants) == 6
    assert all(aps(variant) == [None, None] for variant in study.variants)
    assert study.lost_to_ranking is None
    assert study.correlations == {}
    draw_ladder(study, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")


def test_crowds_are_no_objects(data: DetectionData) -> None:
    """In one image the dog is a crowd: nothing learns it, and nothing is said of it."""
    first = replace(data.records[0], crowd=data.records[0].labels == 1)
    study = oracle_study(Stub(estimate=True), replace(data, records=(first, *data.records[1:])))
    assert aps(study.variants[0]) == [0.6, 0.6]
    assert study.correlations["score"].pairs == 4


def test_ladder_of_vfnet(data: DetectionData, tmp_path: Path) -> None:
    """Its class score is the estimate: nothing to replace beside it. The objects' own boxes cannot lower AP."""
    study = oracle_study(tiny_model(), data)
    assert [variant.name for variant in study.variants] == [
        "as predicted", "box := ground-truth box", "class score := 1", "class score := true IoU",
    ]  # fmt: skip
    by_name = {variant.name: variant.alone for variant in study.variants}
    assert all(metrics is not None and metrics.ap is not None for metrics in by_name.values())
    draw_ladder(study, tmp_path / "deep" / "ladder.png")
    assert (tmp_path / "deep" / "ladder.png").is_file()


def test_lost_to_ranking_is_from_the_detector_as_it_is(data: DetectionData) -> None:
    """With an estimate, the AP that it has with it."""
    ladder = oracle_study(Stub(estimate=True), data)
    better = ladder["class score := true IoU"].alone
    assert better is not None
    first, *others = ladder.variants
    changed = replace(ladder, variants=(replace(first, with_estimate=better), *others))
    assert changed.lost_to_ranking == pytest.approx(0.0)
    changed = replace(ladder, variants=(replace(first, with_estimate=None), *others))
    assert changed.lost_to_ranking == pytest.approx(0.4)
