"""ATSS against the paper's algorithm in plain Python, reference assignments, and hand-made cases."""

import json
import statistics
from collections.abc import Sequence

import pytest
import torch

from tests.helpers.arithmetic import iou_of_two
from tests.helpers.models import exact_targets
from tests.helpers.one_image import atss
from tests.helpers.references import slice_of
from tightbox import assigners
from tightbox.assigners import (
    BACKGROUND,
    IGNORED,
    assignment,
    atss_anchors,
    level_points,
    per_point,
)
from tightbox.errors import UserError
from tightbox.structures import Targets

pytestmark = pytest.mark.usefixtures("device")

GRIDS = ["grid0", "grid1", "grid2", "grid3", "grid4"]
OTHERS = ["crowded", "outside", "tiny_gt", "topk4", "no_gt", "ignore", "random_anchors"]


def centre(box: Sequence[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def algorithm_1(
    anchors: Sequence[Sequence[float]],
    level_sizes: list[int],
    truths: Sequence[Sequence[float]],
    topk: int,
    usable: list[bool],
) -> list[int]:
    """The paper's algorithm 1, line by line: the index of the ground-truth box of each anchor."""
    best = [(0.0, BACKGROUND)] * len(anchors)
    for g, truth in enumerate(truths):
        x, y = centre(truth)
        candidates, start = [], 0
        for size in level_sizes:
            level = [i for i in range(start, start + size) if usable[i]]
            level.sort(key=lambda i: (centre(anchors[i])[0] - x) ** 2 + (centre(anchors[i])[1] - y) ** 2)
            candidates += level[:topk]
            start += size
        overlaps = {i: iou_of_two(anchors[i], truth) for i in candidates}
        spread = statistics.stdev(overlaps.values()) if len(overlaps) > 1 else 0.0
        threshold = statistics.mean(overlaps.values()) + spread if overlaps else 0.0
        for i, overlap in overlaps.items():
            cx, cy = centre(anchors[i])
            inside = min(cx - truth[0], cy - truth[1], truth[2] - cx, truth[3] - cy) > 0.01
            if overlap >= threshold and inside and overlap > best[i][0]:
                best[i] = (overlap, g)
    return [g for _, g in best]


def grid(height: int, width: int, levels: int = 3) -> tuple[torch.Tensor, list[int]]:
    """Anchors and level sizes of a small pyramid in double."""
    strides = [8 * 2**i for i in range(levels)]
    sizes = [(-(-height // s), -(-width // s)) for s in strides]
    points = level_points(sizes, strides)
    anchors = atss_anchors(points, per_point(torch.tensor(strides), sizes))
    return anchors.double(), [h * w for h, w in sizes]


def random_truths(count: int, height: int, width: int) -> torch.Tensor:
    corner = torch.rand(count, 2, dtype=torch.float64) * torch.tensor([width, height]) * 0.7
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, dtype=torch.float64) * 90], dim=1)


@pytest.mark.parametrize("case", GRIDS + OTHERS)
def test_reference_assignments(case: str) -> None:
    file = slice_of("atss_seed0")  # complete
    topk = json.loads(file.metadata["cases"])[case]["topk"]
    golden = file.whole(f"{case}/")
    targets = Targets.of(golden["gt_bboxes"], golden["gt_labels"], golden.get("gt_bboxes_ignore"))
    ignore_iof = 0.5 if case == "ignore" else None
    found = atss(golden["anchors"], golden["num_level"].tolist(), targets, topk, ignore_iof)
    # Theirs: i + 1 for a match, 0 background, -1 ignored.
    theirs = golden["assigned_gt_inds"]
    expected = torch.where(theirs < 0, IGNORED, theirs - 1)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("masked", [False, True])
def test_equals_algorithm_1(seed: int, masked: bool) -> None:
    torch.manual_seed(seed)
    anchors, level_sizes = grid(120, 160)
    truths = random_truths(12, 120, 160)
    valid = torch.rand(len(anchors)) < 0.7
    found = atss(anchors, level_sizes, exact_targets(truths), topk=5, valid=valid if masked else None)
    usable = valid.tolist() if masked else [True] * len(anchors)
    matched = algorithm_1(anchors.tolist(), level_sizes, truths.tolist(), 5, usable)
    assert found.tolist() == matched
    assert max(matched) >= 0


@pytest.mark.parametrize("at_once", [2**25, 0, 2 * 11 * 400])
def test_a_batch_equals_its_images(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All together, one by one, and in twos: the third image, of 7 objects and a region, counts for 11 objects."""
    monkeypatch.setattr(assignment, "PAIRS_AT_ONCE", at_once)
    torch.manual_seed(0)
    anchors, level_sizes = grid(120, 160)
    assert len(anchors) <= 400
    targets = [
        exact_targets(random_truths(count, 120, 160), random_truths(regions, 120, 160))
        for count, regions in ((3, 0), (0, 1), (7, 1), (1, 0), (5, 0))
    ]
    valid = torch.rand(len(targets), len(anchors)) < 0.8
    together = assigners.atss(anchors, level_sizes, targets, ignore_iof=0.5, valid=valid)
    for image, of_image, matched in zip(targets, valid, together, strict=True):
        alone = atss(anchors, level_sizes, image, ignore_iof=0.5, valid=of_image)
        assert torch.equal(matched, alone)
        usable = (of_image & (alone != IGNORED)).tolist()
        expected = algorithm_1(anchors.tolist(), level_sizes, image.boxes.tolist(), 9, usable)
        assert alone.clamp(min=BACKGROUND).tolist() == expected


def test_an_anchor_of_two_objects_learns_the_tighter() -> None:
    # One anchor, one level, one candidate each: the threshold is its own IoU, so both objects claim it.
    # IoU is 64/100 with the first and 64/81 with the second.
    anchor = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    targets = exact_targets(torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 9.0, 9.0]]))
    found = atss(anchor, [1], targets)
    assert found.tolist() == [1]


def test_equal_claims_go_to_the_first() -> None:
    truth = torch.tensor([0.0, 0.0, 10.0, 10.0])
    found = atss(torch.tensor([[0.0, 0.0, 8.0, 8.0]]), [1], exact_targets(truth.repeat(3, 1)))
    assert found.tolist() == [0]


@pytest.mark.parametrize(("left", "matched"), [(3.98, 0), (3.995, BACKGROUND), (4.5, BACKGROUND)])
def test_the_centre_must_be_inside_by_a_hundredth(left: float, matched: int) -> None:
    # The anchor's centre is at x = 4.
    found = atss(torch.tensor([[0.0, 0.0, 8.0, 8.0]]), [1], exact_targets(torch.tensor([[left, 0.0, 9.0, 8.0]])))
    assert found.tolist() == [matched]


def test_the_nearest_is_found_far_from_the_origin() -> None:
    # Anchors of 4 px, 1 px apart; by |a|² - 2ab + |b|² in float32 their distances would be off by several pixels.
    x = torch.arange(8000.0, 8040.0)
    anchors = torch.stack([x, torch.full_like(x, 8000.0), x + 4, torch.full_like(x, 8004.0)], dim=1)
    targets = exact_targets(torch.tensor([[8017.25, 8000.0, 8021.25, 8004.0]]))
    assert atss(anchors, [40], targets, topk=1).ge(0).nonzero().tolist() == [[17]]


def test_anchors_in_padding_take_no_part() -> None:
    anchors, level_sizes = grid(64, 64, levels=2)
    targets = exact_targets(random_truths(4, 64, 64))
    valid = torch.zeros(len(anchors), dtype=torch.bool)
    assert (atss(anchors, level_sizes, targets, valid=valid) == BACKGROUND).all()
    # As if the anchors of the second level were not there.
    valid[: level_sizes[0]] = True
    found = atss(anchors, level_sizes, targets, valid=valid)
    alone = atss(anchors[: level_sizes[0]], level_sizes[:1], targets)
    assert torch.equal(found[: level_sizes[0]], alone)
    assert (found[level_sizes[0] :] == BACKGROUND).all()


def test_ignored_anchors() -> None:
    # The first anchor lies wholly in the region, half of the second does, the third is in the padding, and the others
    # are far away: one IoU above zero reaches mean plus deviation only among three candidates or more.
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0], [0.0, 0.0, 8.0, 8.0]])
    anchors = torch.cat([anchors, anchors[:2] + 100])
    region = torch.tensor([[0.0, 0.0, 12.0, 8.0]])
    targets = Targets.of(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([0]), region)
    valid = torch.tensor([True, True, False, True, True])
    assert atss(anchors, [5], targets, ignore_iof=0.5, valid=valid).tolist() == [IGNORED, -1, -1, -1, -1]
    assert atss(anchors, [5], targets, ignore_iof=0.4, valid=valid).tolist() == [IGNORED, IGNORED, -1, -1, -1]
    assert atss(anchors, [5], targets, valid=valid).tolist() == [0, -1, -1, -1, -1]


def test_nothing_to_assign() -> None:
    anchors, level_sizes = grid(64, 64)
    empty = exact_targets(torch.zeros(0, 4, dtype=torch.float64))
    found = atss(anchors, level_sizes, empty, ignore_iof=0.5)
    assert found.dtype == torch.int64
    assert (found == BACKGROUND).all()
    assert atss(anchors[:0], [0], exact_targets(random_truths(2, 64, 64))).shape == (0,)


def test_an_object_without_area_gets_nothing() -> None:
    anchors, level_sizes = grid(64, 64)
    point = torch.tensor([[32.0, 32.0, 32.0, 32.0]], dtype=torch.float64)
    assert (atss(anchors, level_sizes, exact_targets(point)) == BACKGROUND).all()


def test_levels_that_do_not_add_up() -> None:
    with pytest.raises(UserError, match="3 anchors"):
        atss(torch.zeros(3, 4), [1, 1], exact_targets(torch.zeros(0, 4)))


def test_anchors_are_square_and_centred() -> None:
    anchors = atss_anchors(torch.tensor([[0.0, 0.0], [16.0, 32.0]]), torch.tensor([8, 16]))
    # Sides of 64 and 128.
    assert anchors.tolist() == [[-32, -32, 32, 32], [-48, -32, 80, 96]]


def test_points_go_level_by_level_and_row_by_row() -> None:
    sizes = [(2, 3), (1, 2)]
    points = level_points(sizes, [8, 16])
    assert points.tolist() == [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8], [0, 0], [16, 0]]
    assert torch.equal(level_points(sizes, [8, 16], offset=0.5)[5:7], torch.tensor([[20.0, 12.0], [8.0, 8.0]]))
    assert per_point(torch.tensor([8, 16]), sizes).tolist() == [8] * 6 + [16] * 2
    assert per_point(torch.tensor([[-1.0, 64.0], [64.0, 128.0]]), sizes).shape == (8, 2)
