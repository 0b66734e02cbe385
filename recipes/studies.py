"""What the studies on photographs share: a plan of trainings, parts of data sets, figures, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from training import HERE, spread

from budget import Training  # isort: skip - found by way of `training`
from tightbox.commands.train import small_options
from tightbox.data.layout import read_data
from tightbox.data.records import DetectionData
from tightbox.inference.detect import evaluate_detections
from tightbox.models import Detector
from tightbox.options import MODEL_OPTIONS
from tightbox.structures import Detections

__all__ = [
    "FIGURES",
    "HERE",
    "Job",
    "Part",
    "Plan",
    "figures",
    "halves",
    "published",
    "row",
    "rows_of",
    "table",
    "validation",
]

FIGURES = ("ap", "ap50", "ap60", "ap70", "ap75", "ap80", "ap90")
Job = Callable[[], dict[str, Any]]
# The options of `tightbox train` without which small networks hardly learn from random weights.
NEEDED = {
    "vfnet": {"channels", "star_norm", "star_init", "iou_weighted_boxes"},
    "iou_aware_retinanet": {"channels", "tower_depth", "tower_norm"},
}


def published(detector: str, but: Set[str]) -> dict[str, Any]:
    """The published model's values of the options that `tightbox train` has otherwise, `but` for these."""
    model = MODEL_OPTIONS[detector]()
    return {name: getattr(model, name) for name in small_options(detector) if name not in but}


@dataclass(frozen=True)
class Part:
    """A part of a split, made by calling this.

    Attributes:
        one_class: all objects are of the class "object".
        fraction: of its images, chosen at random ...
        seed: ... by this.
        limit: at most so many images.
    """

    one_class: bool = False
    fraction: float = 1.0
    seed: int = 0
    limit: int | None = None

    def __call__(self, data: DetectionData) -> DetectionData:
        """The part of `data`."""
        order = np.random.default_rng(self.seed).permutation(len(data.records)).tolist()
        count = max(1, round(self.fraction * len(order)))
        chosen = range(len(order)) if self.fraction == 1 else sorted(order[:count])
        records = [data.records[i] for i in chosen[: self.limit]]
        if not self.one_class:
            return replace(data, records=tuple(records))
        records = [replace(record, labels=np.zeros_like(record.labels)) for record in records]
        return replace(data, class_names=("object",), category_ids=(1,), records=tuple(records))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the command line says.

    Attributes:
        data: folders of data sets.
        images: seen by a training.
        seeds: of the trainings of each kind.
        device: where they train.
        smoke: only see whether it runs: tiny images, few of them.
    """

    data: Sequence[str]
    images: int
    seeds: Sequence[int]
    device: str
    smoke: bool = False

    def training(self, detector: str, data: str, seed: int, images: int, part: Part = Part(), **more: Any) -> Training:
        """A training of this plan, of VFNet and RetinaNet as published but for what small networks need."""
        if detector in NEEDED:
            more["options"] = published(detector, NEEDED[detector]) | more.get("options", {})
        prepare = replace(part, seed=seed, limit=8) if self.smoke else replace(part, seed=seed)
        size = 96 if self.smoke else 320
        seen = 8 if self.smoke else images
        return Training(
            detector=detector, data=data, seed=seed, images=seen, size=size, device=self.device, prepare=prepare, **more
        )

    def key(self, data: str, variant: str, images: int, seed: int) -> str:
        """A training's name in the record."""
        return f"{Path(data).name} | {variant} | {images} | {seed}"


def validation(job: Training, model: Detector, split: str = "val", fraction: float = 1.0) -> DetectionData:
    """What a trained model is measured on; of the training split, the images that it saw, or some of them."""
    part = job.prepare
    assert isinstance(part, Part)  # `Plan.training` gives it
    if split != "train":
        part = replace(part, fraction=1.0)
    data = part(read_data(job.data, split))
    return Part(fraction=fraction)(data).with_classes(model.class_names)


def figures(detections: Mapping[int, Detections], data: DetectionData) -> dict[str, float]:
    """The average precisions of `FIGURES`, by name."""
    metrics = evaluate_detections(detections, data)
    return {name: getattr(metrics, name) or 0.0 for name in FIGURES}


def halves(detections: Mapping[int, Detections], data: DetectionData) -> dict[str, dict[str, float]]:
    """The figures of all images, of every other one from the first, and of the rest."""
    parts = {"all": slice(None), "choose": slice(0, None, 2), "report": slice(1, None, 2)}
    found = {}
    for name, rows in parts.items():
        indices = range(len(data.records))[rows]
        part = replace(data, records=tuple(data.records[rows]))
        found[name] = figures({new: detections[old] for new, old in enumerate(indices)}, part)
    return found


def rows_of(record: Mapping[str, Any], data: str, variant: str, images: str | None = None) -> list[Any]:
    """The results of a kind of training, by seed; those of the longest of several lengths unless one is given."""
    found: dict[str, list[Any]] = {}
    for key, result in sorted(record.items()):
        its_data, its_variant, its_images, _ = key.split(" | ")
        if (its_data, its_variant) == (data, variant) and images in (None, its_images):
            found.setdefault(its_images, []).append(result)
    return found[max(found, key=int)] if found else []


def row(name: str, columns: Iterable[Sequence[float]], seeds: int, digits: int = 1) -> str:
    """A line of a table: mean ± standard deviation of every column, in per cent."""
    cells = [spread([100 * value for value in values], digits) for values in columns]
    return f"| {' | '.join([name, *cells, str(seeds)])} |"


def table(head: Sequence[str], lines: Sequence[str]) -> Iterator[str]:
    """A Markdown table with an empty line before it; nothing without lines."""
    if lines:
        yield from ("", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines)
