"""IoU-Net on photographs: what its head, IoU-guided suppression and refinement bring, and why not more.

Each possible cause is a variant of the training, or a measurement of the trained model: too few jittered boxes, too
heavy an IoU loss, too short a training, too few images, a head that has learned its training images by heart, boxes of
low class score or of a wrong class that suppress better ones, and a predicted IoU that is too coarse to order by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from iou_net_study import correlations, own_overlaps
from studies import Job, Part, Plan, figures, row, rows_of, table, validation

from budget import Training, trained  # isort: skip - found by way of `training`
from tightbox.boxes import pairwise_iou
from tightbox.data.records import DetectionData
from tightbox.inference.candidates import AssignedCandidates, iterate_assigned
from tightbox.inference.detect import detect_data
from tightbox.models import IoUNet
from tightbox.rank import by_class_score
from tightbox.structures import Candidates
from tightbox.suppress import Suppress, greedy_nms, iou_guided_nms

TITLE = "IoU-Net"
FPN, HEAD = "FPN", "IoU-Net"
MORE_BOXES, LIGHT = "IoU-Net, 512 jittered boxes", "IoU-Net, IoU loss of weight 1"
DETECTORS: dict[str, dict[str, Any]] = {FPN: {"iou_head": False}, HEAD: {"iou_weight": 5.0}}
# name: (options, times the images, fraction of the training images)
PLAIN = {name: (options, 1, 1.0) for name, options in DETECTORS.items()}
LONGER = {f"{name}, twice as long": (options, 2, 1.0) for name, options in DETECTORS.items()}
FRACTIONS = {
    f"{name}, {100 * fraction:.0f} % of the images": (options, 1, fraction)
    for fraction in (0.1, 0.3, 1.0)
    for name, options in DETECTORS.items()
}
LIGHTER = {LIGHT: ({"iou_weight": 1.0}, 1, 1.0)}
MORE = {MORE_BOXES: ({"iou_weight": 5.0, "jittered_boxes": 512}, 1, 1.0)}
VARIANTS = PLAIN | LIGHTER | MORE | LONGER
LADDER: dict[str, dict[str, Any]] = {  # options in use
    "greedy": {"suppress": "greedy", "refine_steps": 0},
    "IoU-guided": {"suppress": "iou_guided", "refine_steps": 0},
    "IoU-guided, refinement": {"suppress": "iou_guided"},
    "greedy, refinement": {"suppress": "greedy"},
    "greedy, refinement, score × IoU": {"suppress": "greedy", "rank_by_iou": True},
    "greedy, refinement of step 2, score × IoU": {"suppress": "greedy", "rank_by_iou": True, "refine_step_size": 2.0},
}
FLOOR = 0.3  # of class scores, to see whether lower ones are what goes wrong
SHOWN = ("ap", "ap50", "ap75", "ap90")


def jobs(plan: Plan) -> dict[str, Job]:
    """Every training with its measurements; of scenes, with parts of the training images."""
    return {
        plan.key(data, variant, times * plan.images, seed): partial(
            measure,
            plan.training("iou_net", data, seed, times * plan.images, Part(fraction=fraction), options=options),
        )
        for number in range(len(FRACTIONS | LIGHTER))
        for data in plan.data
        for variant, (options, times, fraction) in _of(data)[number : number + 1]
        for seed in plan.seeds
    }


def _of(data: str) -> list[tuple[str, tuple[dict[str, Any], int, float]]]:
    """The trainings on a data set: all on BCCD, other numbers of images of scenes, the first two on others."""
    by_set = {"scenes": LIGHTER | FRACTIONS, "bccd": VARIANTS}
    return list(by_set.get(Path(data).name, PLAIN).items())


def measure(job: Training) -> dict[str, Any]:
    """Train, then everything of the trained model."""
    trained_model, spent = trained(job)
    model = cast(IoUNet, trained_model)
    data = validation(job, model)
    if not model.options.iou_head:
        return {"ladder": {"greedy": figures(detect_data(model, data), data)}, **spent}
    ladder, published = {}, model.options
    for name, changes in LADDER.items():
        model.options = replace(published, **changes)
        ladder[name] = figures(detect_data(model, data), data)
    model.options = published
    images = list(iterate_assigned(model, data))
    seen = validation(job, model, "train")
    part = min(1.0, len(data.records) / len(seen.records))  # as many as there are to validate on
    return {
        "ladder": ladder,
        "suppression": suppression(model, data, images),
        "correlation": correlations(images),
        "correlation, training images": correlations(
            list(iterate_assigned(model, validation(job, model, "train", part)))
        ),
        "correlation by class": by_class(images),
        **spent,
    }


def suppression(
    model: IoUNet, data: DetectionData, images: Sequence[AssignedCandidates]
) -> dict[str, dict[str, dict[str, float]]]:
    """Greedy and IoU-guided suppression of the same candidates, as they are and with one thing changed."""
    changes: dict[str, Callable[[AssignedCandidates], Candidates]] = {
        "as they are": lambda image: image.candidates,
        f"class scores above {FLOOR}": lambda image: image.candidates[by_class_score(image.candidates).amax(1) > FLOOR],
        "none of a wrong class": lambda image: image.candidates[~_of_a_wrong_class(image)],
        "predicted IoU := true IoU": lambda image: replace(image.candidates, ious=_true_ious(image)),
    }
    rules: dict[str, Suppress] = {
        name: partial(rule, iou_threshold=model.options.nms_iou, score_threshold=model.options.score_threshold)
        for name, rule in (("greedy", greedy_nms), ("IoU-guided", iou_guided_nms))
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, change in changes.items():
        for rule_name, rule in rules.items():
            detections = {
                image.index: model.select(change(image), by_class_score, rule).resized(
                    image.size, data.records[image.index].size
                )
                for image in images
            }
            found.setdefault(name, {})[rule_name] = figures(dict(sorted(detections.items())), data)
    return found


def _true_ious(image: AssignedCandidates) -> torch.Tensor:
    labels = image.candidates.class_scores.argmax(dim=1)
    return own_overlaps(image.candidates.boxes, labels, image).amax(dim=1)


def _of_a_wrong_class(image: AssignedCandidates) -> torch.Tensor:
    """Whether a candidate overlaps an object of another class more than any of its own, and that by half or more."""
    if len(image.targets) == 0:
        return torch.zeros(len(image.candidates), dtype=torch.bool)
    nearest = pairwise_iou(image.candidates.boxes, image.targets.boxes).amax(dim=1)
    return (nearest >= 0.5) & (_true_ious(image) < nearest)


def by_class(images: Sequence[AssignedCandidates]) -> list[float]:
    """Pearson's coefficient of predicted and true IoU among the candidates of each class that has enough of them."""
    found = []
    for label in range(images[0].candidates.class_scores.shape[1]):
        parts = [
            replace(i, candidates=i.candidates[own], matched=i.matched[own])
            for i in images
            if bool((own := i.candidates.class_scores.argmax(dim=1) == label).any())
        ]
        pearson = correlations(parts)["predicted IoU"]["pearson"] if parts else None
        found += [pearson] if pearson is not None else []
    return found


def page(record: Mapping[str, Any]) -> Iterator[str]:
    """The tables."""
    yield "All IoU-Nets predict IoUs; what a line has after the detector is how their boxes are suppressed, moved and"
    yield "ranked in use. FPN is the same detector trained without the IoU head."
    for data in sorted({key.split(" | ")[0] for key in record}):
        lines, compared, told = [], [], []
        for variant in dict.fromkeys(key.split(" | ")[1] for key in record if key.startswith(f"{data} | ")):
            found = rows_of(record, data, variant)
            for rule in found[0]["ladder"]:
                columns = [[r["ladder"][rule][figure] for r in found] for figure in SHOWN]
                lines.append(row(f"{variant} | {rule} | {found[0]['images']}", columns, len(found)))
            if "suppression" not in found[0]:
                continue
            for change in found[0]["suppression"]:
                both = [[r["suppression"][change][rule]["ap"] for r in found] for rule in ("greedy", "IoU-guided")]
                compared.append(row(f"{variant} | {change}", both, len(found)))
            parts = [
                [r["correlation"]["class score"]["pearson"] for r in found],
                *([r[which]["predicted IoU"]["pearson"] for r in found] for which in CORRELATIONS),
                [sum(r["correlation by class"]) / max(1, len(r["correlation by class"])) for r in found],
            ]
            told.append(row(variant, [[value or 0.0 for value in column] for column in parts], len(found)))
        yield from ("", f"## {data}")
        yield from table(["detector", "in use", "images", "AP", "AP50", "AP75", "AP90", "seeds"], lines)
        yield from ("", "AP by greedy and by IoU-guided suppression of the same candidates:")
        yield from table(["detector", "candidates", "greedy", "IoU-guided", "seeds"], compared)
        yield from ("", "100 × Pearson's correlation with the true IoU, over candidates of IoU above 0.5:")
        head = ["detector", "class score", "predicted IoU", "on training images", "mean within a class", "seeds"]
        yield from table(head, told)


CORRELATIONS = ("correlation", "correlation, training images")
