"""Training a detector, ours or torchvision's, until a budget of CPU minutes or of images is used up.

Every detector gets the same backbone, width, images, random changes, batches, schedule over the budget, moving average
of weights, number format and evaluator. Minutes are those that the process has computed on its one thread, so that
trainings that share a machine are compared fairly.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ClassVar, Literal, cast, get_args

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead, _default_anchorgen
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from tightbox.commands.train import small, small_options
from tightbox.data.dataset import DetectionDataset, EpochBatches, Item, collate
from tightbox.data.layout import read_data
from tightbox.data.records import DetectionData
from tightbox.data.transforms import TrainTransform
from tightbox.files import write_json
from tightbox.inference.detect import evaluate_model
from tightbox.models import Backbone, Detector, create_model
from tightbox.models.detector import Images
from tightbox.options import AugmentOptions, BackboneOptions, Preprocess, TrainOptions, VFNetOptions
from tightbox.structures import Candidates, Detections, ImageBatch, Targets
from tightbox.training.fit import choose_precision
from tightbox.training.optimizer import MovingAverage, build_optimizer

FIGURES = ("ap", "ap50", "ap75", "ap90")
CHANNELS = 64
# For torchvision's pyramids and RetinaNet's heads, which have none by themselves.
GROUP_NORM = partial(nn.GroupNorm, 32)
Record = dict[str, dict[str, float]]
Peer = Literal["fcos", "retinanet", "retinanet_norm", "faster_rcnn"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training: what, on what, for how long.

    Attributes:
        detector: one of ours by name, or of torchvision's: its FCOS, its Faster R-CNN, its RetinaNet, or that with
            norms in the head.
        head: makes another head for torchvision's, of its width, anchors per location and number of classes.
        neck_norm: group norms in the pyramid of torchvision's.
        data: folder of the data set.
        seed: of weights, order and random changes.
        minutes: budget of CPU time; or
        images: budget of images seen.
        size: longer side of the images.
        options: of our detector, where they differ from those of `tightbox train`.
        backbone: its options, where they differ.
        schedule: of the training, where it differs from that of `tightbox train`.
        augment: random changes, where they differ.
        device: where to train; minutes are those of the CPU there, too.
        prepare: what to make of the training split first, such as fewer images or other classes.
    """

    detector: str
    head: Callable[[int, int, int], nn.Module] | None = None
    neck_norm: bool = False
    data: str
    seed: int
    minutes: float | None = None
    images: int | None = None
    size: int = 320
    options: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    augment: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    prepare: Callable[[DetectionData], DetectionData] | None = None


def train(job: Training) -> dict[str, float]:
    """Train on one thread; AP on the validation split, images seen, and CPU seconds."""
    model, spent = trained(job)
    data = read_data(job.data, "val").with_classes(model.class_names)
    metrics = evaluate_model(model, data)
    return {**{figure: getattr(metrics, figure) or 0.0 for figure in FIGURES}, **spent}


def trained(job: Training) -> tuple[Detector, dict[str, float]]:
    """The moving average of the weights after this training on one thread; images seen and CPU seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    device = torch.device(job.device)
    data = read_data(job.data, "train")
    if job.prepare is not None:
        data = job.prepare(data)
    preprocess = Preprocess(long_side=job.size, short_side=job.size)
    model = _build(job, data.class_names, preprocess).to(device)
    augment = AugmentOptions(**{"mosaic": 0.5, "vertical_flip": 0.5, **job.augment})
    defaults = small()
    options = TrainOptions(
        **{"batch_size": defaults["batch_size"], "optimizer": defaults["optimizer"], "seed": job.seed, **job.schedule}
    )
    dataset = DetectionDataset(
        data, preprocess, transform=TrainTransform(augment, preprocess), seed=job.seed, cache_mb=2000
    )
    optimizer = build_optimizer(model, options)
    rates = [group["lr"] for group in optimizer.param_groups]
    average = MovingAverage(model, options.ema)
    half = choose_precision("auto", device) == "bf16"
    model.train()
    spent = _Spent(job)
    for images, targets, _ in _endless(dataset, options.batch_size, spent):
        done = spent.fraction()
        if done >= 1:
            break
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, 0.1 + 0.9 * done / options.warmup) * 0.5 * (1 + math.cos(math.pi * done))
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            losses = model.loss(images.to(device), [target.to(device) for target in targets])
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        spent.images += len(images)
    return cast(Detector, average.module), {"images": spent.images, "seconds": spent.seconds()}


def train_missing(jobs: Mapping[str, Training], path: Path, workers: int) -> Record:
    """The figures of these trainings and of all others in the record `path`, where each is kept as it ends."""
    return run_missing({path: {key: partial(train, job) for key, job in jobs.items()}}, workers)[path]


def run_missing(
    jobs: Mapping[Path, Mapping[str, Callable[[], Any]]], workers: int, minutes: float = math.inf
) -> dict[Path, dict[str, Any]]:
    """What the jobs of several records give, beside all else in these, where each is kept as it ends.

    Args:
        jobs: by the file of their record and their key in it; the records take turns, each in its own order.
        workers: processes.
        minutes: no job begins later than this.
    """
    records: dict[Path, dict[str, Any]] = {
        path: json.loads(path.read_text(encoding="utf-8")) if path.exists() else {} for path in jobs
    }
    latest = time.time() + 60 * minutes
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        missing = [
            [(path, key, job) for key, job in of_record.items() if key not in records[path]]
            for path, of_record in jobs.items()
        ]
        turns = (job for turn in zip_longest(*missing) for job in turn if job is not None)
        running = {pool.submit(_begun_by, latest, job): (path, key) for path, key, job in turns}
        for done in as_completed(running):
            path, key = running[done]
            if done.exception() is not None:
                print(key, "failed:", repr(done.exception()), flush=True)
            elif done.result() is not None:
                records[path][key] = done.result()
                write_json(path, records[path])
                print(key, json.dumps(done.result())[:200], flush=True)
    return records


def _begun_by(latest: float, job: Callable[[], Any]) -> Any:
    return job() if time.time() < latest else None


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; the value alone if it is the only one."""
    return f"{mean(values):.3f} ± {stdev(values):.3f}" if len(values) > 1 else f"{mean(values):.3f}"


def _build(job: Training, class_names: Sequence[str], preprocess: Preprocess) -> Detector:
    if job.detector in get_args(Peer):
        return TorchvisionDetector(cast(Peer, job.detector), class_names, preprocess, job.head, job.neck_norm)
    defaults = small()
    return create_model(
        job.detector,
        class_names=class_names,
        backbone=BackboneOptions(
            **{"name": defaults["backbone"], "pretrained": False, "zero_init": defaults["zero_init"], **job.backbone}
        ),
        preprocess=preprocess,
        **{**small_options(job.detector), **job.options},
    )


class _Spent:
    """How much of its budget a training has used."""

    def __init__(self, job: Training) -> None:
        self.job = job
        self.images = 0
        self._started = time.process_time()

    def seconds(self) -> float:
        """CPU time so far."""
        return time.process_time() - self._started

    def fraction(self) -> float:
        """Of the budget."""
        if self.job.images is not None:
            return self.images / self.job.images
        return self.seconds() / 60 / cast(float, self.job.minutes)


def _endless(dataset: DetectionDataset, batch_size: int, spent: _Spent) -> Iterator[Any]:
    """Batches of epoch after epoch; the data set's own fraction of the training is that of the budget."""
    batches = EpochBatches(len(dataset), batch_size, spent.job.seed)
    loader: DataLoader[Item] = DataLoader(dataset, batch_sampler=batches, collate_fn=collate)
    while True:
        fraction = spent.fraction()
        dataset.epochs = max(1, round(batches.epoch / fraction)) if fraction > 0 else 10**9
        yield from loader
        batches.epoch += 1


class TorchvisionDetector(Detector):
    """torchvision's detectors behind our surface, so that all are trained and evaluated by the same lines."""

    name: ClassVar[str] = "torchvision"
    class_layers: ClassVar[tuple[str, ...]] = (
        "detector.head.classification_head.cls_logits.",
        "detector.roi_heads.box_predictor.cls_score.",
    )

    def __init__(
        self,
        peer: Peer,
        class_names: Sequence[str],
        preprocess: Preprocess,
        make_head: Callable[[int, int, int], nn.Module] | None = None,
        neck_norm: bool = False,
    ) -> None:
        backbone = Backbone(BackboneOptions(name="test_efficientnet", pretrained=False))
        backbone.requires_grad_(False)  # not used
        super().__init__(backbone=backbone, class_names=class_names, options=VFNetOptions(), preprocess=preprocess)
        classes = len(class_names)
        self.first_label = 0
        if peer == "faster_rcnn":
            self.detector: nn.Module = _faster_rcnn(classes)
            self.first_label = 1  # 0 is its background
        elif peer == "fcos":
            head = make_head(CHANNELS, 1, classes) if make_head else None
            pyramid = _pyramid(2, LastLevelP6P7(CHANNELS, CHANNELS), neck_norm)
            self.detector = FCOS(pyramid, num_classes=classes, head=head)
        else:
            anchors = _default_anchorgen()
            norm = GROUP_NORM if peer == "retinanet_norm" else None
            make_head = make_head or partial(RetinaNetHead, norm_layer=norm)
            head = make_head(CHANNELS, anchors.num_anchors_per_location()[0], classes)
            pyramid = _pyramid(2, LastLevelP6P7(CHANNELS, CHANNELS), neck_norm)
            self.detector = RetinaNet(pyramid, classes, anchor_generator=anchors, head=head)
        self.detector.transform = _NoResize(0, 0, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        self.to(memory_format=torch.channels_last)

    def loss(self, images: Images, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Its own losses."""
        objects = [{"boxes": target.boxes, "labels": target.labels + self.first_label} for target in targets]
        return cast(dict[str, Tensor], self.detector(_unpadded(images), objects))

    def detect(self, images: Images, *, replay: bool = False) -> list[Detections]:
        """Its own detections."""
        found = self.detector(_unpadded(images))
        return [Detections(row["boxes"], row["scores"], row["labels"] - self.first_label) for row in found]

    def candidates(self, images: Images) -> list[Candidates]:
        """It does not give any out."""
        raise NotImplementedError("torchvision's detectors keep their candidates to themselves")

    def assigned_candidates(self, images: Images, targets: Sequence[Targets]) -> list[tuple[Candidates, Tensor]]:
        """It does not give any out."""
        raise NotImplementedError("torchvision's detectors keep their candidates to themselves")

    def rank(self, candidates: Candidates) -> Tensor:
        """It does not take any in."""
        raise NotImplementedError("torchvision's detectors keep their candidates to themselves")


def _pyramid(first: int, extra: ExtraFPNBlock, norm: bool = False) -> BackboneWithFPN:
    """A pyramid on the stages of a ResNet-18 from the `first` to the last, the fourth."""
    stages = range(first, 5)
    layers = {f"layer{stage}": str(number) for number, stage in enumerate(stages)}
    widths = [32 * 2**stage for stage in stages]
    return BackboneWithFPN(
        torchvision.models.resnet18(weights=None),
        layers,
        widths,
        CHANNELS,
        extra_blocks=extra,
        norm_layer=GROUP_NORM if norm else None,
    )


def _faster_rcnn(classes: int) -> FasterRCNN:
    """Faster R-CNN of torchvision with as many proposals and as wide a head as our IoU-Net has in `tightbox train`."""
    own = small_options("iou_net")
    return FasterRCNN(
        _pyramid(1, LastLevelMaxPool()),
        rpn_pre_nms_top_n_train=own["train_proposals"],
        rpn_post_nms_top_n_train=own["train_proposals"],
        rpn_pre_nms_top_n_test=own["proposals"],
        rpn_post_nms_top_n_test=own["proposals"],
        box_batch_size_per_image=own["rois"],
        box_head=TwoMLPHead(CHANNELS * 7 * 7, own["fc_channels"]),
        box_predictor=FastRCNNPredictor(own["fc_channels"], classes + 1),
    )


class _NoResize(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Our data set has resized the images already."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


def _unpadded(images: Images) -> list[Tensor]:
    batch = cast(ImageBatch, images)
    return [pixels[:, :h, :w] for pixels, (h, w) in zip(batch.pixels, batch.sizes, strict=True)]
