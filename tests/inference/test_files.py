from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.data import noise_image
from tests.helpers.models import tiny_model
from tightbox.errors import UserError
from tightbox.inference.files import Selection, detect_files, labels_of
from tightbox.structures import Detections

FOUND = Detections(
    torch.zeros(3, 4), torch.tensor([0.9, 0.6, 0.3]), torch.tensor([0, 1, 0]), torch.tensor([0.5, 0.9, 0.9])
)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("broken", [[], [0], [4], [0, 1], [1, 2, 3], range(5)])
def test_failures_come_in_their_place(tmp_path: Path, batch_size: int, broken: list[int]) -> None:
    paths = [noise_image(tmp_path / f"{i}.png", 60, 40 + 20 * (i % 2), seed=i) for i in range(5)]
    for i in broken:
        paths[i].write_bytes(paths[i].read_bytes()[:200])
    model = tiny_model()
    results = list(detect_files(model, paths, batch_size=batch_size, keep_images=True))
    assert [result.path for result in results] == paths
    assert [result.error is not None for result in results] == [i in broken for i in range(5)]
    for i, result in enumerate(results):
        if i in broken:
            assert len(result.found) == 0
            continue
        assert result.size == (40 + 20 * (i % 2), 60)
        assert result.image is not None
        assert result.image.size == result.size[::-1]
        alone = model.predict(paths[i])
        assert len(alone) == len(result.found) > 0
        torch.testing.assert_close(result.found.boxes, alone.boxes, rtol=1e-4, atol=1e-3)


def test_no_files() -> None:
    assert list(detect_files(tiny_model(), [])) == []


@pytest.mark.parametrize(
    ("select", "scores"),
    [
        (Selection(0.0), [0.9, 0.6, 0.3]),
        (Selection(0.6), [0.9, 0.6]),
        (Selection(0.0, min_iou=0.8), [0.6, 0.3]),
        (Selection(0.0, labels=(0,)), [0.9, 0.3]),
        (Selection(0.5, 0.8, (0,)), []),
    ],
)
def test_selection(select: Selection, scores: list[float]) -> None:
    assert select(FOUND).scores.tolist() == pytest.approx(scores)


def test_unknown_classes_are_named() -> None:
    assert labels_of(["dog"], ["cat", "dog"]) == (1,)
    with pytest.raises(UserError, match="no class owl, eel; choose from cat, dog"):
        labels_of(["owl", "cat", "eel"], ["cat", "dog"])
