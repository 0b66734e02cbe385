"""IoU-aware RetinaNet on photographs: with and without the IoU branch, α chosen on images that are not reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from studies import Job, Plan, halves, row, rows_of, table, validation

from budget import Training, trained  # isort: skip - found by way of `training`
from tightbox.boxes import pairwise_iou
from tightbox.data.records import DetectionData
from tightbox.inference.candidates import ImageCandidates, iterate_candidates, select_all
from tightbox.rank import by_class_score, by_power

TITLE = "IoU-aware RetinaNet"
VARIANTS: dict[str, dict[str, Any]] = {
    "RetinaNet": {"iou_head": False},
    "+ IoU branch": {},
    "+ IoU branch, target detached": {"detach_target": True},
}
ALPHAS = tuple(i / 10 for i in range(1, 10))
BOUND = "upper bound"
SHOWN = ("ap", "ap50", "ap75", "ap90")


def jobs(plan: Plan) -> dict[str, Job]:
    """Every training with its measurements, twice as long as others; RetinaNet also once, to see if it still rises."""
    lengths = [(variant, 2 * plan.images) for variant in VARIANTS]
    lengths.insert(2, ("RetinaNet", plan.images))
    return {
        plan.key(data, variant, images, seed): partial(
            measure, plan.training("iou_aware_retinanet", data, seed, images, options=VARIANTS[variant])
        )
        for variant, images in lengths
        for data in plan.data
        for seed in plan.seeds
    }


def measure(job: Training) -> dict[str, Any]:
    """Train, then rank the same candidates by the class score and by p^α·u^(1−α)."""
    model, spent = trained(job)
    data = validation(job, model)
    images = list(iterate_candidates(model, data))
    ranks = {"class score": by_class_score}
    if model.options.iou_head:
        ranks |= {f"{alpha:.1f}": partial(by_power, alpha=alpha) for alpha in ALPHAS}
    by_rank = {
        name: halves(select_all(images, data, partial(model.select, rank=rank)), data) for name, rank in ranks.items()
    }
    if not model.options.iou_head:
        return {"by_rank": by_rank, **spent}
    known = [_with_true_ious(image, data) for image in images]
    bound = halves(select_all(known, data, partial(model.select, rank=partial(by_power, alpha=0.5))), data)
    return {"by_rank": by_rank, BOUND: bound, **spent}


def _with_true_ious(image: ImageCandidates, data: DetectionData) -> ImageCandidates:
    """Every predicted IoU is the IoU with the nearest object of any class, as in the paper's upper bound."""
    record, boxes = data.records[image.index], image.candidates.boxes
    scale = boxes.new_tensor([image.size[1] / record.width, image.size[0] / record.height] * 2)
    objects = torch.from_numpy(record.boxes[~record.crowd]) * scale
    nearest = pairwise_iou(boxes, objects).amax(dim=1) if len(objects) else boxes.new_zeros(len(boxes))
    return replace(image, candidates=replace(image.candidates, ious=nearest))


def chosen(result: Mapping[str, Any]) -> str:
    """The ranking with the best AP on the images to choose by."""
    by_rank: dict[str, Any] = result["by_rank"]
    return max(by_rank, key=lambda name: float(by_rank[name]["choose"]["ap"]))


def reported(result: Mapping[str, Any], rank: str = "") -> Mapping[str, float]:
    """The figures on the other images, by a ranking; the chosen one if none is given."""
    figures: Mapping[str, float] = result["by_rank"][rank or chosen(result)]["report"]
    return figures


def page(record: Mapping[str, Any]) -> Iterator[str]:
    """The tables."""
    yield "α of p^α·u^(1−α) is chosen, for each training, on every other image of the validation split; the figures are"
    yield "of the rest. The upper bound has the IoU with the nearest object for every predicted one, at α = 0.5."
    yield "Trainings of half the length tell whether RetinaNet still rises."
    for data in sorted({key.split(" | ")[0] for key in record}):
        lines = []
        lengths = sorted({key.split(" | ")[2] for key in record if key.startswith(f"{data} | ")}, key=int)
        for variant in VARIANTS:
            for images in lengths:
                found = rows_of(record, data, variant, images)
                for rank in ("class score", "0.5", "") if found else ():
                    if (rank and rank not in found[0]["by_rank"]) or (not rank and len(found[0]["by_rank"]) == 1):
                        continue
                    columns = [[reported(r, rank)[figure] for r in found] for figure in SHOWN]
                    alphas = ", ".join(chosen(r) for r in found)
                    shown = {"class score": rank, "0.5": "α = 0.5", "": f"chosen: {alphas}"}[rank]
                    lines.append(row(f"{variant} | {shown} | {images}", columns, len(found)))
                if found and BOUND in found[0]:
                    columns = [[r[BOUND]["report"][figure] for r in found] for figure in SHOWN]
                    lines.append(row(f"{variant} | {BOUND} | {images}", columns, len(found)))
        head = ["detector", "ranked by", "images", "AP", "AP50", "AP75", "AP90", "seeds"]
        yield from ("", f"## {data}")
        yield from table(head, lines)
