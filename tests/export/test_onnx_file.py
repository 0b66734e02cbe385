from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

from tests.helpers.commands import status
from tests.helpers.exported import (
    CALIBRATION,
    SIZES,
    Exported,
    assert_same,
    export_published_deformable,
    read_densely,
    run,
)
from tests.helpers.models import image_batch, tiny_iou_net, tiny_retinanet
from tightbox.errors import UserError
from tightbox.export.onnx_file import write_onnx
from tightbox.structures import ImageBatch


def test_a_published_vfnet_detects_the_same(exported_vfnet: Exported) -> None:
    for sizes in SIZES:
        batch = image_batch(*sizes)
        assert_same(run(exported_vfnet.path, batch), exported_vfnet.model.detect(batch))


def test_another_published_vfnet_detects_the_same(tmp_path: Path) -> None:
    exported = export_published_deformable(tmp_path)
    for sizes in SIZES:
        batch = image_batch(*sizes)
        assert_same(run(exported.path, batch), exported.model.detect(batch))


def test_an_image_need_not_be_padded(exported_vfnet: Exported) -> None:
    image = torch.rand(3, 37, 51)
    outputs = run(exported_vfnet.path, ImageBatch(image[None], ((37, 51),)))
    assert_same(outputs, exported_vfnet.model.detect([image]))


def test_an_iou_aware_retinanet_detects_the_same(exported_retinanet: Exported) -> None:
    for sizes in SIZES:
        batch = image_batch(*sizes)
        assert_same(run(exported_retinanet.path, batch), exported_retinanet.model.detect(batch))


def test_a_unitbox_is_read_densely(exported_unitbox: Exported) -> None:
    for sizes in SIZES:
        batch = image_batch(*sizes)
        assert_same(run(exported_unitbox.path, batch), read_densely(exported_unitbox.model, batch))


def test_an_iou_net_detects_the_same_without_refinement(exported_iou_net: Exported) -> None:
    for sizes in SIZES:
        batch = image_batch(*sizes)
        assert_same(run(exported_iou_net.path, batch), exported_iou_net.model.detect(batch))
    (entry,) = onnx.load(exported_iou_net.path).metadata_props
    assert json.loads(entry.value)["refinement"] == "none"


def test_the_file_describes_itself(exported_vfnet: Exported) -> None:
    proto = onnx.load(exported_vfnet.path)
    onnx.checker.check_model(proto)
    assert proto.producer_name == "tightbox"
    (entry,) = [entry for entry in proto.metadata_props if entry.key == "tightbox"]
    about = json.loads(entry.value)
    assert about["class_names"] == ["cat", "dog"]
    assert (about["model"], about["format"], about["ranking"]) == ("vfnet", 1, "class score")
    assert (about["preprocessing"]["long_side"], about["preprocessing"]["short_side"]) == (96, 64)
    assert (about["score_threshold"], about["nms_iou"], about["max_detections"]) == (0.0, 0.6, 20)
    assert (about["predicts_iou"], about["calibrated"]) == (True, True)
    assert about["calibration"] == CALIBRATION.to_json()
    assert "Apache-2.0" in about["licence"]
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert shapes == {
        "images": ["batch", 3, "height", "width"],
        "sizes": ["batch", 2],
        "boxes": ["batch", 20, 4],
        "scores": ["batch", 20],
        "labels": ["batch", 20],
        "ious": ["batch", 20],
        "counts": ["batch"],
    }


def test_suppression_has_every_limit(exported_vfnet: Exported) -> None:
    """Without a score threshold and a count, some runtimes keep and sort all boxes."""
    nodes = [node for node in onnx.load(exported_vfnet.path).graph.node if node.op_type == "NonMaxSuppression"]
    assert [len([name for name in node.input if name]) for node in nodes] == [5]  # scores, and three limits


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a standalone IoU head cannot be exported: it finds no boxes"):
        write_onnx(tiny_iou_net(standalone=True), tmp_path / "model.onnx")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        write_onnx(tiny_retinanet(), tmp_path / "file" / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_command(
    exported_vfnet: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = exported_vfnet.path.parent / "checkpoint", tmp_path / "new" / "model.onnx"
    monkeypatch.setattr("tightbox.export.onnx_file.to_onnx", lambda _: onnx.load(exported_vfnet.path))
    assert status(["export", checkpoint, "--format", "onnx", "--out", out]) == 0
    assert onnx.load(out) == onnx.load(exported_vfnet.path)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"written: {out}, ")
    assert second == f"next: tightbox-runtime predict {out} YOUR_IMAGES --out results.json"
