"""See it work: render scenes, train a small VFNet on them, evaluate it, and draw what it finds."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

USAGE = "[--out demo]"


def add_arguments(parser: ArgumentParser) -> None:
    """Where to, how long, and which scenes."""
    parser.add_argument("--out", default="demo", help="folder for scenes, checkpoint, metrics and pictures")
    parser.add_argument("--epochs", type=int, default=16, help="passes over the training scenes")
    parser.add_argument("--train_scenes", type=int, default=500, help="how many scenes to train on")
    parser.add_argument("--val_scenes", type=int, default=100, help="how many other scenes to evaluate on")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, weights and training")


def run(args: Namespace) -> int:
    """The whole of it, ending with where everything is and what to do next."""
    import shutil
    import time

    from tightbox.data.layout import read_data
    from tightbox.data.scenes import write_scenes
    from tightbox.files import atomic_path, write_json
    from tightbox.options import AugmentOptions, Preprocess, TrainOptions
    from tightbox.progress import counting

    out = Path(args.out)
    scenes, run_folder = out / "scenes", out / "run"
    with counting("rendering scenes") as progress:
        write_scenes(scenes, {"train": args.train_scenes, "val": args.val_scenes}, seed=args.seed, progress=progress)
    train, val = (read_data(scenes, split) for split in ("train", "val"))

    import torch

    from tightbox.checkpoint import load
    from tightbox.draw import picture_grid
    from tightbox.evaluation.coco import evaluate
    from tightbox.evaluation.run import detect_data, to_results
    from tightbox.images import open_image
    from tightbox.models import create_model
    from tightbox.training.fit import fit

    torch.manual_seed(args.seed)
    shutil.rmtree(run_folder, ignore_errors=True)
    run_folder.mkdir(parents=True)
    model = create_model(
        "vfnet",
        class_names=train.class_names,
        backbone="resnet18",
        pretrained_backbone=False,
        preprocess=Preprocess(long_side=256, short_side=256),
        channels=64,
    )
    options = TrainOptions(epochs=args.epochs, eval_every=args.epochs, seed=args.seed)
    started = time.monotonic()
    fit(model, train, val, run_folder, options, AugmentOptions(scale_min=0.8, scale_max=1.25, color=0))
    seconds = time.monotonic() - started

    checkpoint = out / "checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)
    shutil.copytree(run_folder / "best", checkpoint)
    trained = load(checkpoint)
    found = detect_data(trained, val)
    metrics = evaluate(val.to_coco(), to_results(found, val))
    write_json(out / "metrics.json", {"train_seconds": round(seconds, 1), **metrics.to_dict()})
    with atomic_path(out / "metrics.txt") as temporary:
        temporary.write_text(metrics.table() + "\n", encoding="utf-8")
    rows = []
    for index, record in enumerate(val.records[:6]):
        detections = found[index]
        rows.append((open_image(record.path), record, detections[detections.scores >= 0.3]))
    with atomic_path(out / "grid.png") as temporary:
        picture_grid(rows, val.class_names).save(temporary, format="PNG")

    print(f"\n{metrics.table()}\n")
    print(f"trained in {seconds:.0f} s; COCO AP {metrics.ap or 0:.3f} on {len(val.records)} scenes it never saw")
    print(f"  pictures    {out / 'grid.png'} (truth beside prediction)")
    print(f"  metrics     {out / 'metrics.txt'} and {out / 'metrics.json'}")
    print(f"  checkpoint  {checkpoint}")
    print("\nOn your own images (COCO, Pascal VOC or YOLO folders):")
    print("  tightbox doctor DIR")
    print("  tightbox train --data DIR --backbone resnet18 --pretrained false --out runs/first")
    print(f"  tightbox predict {checkpoint} {scenes / 'images'} --out predictions")
    return 0
