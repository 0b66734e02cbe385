"""Detectors as ONNX files, and what ONNX Runtime finds with them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from tests.helpers.models import small_vfnet, tiny_iou_net, tiny_retinanet, tiny_unitbox
from tightbox.calibration import IOUS, PRECISIONS, Calibration, IouCalibration
from tightbox.export.onnx_file import write_onnx
from tightbox.models import Detector, IoUAwareRetinaNet, VFNet, load
from tightbox.models.mmdet import export_state, import_checkpoint
from tightbox.options import BackboneOptions, Preprocess
from tightbox.structures import Detections, ImageBatch

# Two steep steps and flat ends: a mistake in any knot shows.
KNOTS = IouCalibration((0.005, 0.0099, 0.00991, 0.0102, 0.02), (0.1, 0.2, 0.4, 0.5, 0.9))
CALIBRATION = Calibration(KNOTS, tuple((None,) * len(PRECISIONS) for _ in IOUS), {})
SIZES = [((64, 64),), ((70, 93), (33, 50)), ((31, 33), (1, 1)), ((257, 31), (100, 300)), ((40, 57),) * 8]


@dataclass(frozen=True)
class Exported:
    """A detector and its file."""

    model: Detector
    path: Path


def disturb(model: Detector, scale: float = 0.05) -> Detector:
    """Random numbers added to every weight, so that no two places of an image score the same."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * max(0.1, float(parameter.std(correction=0))) * torch.randn_like(parameter))
    return model.eval()


def run(path: Path, batch: ImageBatch) -> list[NDArray[np.generic]]:
    """The file's outputs for a batch."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {"images": batch.pixels.numpy(), "sizes": np.array(batch.sizes, dtype=np.int64)}
    return list(session.run(["boxes", "scores", "labels", "ious", "counts"], inputs))


def assert_same(outputs: list[NDArray[np.generic]], expected: list[Detections]) -> None:
    """Boxes to 0.01 px, scores and IoUs to 1e-4, labels exactly; and what lies beyond the count is empty."""
    boxes, scores, labels, ious, counts = map(torch.as_tensor, outputs)
    assert counts.tolist() == [len(found) for found in expected]
    assert counts.sum() > 0
    for i, found in enumerate(expected):
        n = len(found)
        torch.testing.assert_close(boxes[i, :n], found.boxes, rtol=0, atol=0.01)
        torch.testing.assert_close(scores[i, :n], found.scores, rtol=0, atol=1e-4)
        assert labels[i, :n].equal(found.labels)
        if found.ious is None:
            assert ious[i].isnan().all()
        else:
            torch.testing.assert_close(ious[i, :n], found.ious, rtol=0, atol=1e-4)
        assert (boxes[i, n:] == 0).all()
        assert (scores[i, n:] == 0).all()
        assert (labels[i, n:] == -1).all()
        assert ious[i, n:].isnan().all()


def export_published_vfnet(folder: Path) -> Exported:
    """A VFNet with deformable towers that came from a file of mmdetection, ranks pairs, and is calibrated."""
    return _published(small_vfnet(classes=2, deformable=True), folder, CALIBRATION)


def export_published_deformable(folder: Path) -> Exported:
    """The same on a ResNet-50 with deformable stages; it is not calibrated."""
    backbone = BackboneOptions(name="resnet50", pretrained=False, deformable=True)
    return _published(small_vfnet(classes=2, deformable=True, backbone=backbone), folder, None)


def _published(source: VFNet, folder: Path, calibration: Calibration | None) -> Exported:
    torch.save({"meta": {"CLASSES": ("cat", "dog")}, "state_dict": export_state(disturb(source))}, folder / "vfnet.pth")
    model = import_checkpoint(folder / "vfnet.pth", top_k_of="pairs")
    model.preprocess = Preprocess(long_side=96, short_side=64)
    model.options = replace(model.options, score_threshold=0.0, max_detections=20, top_k=50)
    model.calibration = calibration
    return write(model.eval(), folder)


def export_iou_net(folder: Path) -> Exported:
    """A calibrated IoU-Net that suppresses by its predicted IoUs and refines nothing."""
    model = disturb(tiny_iou_net(refine_steps=0))
    model.calibration = CALIBRATION
    return write(model, folder)


def export_retinanet(folder: Path) -> Exported:
    """A calibrated IoU-aware RetinaNet with score voting."""
    model = disturb(tiny_retinanet(alpha=0.4, suppress="voting"))
    model.calibration = CALIBRATION
    assert isinstance(model, IoUAwareRetinaNet)
    with torch.no_grad():  # scores a millionth apart would be ranked by rounding
        model.head.classes.weight *= 100
    return write(model, folder)


def export_unitbox(folder: Path) -> Exported:
    """A UnitBox whose dense reading has fewer places than it could."""
    return write(disturb(tiny_unitbox(2, dense_stride=8, top_k=40)), folder)


def read_densely(model: Detector, batch: ImageBatch) -> list[Detections]:
    """What a UnitBox finds without connected regions."""
    with torch.no_grad():
        return [model.select(candidates) for candidates in model.candidates(batch)]


def write(model: Detector, folder: Path) -> Exported:
    """The detector, saved and read again, and its file."""
    model.save(folder / "checkpoint")
    # The exporter logs each step of its work at the level DEBUG, which pytest would format and keep.
    logging.disable(logging.INFO)
    try:
        write_onnx(model, folder / "model.onnx")
    finally:
        logging.disable(logging.NOTSET)
    return read_exported(folder)


def read_exported(folder: Path) -> Exported:
    """What `write` left in a folder."""
    return Exported(load(folder / "checkpoint"), folder / "model.onnx")
