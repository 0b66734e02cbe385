from __future__ import annotations

import json
import sys

import pytest
import torch

from tightbox.errors import UserError
from tightbox.structures import Candidates, Detections, ImageBatch, Targets


def detections(ious: bool = True) -> Detections:
    return Detections(
        boxes=torch.tensor([[1.0, 2.0, 4.0, 8.0], [0.5, 0.25, 10.0, 20.125]]),
        scores=torch.tensor([0.75, 0.5]),
        labels=torch.tensor([1, 0]),
        ious=torch.tensor([0.25, 0.125]) if ious else None,
    )


def test_batch_puts_each_image_at_the_top_left_and_zeros_around_it() -> None:
    batch = ImageBatch.of([torch.full((3, 5, 40), 0.5), torch.ones(3, 33, 7)])
    assert batch.sizes == ((5, 40), (33, 7))
    assert batch.pixels.shape == (2, 3, 64, 64)  # 33 and 40 rounded up to 32s
    assert batch.pixels[0, :, :5, :40].eq(0.5).all()
    assert batch.pixels[1, :, :33, :7].eq(1).all()
    # Nothing but the images: their areas times 3 channels times their value.
    assert batch.pixels.sum() == 5 * 40 * 3 * 0.5 + 33 * 7 * 3
    assert len(batch) == 2


@pytest.mark.parametrize(("divisor", "shape"), [(1, (5, 40)), (8, (8, 40)), (32, (32, 64)), (64, (64, 64))])
def test_batch_rounds_up_to_its_divisor(divisor: int, shape: tuple[int, int]) -> None:
    assert ImageBatch.of([torch.zeros(3, 5, 40)], divisor).pixels.shape[2:] == shape


def test_batch_scales_bytes_and_keeps_floats() -> None:
    batch = ImageBatch.of([torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)], divisor=1)
    assert batch.pixels.dtype == torch.float32
    torch.testing.assert_close(batch.pixels.flatten(), torch.tensor([0, 0.2, 1]))  # 51 / 255 = 0.2
    mixed = ImageBatch.of([torch.ones(3, 1, 1).double(), torch.full((3, 1, 1), 255, dtype=torch.uint8)], divisor=1)
    assert mixed.pixels.dtype == torch.float64
    assert mixed.pixels.eq(1).all()


@pytest.mark.parametrize(
    "images",
    [
        [],  # no image
        [torch.zeros(4, 8, 8)],  # RGBA
        [torch.zeros(8, 8)],  # grey
        [torch.zeros(1, 3, 8, 8)],  # a batch already
        [torch.zeros(3, 8, 8), torch.zeros(3, 0, 8)],  # an image without rows
    ],
)
def test_batch_refuses_what_is_no_image(images: list[torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="image"):
        ImageBatch.of(images)


def test_targets_of_take_any_numbers_and_no_objects() -> None:
    targets = Targets.of(torch.tensor([[1, 2, 3, 4]]), torch.tensor([2], dtype=torch.int32))
    assert targets.boxes.dtype == torch.float32
    assert targets.labels.dtype == torch.int64
    assert targets.ignore.shape == (0, 4)
    assert len(targets) == 1
    empty = Targets.of(torch.tensor([]), torch.tensor([]), torch.tensor([0, 0, 9, 9], dtype=torch.float64))
    assert empty.boxes.shape == (0, 4)
    assert empty.labels.shape == (0,)
    assert empty.ignore.tolist() == [[0, 0, 9, 9]]
    assert empty.ignore.dtype == torch.float32


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (torch.tensor([False, True]), [0.5]),  # mask
        (torch.tensor([1, 0]), [0.5, 0.75]),  # indices, in their order
        (slice(0, 1), [0.75]),
        (torch.tensor([], dtype=torch.int64), []),
    ],
)
def test_indexing_keeps_the_fields_together(keep: torch.Tensor | slice, left: list[float]) -> None:
    chosen = detections()[keep]
    assert chosen.scores.tolist() == left
    rows = {0.75: ([1, 2, 4, 8], 1, 0.25), 0.5: ([0.5, 0.25, 10, 20.125], 0, 0.125)}
    assert chosen.ious is not None
    found = zip(chosen.boxes.tolist(), chosen.labels.tolist(), chosen.ious.tolist(), strict=True)
    assert list(found) == [rows[score] for score in left]
    assert len(chosen) == len(left)
    assert detections(ious=False)[keep].ious is None


def candidates(shared: bool = False) -> Candidates:
    scores = torch.tensor([[0.5, 0.25], [0.75, 1.0], [0.0, 0.125]])
    return Candidates(
        boxes=torch.arange(12.0).view(3, 4),
        class_scores=scores,
        ious=scores if shared else torch.tensor([0.1, 0.2, 0.3]),
        levels=torch.tensor([0, 1, 4]),
        points=torch.arange(6.0).view(3, 2),
    )


@pytest.mark.parametrize(
    ("keep", "rows"),
    [
        (torch.tensor([True, False, True]), [0, 2]),  # mask
        (torch.tensor([2, 0, 0]), [2, 0, 0]),  # indices, in their order and repeated
        (slice(1, 3), [1, 2]),
        (torch.zeros(3, dtype=torch.bool), []),
    ],
)
def test_indexing_candidates_keeps_the_fields_together(keep: torch.Tensor | slice, rows: list[int]) -> None:
    whole, chosen = candidates(), candidates()[keep]
    assert len(chosen) == len(rows)
    for name in ("boxes", "class_scores", "ious", "levels", "points"):
        assert getattr(chosen, name).equal(getattr(whole, name)[rows]), name
    assert chosen.centerness is None


def test_a_tensor_of_two_fields_stays_one() -> None:
    """VFNet's class score is its IoU estimate; that must not look like an estimate of its own after a move."""
    for found in (candidates(shared=True).to("meta"), candidates(shared=True)[1:]):
        assert found.ious is found.class_scores
        assert found.boxes is not found.points
    for found in (candidates().to("meta"), candidates()[1:]):
        assert found.ious is not found.class_scores


def test_to_coco_gives_corner_and_sides() -> None:
    rows = detections().to_coco(42, [90, 7])
    assert rows == [
        {"image_id": 42, "category_id": 7, "bbox": [1, 2, 3, 6], "score": 0.75, "iou": 0.25},
        {"image_id": 42, "category_id": 90, "bbox": [0.5, 0.25, 9.5, 19.875], "score": 0.5, "iou": 0.125},
    ]
    assert json.loads(json.dumps(rows)) == rows


def test_to_coco_without_ids_and_estimates() -> None:
    rows = detections(ious=False).to_coco(0)
    assert [row["category_id"] for row in rows] == [1, 0]
    assert all("iou" not in row for row in rows)
    assert detections()[:0].to_coco(0) == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_to_coco_leaves_the_boxes_alone(dtype: torch.dtype) -> None:
    found = detections()
    found = Detections(found.boxes.to(dtype), found.scores, found.labels)
    assert found.to_coco(1) == found.to_coco(1)
    assert found.boxes[0].tolist() == [1, 2, 4, 8]


def test_to_supervision() -> None:
    pytest.importorskip("supervision", reason="needs the extra viz")
    found = detections().to_supervision(["cat", "dog"])
    assert found.xyxy.tolist() == [[1, 2, 4, 8], [0.5, 0.25, 10, 20.125]]
    assert found.confidence is not None
    assert found.confidence.tolist() == [0.75, 0.5]
    assert found.class_id is not None
    assert found.class_id.tolist() == [1, 0]
    assert found.data["iou"].tolist() == [0.25, 0.125]
    assert list(found.data["class_name"]) == ["dog", "cat"]
    empty = detections(ious=False)[:0].to_supervision()
    assert len(empty) == 0
    assert "iou" not in empty.data


def test_to_supervision_without_the_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match=r"pip install 'tightbox\[viz\]'"):
        detections().to_supervision()


def test_to_moves_every_tensor() -> None:
    moved = detections().to("meta")
    assert moved.ious is not None
    assert {t.device.type for t in (moved.boxes, moved.scores, moved.labels, moved.ious)} == {"meta"}
    candidates = Candidates(torch.zeros(2, 4), torch.zeros(2, 3)).to("meta")
    assert candidates.class_scores.device.type == "meta"
    assert candidates.ious is None
    batch = ImageBatch.of([torch.zeros(3, 8, 9)]).to("meta")
    assert batch.pixels.device.type == "meta"
    assert batch.sizes == ((8, 9),)
    assert Targets.of(torch.zeros(1, 4), torch.zeros(1)).to("meta").ignore.device.type == "meta"
