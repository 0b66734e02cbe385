from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.data import write_video
from tests.helpers.models import tiny_model
from tightbox.inference.annotate import Annotator
from tightbox.inference.files import Selection


@pytest.mark.parametrize(("batch_size", "together"), [(4, [4, 4, 2]), (10, [10])])
def test_the_network_sees_so_many_frames_together(tmp_path: Path, batch_size: int, together: list[int]) -> None:
    """More than the eight of `Detector.predict`, if that is what was asked for."""
    film = write_video(tmp_path / "film.mp4", [np.zeros((48, 64, 3), np.uint8)] * 10)
    model, seen = tiny_model(), []

    def note(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        seen.append(len(inputs[0]))

    model.backbone.register_forward_pre_hook(note)
    annotator = Annotator(model, Selection(threshold=0.0), tmp_path / "out", batch_size, draw=False)
    annotator.video(film, Path("film.mp4"), lambda done, total: None)
    assert seen == together
    assert [result.frame for result in annotator.results] == list(range(10))
