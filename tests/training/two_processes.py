"""Run by a test in one or two processes: evaluate the tiny model, then train it for two epochs of plain SGD."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.utils import gather_object

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.helpers.models import frozen_norm_vfnet
from tightbox.data.layout import read_data
from tightbox.distributed import new_accelerator
from tightbox.inference.detect import Loading, detect_data, evaluate_detections, to_results
from tightbox.options import AugmentOptions, TrainOptions
from tightbox.training.fit import fit

if __name__ == "__main__":
    torch.set_num_threads(1)
    scenes, out, batch_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    train, val = read_data(scenes, "train"), read_data(scenes, "val")
    model, accelerator = frozen_norm_vfnet(val.class_names), new_accelerator()
    totals: list[int] = []
    model.options = replace(model.options, score_threshold=0.0)
    # One image at a time: how images are padded depends on their batch.
    found = detect_data(
        model,
        val,
        accelerator=accelerator,
        loading=Loading(batch_size=1),
        progress=lambda done, total: totals.append(total) if done == total else None,
    )
    metrics = evaluate_detections(found, val).to_dict()
    content = {"images": gather_object(totals), "rows": to_results(found, val), "metrics": metrics}
    out.mkdir(exist_ok=True)
    (out / f"evaluated-{accelerator.process_index}.json").write_text(json.dumps(content))

    options = TrainOptions(
        epochs=2, batch_size=batch_size, optimizer="sgd", lr=0.02, workers=0, precision="fp32", clip=0, eval_every=2
    )
    fit(frozen_norm_vfnet(train.class_names), train, val, out, options, AugmentOptions(mosaic=0.5))
