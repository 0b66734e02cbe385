"""A standalone IoU head on photographs, given the boxes of VFNet and of torchvision's Faster R-CNN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

from studies import Job, Plan, figures, row, rows_of, table, validation

from budget import TorchvisionDetector, Training, trained  # isort: skip - found by way of `training`
from tightbox.data.records import DetectionData
from tightbox.inference.detect import detect_data
from tightbox.inference.rescore import rescore_data
from tightbox.models import Detector, IoUNet
from tightbox.rank import by_power
from tightbox.structures import Detections
from tightbox.suppress import greedy_nms, iou_guided_nms

TITLE = "Rescoring by a standalone IoU head"
VARIANTS = {"VFNet": "vfnet", "Faster R-CNN, torchvision": "faster_rcnn"}
OWN = "its own results"
EVERY = 2000  # boxes of an image before suppression
ROWS: dict[str, tuple[str, dict[str, Any]]] = {  # of which detections, and how they are rescored
    "+ refinement": ("after", {}),
    "+ ranked by p^½u^½": ("after", {"rank": by_power, "refine_steps": 0}),
    "+ both": ("after", {"rank": by_power}),
    "before its NMS: greedy": ("before", {"suppress": greedy_nms, "refine_steps": 0}),
    "before its NMS: IoU-guided": ("before", {"suppress": iou_guided_nms, "refine_steps": 0}),
    "before its NMS: IoU-guided, refinement": ("before", {"suppress": iou_guided_nms}),
}
SHOWN = ("ap", "ap50", "ap75", "ap90")


def jobs(plan: Plan) -> dict[str, Job]:
    """Every pair of a detector and a head."""
    return {
        plan.key(data, variant, plan.images, seed): partial(
            measure,
            plan.training(detector, data, seed, plan.images),
            plan.training("iou_net", data, seed, plan.images, options={"standalone": True, "iou_weight": 5.0}),
        )
        for data in plan.data
        for seed in plan.seeds
        for variant, detector in VARIANTS.items()
    }


def measure(job: Training, judge_job: Training) -> dict[str, Any]:
    """Train both, then rescore what the detector finds."""
    model, spent = trained(job)
    judge, _ = trained(judge_job)
    data = validation(job, model)
    found = before_and_after(model, data)
    rows = {OWN: figures(found["after"], data)}
    for name, (kind, how) in ROWS.items():
        suppress = partial(how["suppress"], iou_threshold=model.options.nms_iou) if "suppress" in how else None
        better = rescore_data(cast(IoUNet, judge), data, found[kind], **{**how, "suppress": suppress})
        rows[name] = figures(better, data)
    return {"rows": rows, **spent}


def before_and_after(model: Detector, data: DetectionData) -> dict[str, dict[int, Detections]]:
    """What the detector finds if it suppresses nothing, and by itself."""
    after, options = detect_data(model, data), model.options
    if isinstance(model, TorchvisionDetector):
        heads = cast(Any, model.detector).roi_heads
        model.options = replace(options, nms_iou=heads.nms_thresh)
        heads.nms_thresh, heads.detections_per_img = 1.0, EVERY
        return {"before": detect_data(model, data), "after": after}
    model.options = replace(options, nms_iou=1.0, max_detections=EVERY)
    before = detect_data(model, data)
    model.options = options
    return {"before": before, "after": after}


def page(record: Mapping[str, Any]) -> Iterator[str]:
    """The tables."""
    yield "Both are trained on the same images, the head for as long as the detector. Before its NMS are the results of"
    yield "the same network told to suppress nothing."
    for data in sorted({key.split(" | ")[0] for key in record}):
        lines = []
        for variant in VARIANTS:
            found = rows_of(record, data, variant)
            for name in found[0]["rows"] if found else ():
                columns = [[r["rows"][name][figure] for r in found] for figure in SHOWN]
                lines.append(row(f"{variant} | {name}", columns, len(found)))
        yield from ("", f"## {data}")
        yield from table(["detector", "results", "AP", "AP50", "AP75", "AP90", "seeds"], lines)
