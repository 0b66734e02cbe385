from __future__ import annotations

import torch

from tightbox.ops.prroi_pool import prroi_pool, window_pool


def test_equals_the_sparse_form_on_the_level_of_each_box() -> None:
    torch.manual_seed(0)
    levels = [torch.randn(2, 5, 12, 17, dtype=torch.float64), torch.randn(2, 5, 6, 9, dtype=torch.float64)]
    corners = torch.rand(40, 2, dtype=torch.float64) * 8 - 1  # some reach out of the map
    boxes = torch.cat([corners, corners + torch.rand(40, 2, dtype=torch.float64) * 12], dim=1)
    boxes[0] = torch.tensor([2.0, 3.0, 2.0, 5.0])  # no width
    boxes[1] = torch.tensor([4.0, 4.0, 3.0, 5.0])  # inverted
    boxes[2] = torch.tensor([1.25, 1.25, 1.5, 1.375])  # less than a pixel
    boxes[3] = 0
    boxes[4] = torch.tensor([30.0, 30.0, 40.0, 40.0])  # beyond the map
    level, images = torch.randint(2, (40,)), torch.randint(2, (40,))
    pooled = window_pool(levels, boxes, level, images, 7)
    assert (pooled[:2] == 0).all()
    for number, features in enumerate(levels):
        here = level == number
        regions = torch.cat([images[here, None].double(), boxes[here]], dim=1)
        torch.testing.assert_close(pooled[here], prroi_pool(features, regions, 7), rtol=0, atol=1e-12)
