"""UnitBox on photographs: its two readings, what touching objects cost, and both of the paper's experiments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any, cast

import torch
from studies import Job, Part, Plan, figures, row, rows_of, table, validation
from training import spread
from unitbox_losses import SIZES, ious_at_centres, recalls

from budget import Training, trained  # isort: skip - found by way of `training`
from tightbox.assigners import level_points, pixel_regions
from tightbox.boxes import decode_distances, encode_distances
from tightbox.data.records import DetectionData
from tightbox.inference.candidates import iterate_candidates, select_all
from tightbox.inference.detect import batches, detect_data
from tightbox.models import UnitBox
from tightbox.models.dense import matched_objects
from tightbox.models.unitbox import PixelOutput
from tightbox.structures import Detections

TITLE = "UnitBox"
HALF, WHOLE = ({"region_scale": scale, "threshold": 0.5} for scale in (0.5, 1.0))
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # of the confidence
CERTAIN = 20.0  # a logit whose sigmoid is 1 in float32
ONE, PER_CLASS = Part(one_class=True), Part()
IOU_LOSS = "one class, region of half the size"
PUBLISHED = "one class, published region"
BY_THRESHOLD = "one class, half region, several thresholds"
# name: (part, options, schedule)
VARIANTS: dict[str, tuple[Part, dict[str, Any], dict[str, Any]]] = {
    IOU_LOSS: (ONE, HALF, {}),
    "one class, half region, ℓ2 at 0.003": (ONE, {**HALF, "loss": "l2"}, {}),
    PUBLISHED: (ONE, WHOLE, {}),
    "per class, region of half the size": (PER_CLASS, HALF, {}),
    "one class, half region, ℓ2 at 0.01": (ONE, {**HALF, "loss": "l2"}, {"lr": 0.01}),
    "one class, half region, ℓ2 at 0.001": (ONE, {**HALF, "loss": "l2"}, {"lr": 0.001}),
    "per class, published region": (PER_CLASS, WHOLE, {}),
    BY_THRESHOLD: (ONE, HALF, {}),
}
L2_LOSS = [name for name in VARIANTS if "ℓ2" in name]
ORACLES = ("true confidence map", "true confidence map, true boxes", "predicted box at each object's centre")


def jobs(plan: Plan) -> dict[str, Job]:
    """Every training with its measurements; what matters most comes first."""
    return {
        plan.key(data, variant, plan.images, seed): partial(
            measure_thresholds if variant == BY_THRESHOLD else measure,
            plan.training("unitbox", data, seed, plan.images, part, options=options, schedule=schedule),
        )
        for variant, (part, options, schedule) in VARIANTS.items()
        for data in plan.data
        for seed in plan.seeds
    }


def measure(job: Training) -> dict[str, Any]:
    """Train, then read the maps in both ways, with parts of them true, and at six sizes."""
    trained_model, spent = trained(job)
    model = cast(UnitBox, trained_model)
    data = validation(job, model)
    dense = select_all(iterate_candidates(model, data), data, model.select)
    found = detect_data(model, data)
    return {
        "regions": figures(found, data),
        "dense": figures(dense, data),
        **oracle(model, data),
        "recalls": recalls(found, data, len(data.records)),
        "recalls, dense": recalls(dense, data, len(data.records)),
        "ious": {str(size): mean(ious_at_centres(model, data, size)) for size in SIZES},
        **spent,
    }


def measure_thresholds(job: Training) -> dict[str, Any]:
    """Train, then read the regions by each threshold above which a pixel's confidence makes it part of one."""
    model, spent = trained(job)
    data, own, found = validation(job, model), cast(UnitBox, model).options, {}
    for threshold in THRESHOLDS:
        model.options = replace(own, threshold=threshold)
        found[str(threshold)] = figures(detect_data(model, data), data)
    return {"by threshold": found, **spent}


@torch.inference_mode()
def oracle(model: UnitBox, data: DetectionData) -> dict[str, dict[str, float]]:
    """The figures with the true confidence map, with both maps true, and with one box for each object, undisturbed.

    The first two differ from the third in that objects whose regions touch are one region.
    """
    found: dict[str, dict[int, Detections]] = {name: {} for name in ORACLES}
    for images, targets, indices in batches(model, data):
        pixels, _ = model._normalise(images)
        output = model(pixels)
        for i, (index, size, target) in enumerate(zip(indices, images.sizes, targets, strict=True)):
            options = model.options
            classes = len(model.class_names)
            confidence, matched = pixel_regions(size, [target], classes, options.region, options.region_scale)
            true_boxes, _ = matched_objects([target], matched.flatten(1))
            points = level_points([size], [1], offset=0.5, device=pixels.device)
            true_distances = encode_distances(points, true_boxes).mT.unflatten(2, size)
            logits = (2 * confidence - 1) * CERTAIN
            predicted = output.distances[i : i + 1, :, : size[0], : size[1]]
            for name, distances in zip(ORACLES[:2], (predicted, true_distances), strict=True):
                found[name][index] = model._detections(model._read_regions(PixelOutput(logits, distances), 0, size))
            x, y = ((target.boxes[:, :2] + target.boxes[:, 2:]) / 2).long().unbind(1)
            boxes = decode_distances(torch.stack([x, y], dim=1) + 0.5, predicted[0, :, y, x].T)
            found[ORACLES[2]][index] = Detections(boxes, torch.ones_like(boxes[:, 0]), target.labels)
            for of_image in found.values():
                of_image[index] = of_image[index].to("cpu").resized(size, data.records[index].size)
    return {name: figures(dict(sorted(rows.items())), data) for name, rows in found.items()}


def page(record: Mapping[str, Any]) -> Iterator[str]:
    """The tables."""
    yield "The published reading takes one box of each connected region; the dense reading takes the box of every"
    yield "fourth pixel and suppresses greedily. The oracles replace the confidence map, or both maps, by the truth"
    yield "before the regions are read, or read the predicted box at the centre of each object, whatever the regions:"
    yield "between the first and the last of them lies what objects that touch cost. ℓ2 has three learning rates, the"
    yield "IoU loss one."
    for data in sorted({key.split(" | ")[0] for key in record}):
        lines, recalls_, sizes = [], [], []
        for variant in VARIANTS:
            found = rows_of(record, data, variant)
            if not found or variant == BY_THRESHOLD:
                continue
            kinds = ("regions", "dense", *ORACLES)
            columns = [[r[kind][figure] for r in found] for kind in kinds for figure in ("ap", "ap50")]
            lines.append(row(variant, columns, len(found)))
            which = [(kind, name) for kind in ("recalls", "recalls, dense") for name in ("recall", "miss")]
            recalls_.append(row(variant, [[r[kind][name] for r in found] for kind, name in which], len(found)))
            means = [spread([r["ious"][str(size)] for r in found], 3) for size in SIZES]
            sizes.append(f"| {variant} | {' | '.join(means)} | {len(found)} |")
        head = ["UnitBox", *(f"{kind}: {figure}" for kind in KINDS for figure in ("AP", "AP50")), "seeds"]
        yield from ("", f"## {data}")
        yield from table(head, lines)
        if found := [r["by threshold"] for r in rows_of(record, data, BY_THRESHOLD)]:
            yield from (
                "",
                "One class, regions of half the size, by the confidence above which a pixel is part of one:",
            )
            read = [(name, [[r[str(t)][name.lower()] for r in found] for t in THRESHOLDS]) for name in ("AP", "AP50")]
            lines = [row(name, columns, len(found)) for name, columns in read]
            yield from table(["regions", *map(str, THRESHOLDS), "seeds"], lines)
        yield from ("", "Recall with at most one false positive an image, and objects missed by all boxes (IoU 0.5):")
        yield from table(["UnitBox", "recall", "missed", "dense: recall", "dense: missed", "seeds"], recalls_)
        yield from ("", "Mean IoU of the box read at each object's middle, in images resized to so many pixels:")
        yield from table(["UnitBox", *map(str, SIZES), "seeds"], sizes)


KINDS = ("regions", "dense", "true confidence", "both true", "at the centres")
