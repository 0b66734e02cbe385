"""See it work: render scenes, train a small VFNet on them, evaluate it, and draw what it finds."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from tightbox.commands import on_data
from tightbox.commands.train import small, small_options
from tightbox.errors import UserError
from tightbox.files import write_json, write_text
from tightbox.options import AugmentOptions, BackboneOptions, Preprocess, TrainOptions
from tightbox.progress import progress_bar

if TYPE_CHECKING:
    from tightbox.data.records import DetectionData
    from tightbox.models import Detector

USAGE = "[--out demo] [--minutes 1.5]"
PARTS, MARK = ("scenes", "run", "checkpoint"), ".tightbox-demo"  # folders in it, and the file that says whose they are
MINUTES = 1.5
SIDE = 128  # of the network's images, half of a scene's
FEW = 8  # images by which the time for evaluation is judged
SHOWN, SHOWN_SCORE = 8, 0.4  # images in the grid, and the least score of a box that is drawn there


def add_arguments(parser: ArgumentParser) -> None:
    """Where to, how long, and which scenes."""
    parser.add_argument("--out", default="demo", help="folder for scenes, checkpoint, metrics and images")
    minutes = "from the start of the training to the image grid, so the training itself is some seconds shorter"
    parser.add_argument("--minutes", type=float, default=MINUTES, help=minutes)
    on_data.add_device(parser)
    parser.add_argument("--train_scenes", type=PositiveInt, default=600, help="how many scenes to train on")
    parser.add_argument("--val_scenes", type=PositiveInt, default=100, help="how many other scenes to evaluate on")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="of scenes, weights and training")


def run(args: Namespace) -> int:
    """The whole of it, ending with where everything is and what to do next."""
    from tightbox.data.layout import read_data
    from tightbox.data.scenes import write_scenes

    _options(args.minutes, args.seed)  # refuses what makes no sense before anything is rendered
    device = on_data.find_device(args.device)
    out = Path(args.out)
    if not (out / MARK).exists() and (there := [str(out / name) for name in PARTS if (out / name).exists()]):
        raise UserError(f"{there[0]} exists and no demo made it; choose another --out, whose content may be replaced")
    for name in PARTS:
        shutil.rmtree(out / name, ignore_errors=True)
    write_text(out / MARK, "")
    scenes = args.train_scenes + args.val_scenes
    print(f"rendering {scenes} scenes, then training for {args.minutes:g} minutes", flush=True)
    with progress_bar("rendering scenes") as progress:
        splits = {"train": args.train_scenes, "val": args.val_scenes}
        write_scenes(out / "scenes", splits, seed=args.seed, progress=progress)
    train, val = (read_data(out / "scenes", split) for split in splits)

    from tightbox.draw import image_grid
    from tightbox.images import open_image, write_image
    from tightbox.inference.detect import detect_data, evaluate_detections
    from tightbox.training.fit import fit

    model, started = _new_model(train, args.seed).to(device), time.monotonic()
    minutes = args.minutes - _seconds_after_training(model, val) / 60
    options = _options(max(minutes, args.minutes / 2), args.seed)
    augment = AugmentOptions(vertical_flip=0.5, scale_min=0.8, scale_max=1.25, color=0)
    model = fit(model, train, None, out / "run", options, augment, device=device)  # evaluated once, on what is drawn
    seconds = time.monotonic() - started
    with progress_bar("detecting in val") as progress:
        found = detect_data(model, val, progress=progress)
    drawn = {index: boxes[boxes.scores >= SHOWN_SCORE] for index, boxes in found.items()}
    rows = [(open_image(record.path), record, drawn[index]) for index, record in enumerate(val.records[:SHOWN])]
    write_image(out / "grid.png", image_grid(rows, val.class_names))
    until_grid = time.monotonic() - started
    metrics = evaluate_detections(found, val)
    model.metrics = {"train_seconds": round(seconds, 1), **metrics.to_dict()}
    model.save(out / "checkpoint")
    write_json(out / "metrics.json", metrics.to_dict())
    write_text(out / "metrics.txt", metrics.table() + "\n")
    print(f"\n{metrics.table()}\n")
    ap, ap50 = metrics.ap or 0, metrics.ap50 or 0
    print(f"trained in {seconds:.0f} s; COCO AP {ap:.3f}, AP50 {ap50:.3f} on {len(val.records)} scenes it never saw")
    print(f"  images      {out / 'grid.png'} (ground truth beside prediction; {until_grid:.0f} s after the start)")
    print(f"  diagnosis   {_diagnose(out / 'diagnosis.html', model, val)}", flush=True)
    print(f"  metrics     {out / 'metrics.txt'} and {out / 'metrics.json'}")
    print(f"  checkpoint  {out / 'checkpoint'}")
    print("\nOn your own images (a COCO, Pascal VOC or YOLO folder):")
    print("  tightbox doctor DIR")
    print("  tightbox train --data DIR --pretrained false --out runs/first")
    print("  tightbox predict runs/first/best IMAGES --out predictions")
    return 0


def _new_model(train: DetectionData, seed: int) -> Detector:
    """The VFNet of `tightbox train` on a smaller backbone."""
    import torch

    from tightbox.models import create_model

    torch.manual_seed(seed)
    backbone = BackboneOptions(name="resnet10t", pretrained=False, zero_init=small()["zero_init"])
    how = {"backbone": backbone, "preprocess": Preprocess(long_side=SIDE, short_side=SIDE), **small_options("vfnet")}
    return create_model("vfnet", class_names=train.class_names, **how)


def _options(minutes: float, seed: int) -> TrainOptions:
    usual = {name: small()[name] for name in ("batch_size", "optimizer")}
    return TrainOptions(minutes=minutes, ema=0.98, seed=seed, **usual)


def _seconds_after_training(model: Detector, val: DetectionData) -> float:
    """What detecting and drawing will take on this machine, judged by a few images."""
    from tightbox.inference.detect import detect_data

    few = replace(val, records=val.records[:FEW])
    detect_data(model, few)  # what happens only once, happens here
    started = time.monotonic()
    detect_data(model, few)
    per_image = (time.monotonic() - started) / len(few.records)
    # An image with objects to find takes longer than this model's; the grid is drawn, and the state saved.
    return 2 * per_image * (len(val.records) + SHOWN) + 1


def _diagnose(page: Path, model: Detector, val: DetectionData) -> str:
    """Writes the page; gives its path, or why there is none."""
    from tightbox.commands.diagnose import of_detector
    from tightbox.diagnosis.page import write_page
    from tightbox.inference.detect import LOADING

    diagnosis, images = of_detector(model, val, "the demo's VFNet on val of its scenes", LOADING)
    try:
        with progress_bar("crop out images") as progress:
            write_page(diagnosis, images, page, progress)
    except UserError as error:  # without the extra there are no plots, and the demo is no worse otherwise
        return str(error)
    return str(page)
