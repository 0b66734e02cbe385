"""See it work: render scenes, train a small VFNet on them, evaluate it, and draw what it finds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from tightbox.errors import UserError

if TYPE_CHECKING:
    from tightbox.data.records import DetectionData
    from tightbox.evaluation.coco import CocoMetrics
    from tightbox.models import Detector
    from tightbox.structures import Detections

USAGE = "[--out demo]"
PARTS, MARK = ("scenes", "run", "checkpoint"), ".tightbox-demo"  # folders in it, and the file that says whose they are
SHOWN, SHOWN_SCORE = 8, 0.4  # images in the grid, and the least score of a box that is drawn there


def add_arguments(parser: ArgumentParser) -> None:
    """Where to, how long, and which scenes."""
    parser.add_argument("--out", default="demo", help="folder for scenes, checkpoint, metrics and images")
    parser.add_argument("--epochs", type=PositiveInt, default=11, help="passes over the training scenes")
    parser.add_argument("--train_scenes", type=PositiveInt, default=600, help="how many scenes to train on")
    parser.add_argument("--val_scenes", type=PositiveInt, default=100, help="how many other scenes to evaluate on")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of scenes, weights and training")


def run(args: Namespace) -> int:
    """The whole of it, ending with where everything is and what to do next."""
    import shutil

    from tightbox.data.layout import read_data
    from tightbox.data.scenes import write_scenes
    from tightbox.files import atomic_path
    from tightbox.progress import progress_bar

    out = Path(args.out)
    if not (out / MARK).exists() and (there := [str(out / name) for name in PARTS if (out / name).exists()]):
        raise UserError(f"{there[0]} exists and no demo made it; choose another --out, whose content may be replaced")
    for name in PARTS:
        shutil.rmtree(out / name, ignore_errors=True)
    with atomic_path(out / MARK) as temporary:
        temporary.touch()
    with progress_bar("rendering scenes") as progress:
        splits = {"train": args.train_scenes, "val": args.val_scenes}
        write_scenes(out / "scenes", splits, seed=args.seed, progress=progress)
    train, val = (read_data(out / "scenes", split) for split in splits)

    from tightbox.inference.detect import detect_data, evaluate_detections

    model = _train(train, val, out / "run", args.epochs, args.seed)
    model.save(out / "checkpoint")
    found = detect_data(model, val)
    metrics = evaluate_detections(found, val)
    _write(out, metrics, val, found)
    print(f"\n{metrics.table()}\n")
    seconds = model.metrics["train_seconds"]
    print(f"trained in {seconds:.0f} s; COCO AP {metrics.ap or 0:.3f} on {len(val.records)} scenes it never saw")
    print(f"  images    {out / 'grid.png'} (truth beside prediction)")
    print(f"  metrics     {out / 'metrics.txt'} and {out / 'metrics.json'}")
    print(f"  checkpoint  {out / 'checkpoint'}")
    print("\nOn your own images (a COCO, Pascal VOC or YOLO folder):")
    print("  tightbox doctor DIR")
    print("  tightbox train --data DIR --pretrained false --out runs/first")
    print("  tightbox predict runs/first/best IMAGES --out predictions")
    return 0


def _train(train: DetectionData, val: DetectionData, out: Path, epochs: int, seed: int) -> Detector:
    import torch

    from tightbox.models import create_model
    from tightbox.options import AugmentOptions, Preprocess, TrainOptions
    from tightbox.training.fit import fit

    torch.manual_seed(seed)
    model = create_model(
        "vfnet",
        class_names=train.class_names,
        backbone="resnet18",
        pretrained_backbone=False,
        preprocess=Preprocess(long_side=192, short_side=192),
        channels=64,
        tower_depth=2,
    )
    options = TrainOptions(epochs=epochs, batch_size=4, ema=0.99, eval_every=epochs, seed=seed)
    augment = AugmentOptions(vertical_flip=0.5, scale_min=0.8, scale_max=1.25, color=0)
    return fit(model, train, val, out, options, augment)


def _write(out: Path, metrics: CocoMetrics, val: DetectionData, found: dict[int, Detections]) -> None:
    """The metrics as a table and as JSON, and the image grid."""
    from tightbox.draw import image_grid
    from tightbox.files import atomic_path, write_json
    from tightbox.images import open_image

    write_json(out / "metrics.json", metrics.to_dict())
    with atomic_path(out / "metrics.txt") as temporary:
        temporary.write_text(metrics.table() + "\n", encoding="utf-8")
    rows = []
    for index, record in enumerate(val.records[:SHOWN]):
        rows.append((open_image(record.path), record, found[index][found[index].scores >= SHOWN_SCORE]))
    with atomic_path(out / "grid.png") as temporary:
        image_grid(rows, val.class_names).save(temporary, format="PNG")
