"""Run by a test in one or two processes: train the tiny model for two epochs of plain SGD."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.helpers.models import frozen_norm_vfnet
from tightbox.data.layout import read_data
from tightbox.options import AugmentOptions, TrainOptions
from tightbox.training.fit import fit

if __name__ == "__main__":
    torch.set_num_threads(1)
    scenes, out, batch_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    train, val = read_data(scenes, "train"), read_data(scenes, "val")
    options = TrainOptions(
        epochs=2, batch_size=batch_size, optimizer="sgd", lr=0.02, workers=0, precision="fp32", clip=0, eval_every=2
    )
    fit(frozen_norm_vfnet(train.class_names), train, val, out, options, AugmentOptions(mosaic=0.5))
