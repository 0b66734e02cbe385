"""IoU-aware RetinaNet against RetinaNet: the paper's ablations on synthetic scenes or on your data, over several seeds."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training import HERE, scenes, train_all

VARIANTS = {
    "RetinaNet": ["--iou_aware_retinanet.iou_head", "false"],
    "+ IoU head, target detached": ["--iou_aware_retinanet.detach_target", "true"],
    "+ IoU head, gradient through the target": [],
    "+ IoU head detached, L1": ["--iou_aware_retinanet.detach_target", "true", "--iou_aware_retinanet.iou_loss", "l1"],
    "+ IoU head detached, L2": ["--iou_aware_retinanet.detach_target", "true", "--iou_aware_retinanet.iou_loss", "l2"],
}
FOLDERS = dict(zip(VARIANTS, ("retinanet", "detached", "gradient", "l1", "l2"), strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=None, help="folder of a data set; synthetic scenes without it")
    parser.add_argument("--name", default=None, help="its name in the tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(FOLDERS.values()), default=list(FOLDERS.values()))
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    args = parser.parse_args()
    name = args.name or (Path(args.data).name if args.data else "scenes")
    data = args.data or str(scenes())
    recipe = HERE / ("iou_aware_photos.yaml" if args.data else "iou_aware_scenes.yaml")
    runs = {
        Path("runs") / "iou_aware" / name / f"{FOLDERS[variant]}-seed{seed}": [
            *("--config", str(recipe), "--data", data, "--seed", str(seed)),
            *options,
        ]
        for seed in args.seeds
        for variant, options in VARIANTS.items()
        if FOLDERS[variant] in args.variants
    }
    train_all(runs, args.jobs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
