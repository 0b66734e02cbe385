"""What a standalone IoU head does for the results of other detectors (IoU-Net's tables 1 and 2), over several seeds.

The others are our RetinaNet without IoU head, and torchvision's FCOS and RetinaNet; all are trained on the data first,
if they are not in `runs/rescoring/NAME`. Every row is one `tightbox rescore` of a COCO result file, as a user would run
it on any tool's file. IoU-guided suppression and its gain need the boxes from before the tool's own NMS: most tools
write them if told to suppress nothing (an NMS threshold of 1) and to report more boxes than they find.
Writes `recipes/rescoring.json` and `recipes/rescoring.md`: `python recipes/rescoring_study.py --name bccd --data DIR`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from training import HERE, machine, spread, train_all

from tightbox.cli import main as tightbox
from tightbox.data.dataset import DetectionDataset, EpochBatches, collate, evaluation_loader
from tightbox.data.layout import read_data
from tightbox.data.records import DetectionData
from tightbox.data.transforms import TrainTransform
from tightbox.evaluation.coco import evaluate
from tightbox.evaluation.coco_files import from_coco
from tightbox.files import atomic_path, write_json
from tightbox.inference.candidates import iterate_candidates
from tightbox.inference.detect import to_results
from tightbox.models import Detector, load
from tightbox.options import AugmentOptions, Preprocess, TrainOptions
from tightbox.rank import by_class_score
from tightbox.reading import read_json
from tightbox.structures import Detections, ImageBatch
from tightbox.suppress import greedy_nms
from tightbox.training.fit import choose_precision
from tightbox.training.optimizer import MovingAverage, build_optimizer, learning_rate_factor

FIGURES = ("ap", "ap50", "ap75", "ap90")
DETECTORS = {
    "retinanet": "RetinaNet, tightbox",
    "tv_retinanet": "RetinaNet, torchvision",
    "tv_fcos": "FCOS, torchvision",
}
ROWS: dict[str, tuple[str, list[str]]] = {  # the result file, and the options of `tightbox rescore`
    "its own results": ("after", []),
    "+ refinement": ("after", ["--refine_steps", "5"]),
    "+ ranked by p^½u^½": ("after", ["--rank", "power", "--refine_steps", "0"]),
    "+ both": ("after", ["--rank", "power", "--refine_steps", "5"]),
    "before its NMS: greedy": ("before", ["--suppress", "greedy", "--refine_steps", "0"]),
    "before its NMS: IoU-guided": ("before", ["--suppress", "iou_guided", "--refine_steps", "0"]),
    "before its NMS: IoU-guided, refinement": ("before", ["--suppress", "iou_guided", "--refine_steps", "5"]),
    "before its NMS: greedy, refinement": ("before", ["--suppress", "greedy", "--refine_steps", "5"]),
}
CHANNELS = 64
NMS_IOU, SCORE_THRESHOLD, SHOWN, EVERY = 0.5, 0.05, 100, 10000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--name", required=True, help="of the data; iou_net_NAME.yaml is how the IoU head is trained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--detectors", nargs="+", choices=list(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--epochs", type=int, default=24, help="of the other detectors")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    args = parser.parse_args()
    root = Path("runs") / "rescoring" / args.name
    config = HERE / f"iou_net_{args.name}.yaml"
    other = ["--config", str(config), "--model", "iou_aware_retinanet", "--epochs", str(args.epochs)]
    other += ["--iou_aware_retinanet.iou_head", "false"]
    runs = {}
    for seed in args.seeds:
        shared = ["--data", args.data, "--seed", str(seed)]
        runs[root / f"standalone-seed{seed}"] = ["--config", str(config), "--standalone", *shared]
        if "retinanet" in args.detectors:
            runs[root / f"retinanet-{args.epochs}epochs-seed{seed}"] = [*other, *shared]
    train_all(runs, args.jobs)

    path = HERE / "rescoring.json"
    studies = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    about = {
        "command": shlex.join(["python", "recipes/rescoring_study.py", *sys.argv[1:]]),
        "machine": machine(),
        "date": str(datetime.date.today()),
    }
    for seed in args.seeds:
        judge = load(root / f"standalone-seed{seed}" / "last")
        data = read_data(args.data, "val").with_classes(judge.class_names)
        for name in args.detectors:
            folder = root / f"{name}-{args.epochs}epochs-seed{seed}"
            if not (folder / "before.json").exists():
                if name == "retinanet":
                    found = our_detections(load(folder / "last"), data)
                else:
                    torch.manual_seed(seed)
                    model = torchvision_model(name, len(data.class_names))
                    train_torchvision(model, folder, args.data, config, seed, args.epochs)
                    found = torchvision_detections(model, data, judge.preprocess)
                if max(map(len, found["before"].values())) >= EVERY:
                    raise SystemExit(f"{folder}: some images have {EVERY} boxes or more; raise EVERY")
                for kind, detections in found.items():
                    write_json(folder / f"{kind}.json", to_results(detections, data))
            rows = measure(folder, root / f"standalone-seed{seed}", args.data, data)
            study = studies.setdefault(args.name, {"images": len(data.records), "detectors": {}})
            seeds = study["detectors"].get(DETECTORS[name], {}).get("seeds", {})
            study["detectors"][DETECTORS[name]] = about | {"seeds": seeds | {str(seed): rows}}
            write_json(path, studies)
            with atomic_path(HERE / "rescoring.md") as temporary:
                temporary.write_text(report(studies), encoding="utf-8")
    return 0


def measure(folder: Path, judge: Path, where: str, data: DetectionData) -> dict[str, dict[str, float | None]]:
    """The figures of every row for the result files of one detector."""
    figures = {}
    for name, (kind, options) in ROWS.items():
        results = folder / f"{kind}.json"
        if options:
            better = folder / "better.json"
            command = [
                "rescore",
                str(judge / "last"),
                "--data",
                where,
                "--dt",
                str(results),
                "--out",
                str(better),
            ]
            if tightbox([*command, *options]):
                raise SystemExit(f"could not rescore {results}")
            results = better
        metrics = evaluate(*from_coco(data.to_coco(), read_json(results)))
        figures[name] = {figure: getattr(metrics, figure) for figure in FIGURES}
    return figures


def our_detections(model: Detector, data: DetectionData) -> dict[str, dict[int, Detections]]:
    """What the detector finds before and after its NMS."""
    rules = {
        "before": partial(greedy_nms, iou_threshold=1.0, score_threshold=SCORE_THRESHOLD, max_detections=EVERY),
        "after": partial(greedy_nms, iou_threshold=NMS_IOU, score_threshold=SCORE_THRESHOLD, max_detections=SHOWN),
    }
    found: dict[str, dict[int, Detections]] = {kind: {} for kind in rules}
    for image in iterate_candidates(model, data):
        record = data.records[image.index]
        for kind, rule in rules.items():
            detections = model.select(image.candidates, by_class_score, rule)
            found[kind][image.index] = detections.resized(image.size, (record.height, record.width))
    return found


def torchvision_model(name: str, classes: int) -> nn.Module:
    """FCOS or RetinaNet of torchvision on a ResNet-18 from random weights, for images that are resized already."""
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    pyramid = BackboneWithFPN(
        resnet18(weights=None), layers, [128, 256, 512], CHANNELS, extra_blocks=LastLevelP6P7(CHANNELS, CHANNELS)
    )
    if name == "tv_fcos":
        model: Any = FCOS(pyramid, num_classes=classes)
    else:
        sizes = tuple(
            (side, round(side * 2 ** (1 / 3)), round(side * 2 ** (2 / 3))) for side in (32, 64, 128, 256, 512)
        )
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        model = RetinaNet(pyramid, num_classes=classes, anchor_generator=anchors)
    model.transform = _NoResize(0, 0, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    whole: nn.Module = model.to(memory_format=torch.channels_last)
    return whole


class _NoResize(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Our data set has resized the images."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


def train_torchvision(model: nn.Module, folder: Path, data: str, config: Path, seed: int, epochs: int) -> None:
    """Train as our detectors are by the recipe, and load the moving average; only that if it was trained before."""
    weights = folder / "weights.safetensors"
    if not weights.exists():
        recipe = yaml.safe_load(config.read_text(encoding="utf-8"))
        options = TrainOptions(**_fields(TrainOptions, recipe) | {"epochs": epochs, "seed": seed})
        preprocess = Preprocess(**_fields(Preprocess, recipe))
        transform = TrainTransform(AugmentOptions(**_fields(AugmentOptions, recipe)), preprocess)
        dataset = DetectionDataset(
            read_data(data, "train"), preprocess, transform=transform, seed=seed, epochs=epochs, cache_mb=options.cache
        )
        batches = EpochBatches(len(dataset), options.batch_size, seed)
        loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate)
        optimizer, average = build_optimizer(model, options), MovingAverage(model, options.ema)
        schedule = LambdaLR(optimizer, learning_rate_factor(options, len(batches)))
        model.train()
        for batches.epoch in range(epochs):
            for images, targets, _ in loader:
                with torch.autocast("cpu", torch.bfloat16, enabled=choose_precision(options.precision) == "bf16"):
                    losses = model(unpadded(images), [{"boxes": t.boxes, "labels": t.labels} for t in targets])
                torch.autograd.backward(torch.stack([value.float() for value in losses.values()]).sum())
                nn.utils.clip_grad_norm_(model.parameters(), options.clip)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                average.update_parameters(model)
        state = {name: value.contiguous() for name, value in average.module.state_dict().items()}
        with atomic_path(weights) as temporary:
            temporary.write_bytes(safetensors.torch.save(state))
    model.load_state_dict(safetensors.torch.load_file(weights))


def _fields(kind: type[Any], recipe: dict[str, Any]) -> dict[str, Any]:
    return {field.name: recipe[field.name] for field in fields(kind) if field.name in recipe}


@torch.no_grad()
def torchvision_detections(model: Any, data: DetectionData, preprocess: Preprocess) -> dict[str, dict[int, Detections]]:
    """What the detector finds before and after its NMS: the same network, told to suppress nothing or as published."""
    model.eval()
    model.score_thresh = SCORE_THRESHOLD
    settings = {"before": (1.0, EVERY), "after": (NMS_IOU, SHOWN)}
    found: dict[str, dict[int, Detections]] = {kind: {} for kind in settings}
    dataset = DetectionDataset(data, preprocess)
    for images, _, indices in evaluation_loader(dataset, range(len(dataset)), 4, 0):
        for kind, (model.nms_thresh, model.detections_per_img) in settings.items():
            for index, size, row in zip(indices, images.sizes, model(unpadded(images)), strict=True):
                record = data.records[index]
                detections = Detections(row["boxes"], row["scores"], row["labels"])
                found[kind][index] = detections.resized(size, (record.height, record.width))
    return found


def unpadded(images: ImageBatch) -> list[Tensor]:
    """Without their padding, as torchvision wants them."""
    return [pixels[:, :height, :width] for pixels, (height, width) in zip(images.pixels, images.sizes, strict=True)]


def report(studies: dict[str, Any]) -> str:
    """All tables, each value as mean ± standard deviation over the seeds."""
    lines = ["# Results of other detectors, rescored by a standalone IoU head", ""]
    lines += [
        "Written by `recipes/rescoring_study.py` from runs that took place. AP in per cent; mean ± standard deviation"
    ]
    lines += ['over the seeds. "Before its NMS" are results of the same network told to suppress nothing.']
    for name, study in studies.items():
        lines += ["", f"## {name}: {study['images']} images"]
        for detector, found in study["detectors"].items():
            seeds = found["seeds"]
            lines += ["", f"### {detector}, seeds {', '.join(seeds)}", ""]
            lines += [f"`{found['command']}` on {found['machine']}, {found['date']}.", ""]
            lines += [f"| | {' | '.join(figure.upper() for figure in FIGURES)} |", "|---" * (len(FIGURES) + 1) + "|"]
            lines += [f"| {row} | {' | '.join(cells)} |" for row, cells in table(list(seeds.values()))]
    return "\n".join(lines) + "\n"


def table(seeds: Sequence[Any]) -> Iterator[tuple[str, list[str]]]:
    for row in ROWS:
        yield row, [spread([100 * seed[row][figure] for seed in seeds], 1) for figure in FIGURES]


if __name__ == "__main__":
    sys.exit(main())
