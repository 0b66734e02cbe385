from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn

from tests.helpers.models import tiny_model
from tightbox.data.records import DetectionData, ImageRecord
from tightbox.inference.detect import Loading, detect_data, evaluate_model, to_results
from tightbox.models import Detector
from tightbox.options import Preprocess
from tightbox.structures import Candidates, Detections, ImageBatch, Targets

SIZES = [(40, 30), (100, 60), (30, 90), (64, 64), (7, 5)]  # width and height


@dataclass(frozen=True)
class Options:
    top_k: int = 10


class Oracle(Detector):
    """Finds the coloured part of each image: half of it, the left one for a cat and the upper one for a dog."""

    name = "oracle"

    def __init__(self) -> None:
        backbone: Any = nn.Module()
        backbone.mean = torch.zeros(1)
        preprocess = Preprocess(long_side=64, short_side=64)
        super().__init__(backbone=backbone, class_names=["cat", "dog"], options=Options(), preprocess=preprocess)

    def loss(self, images: Any, targets: Sequence[Targets]) -> dict[str, Tensor]:
        raise NotImplementedError

    def assigned_candidates(self, images: Any, targets: Any) -> list[tuple[Candidates, Tensor]]:
        raise NotImplementedError

    def candidates(self, images: Any) -> list[Candidates]:
        assert not self.training
        assert isinstance(images, ImageBatch)
        found = []
        for pixels, (height, width) in zip(images.pixels, images.sizes, strict=True):
            dog = pixels[1].max() > 0.5
            box = [0, 0, width, height / 2] if dog else [0, 0, width / 2, height]
            scores = torch.tensor([[0.0, 0.9] if dog else [0.8, 0.0]])
            found.append(Candidates(torch.tensor([box]).float(), scores))
        return found

    def rank(self, candidates: Candidates) -> Tensor:
        return candidates.class_scores

    def suppress(self, candidates: Candidates, scores: Tensor) -> Detections:
        best, labels = scores.max(dim=1)
        return Detections(candidates.boxes, best, labels)


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    """Red left halves are cats, green upper halves are dogs; ids of the data set's own."""
    records = []
    for i, (width, height) in enumerate(SIZES):
        dog = i % 2
        box = (0, 0, width, height / 2) if dog else (0, 0, width / 2, height)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[: round(box[3]), : round(box[2]), dog] = 255
        path = tmp_path / f"{i}.png"
        Image.fromarray(pixels).save(path)
        boxes, area = np.array([box], np.float32), np.array([box[2] * box[3]], np.float32)
        records.append(ImageRecord(path, 500 - i, width, height, boxes, np.array([dog]), np.array([False]), area))
    return DetectionData("test", tmp_path, "val", ("cat", "dog"), (17, 3), tuple(records))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("accelerated", [False, True])
def test_boxes_are_in_pixels_of_the_original(data: DetectionData, batch_size: int, accelerated: bool) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    model = Oracle().train()
    accelerator = Accelerator() if accelerated else None
    steps: list[tuple[int, int]] = []
    found = detect_data(
        model.to(accelerator.device if accelerator else "cpu"),
        data,
        accelerator=accelerator,
        loading=Loading(batch_size),
        progress=lambda *step: steps.append(step),
    )
    assert model.training
    assert list(found) == list(range(5))
    for index, detections in found.items():
        record = data.records[index]
        torch.testing.assert_close(detections.boxes, torch.from_numpy(record.boxes), atol=1e-4, rtol=0)
        assert detections.labels.tolist() == record.labels.tolist()
    assert steps[-1] == (5, 5)
    assert len(steps) == -(-5 // batch_size)


def test_results_have_the_ids_of_the_data_set(data: DetectionData) -> None:
    rows = to_results(detect_data(Oracle(), data), data)
    assert [row["image_id"] for row in rows] == [500, 499, 498, 497, 496]
    assert [row["category_id"] for row in rows] == [17, 3, 17, 3, 17]
    assert rows[0]["bbox"] == [0, 0, 20, 30]
    assert rows[1]["bbox"] == [0, 0, 100, 30]
    assert rows[0]["score"] == pytest.approx(0.8)
    assert to_results({}, data) == []


def test_a_perfect_detector_has_an_ap_of_1(data: DetectionData) -> None:
    metrics = evaluate_model(Oracle(), data, loading=Loading(2))
    assert metrics.ap == metrics.ap90 == metrics.ar == pytest.approx(1.0)
    assert {name: row.boxes for name, row in metrics.per_class.items()} == {"cat": 3, "dog": 2}


def test_a_detector_with_its_classes_swapped_has_an_ap_of_0(data: DetectionData) -> None:
    model = Oracle()

    def swapped(c: Candidates, *_: Any, **__: Any) -> Detections:
        return Detections(c.boxes, c.class_scores.amax(1), c.class_scores.argmin(1))

    model.select = swapped  # type: ignore[method-assign, assignment]
    assert evaluate_model(model, data).ap == 0.0


def test_agrees_with_predict(data: DetectionData) -> None:
    """The same network on the same images, one by one and unpadded."""
    model = tiny_model(preprocess=Preprocess(long_side=64, short_side=64)).eval()
    for index, found in detect_data(model, data, loading=Loading(1)).items():
        alone = model.predict(data.records[index].path)
        assert len(found) == len(alone) > 0
        # detect_data resizes bytes and predict resizes floats, which differ by rounding.
        torch.testing.assert_close(found.scores, alone.scores, rtol=1e-2, atol=1e-4)
