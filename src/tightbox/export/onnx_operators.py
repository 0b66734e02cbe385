"""How the operators of this package are written in ONNX; needs the extra `export`."""

from __future__ import annotations

from typing import Any

import torch
from onnxscript import BOOL, FLOAT, INT64, graph, script
from onnxscript import opset18 as op  # which the exporter writes, before it converts the file

import tightbox.ops.prroi_pool
import tightbox.suppress  # noqa: F401  # either registers its operator


def translations() -> dict[Any, Any]:
    """For `torch.onnx.export`: a function of ONNX for each operator."""
    return {
        torch.ops.tightbox.suppress.default: suppress_in_onnx,
        torch.ops.tightbox.integrate_windows.default: integrate_windows_in_onnx,
    }


def suppress_in_onnx(boxes: Any, scores: Any, iou_threshold: float, score_threshold: float, most: int) -> Any:
    """`tightbox.suppress.suppress` as the runtime's own operator.

    It has every limit, without which some runtimes keep and sort all boxes.
    """
    threshold = op.Constant(value_floats=[score_threshold])
    limits = op.Constant(value_ints=[most]), op.Constant(value_floats=[iou_threshold]), threshold
    chosen = op.NonMaxSuppression(boxes, scores, *limits)  # (S, 3): image, class and box
    nothing = op.Expand(threshold, op.Shape(scores))
    return op.ScatterND(nothing, chosen, op.GatherND(scores, chosen))


@script(default_opset=op)  # type: ignore[untyped-decorator]
def integrate_windows_in_onnx(table: FLOAT[...], edges: FLOAT[...], windows: INT64[...]) -> FLOAT[...]:
    """`tightbox.ops.prroi_pool.integrate_windows`; a loop, as what a box covers differs from box to box."""

    @graph()  # type: ignore[untyped-decorator]
    def pool_one(box: INT64, go_on: BOOL):  # type: ignore[no-untyped-def]
        top, bottom, left, right, start, width = op.Split(op.Gather(windows, box), num_outputs=6)
        step = op.Constant(value_int=1)
        y = op.Range(op.Squeeze(top), op.Squeeze(bottom), step)
        x = op.Range(op.Squeeze(left), op.Squeeze(right), step)
        y_edges, x_edges = op.Split(op.Gather(edges, box), num_outputs=2, axis=0)
        y_at = op.Clip(op.Transpose(y_edges) - op.CastLike(y, edges), -1.0, 1.0)
        x_at = op.Clip(op.Transpose(x_edges) - op.CastLike(x, edges), -1.0, 1.0)
        y_sums = y_at - op.Abs(y_at) * y_at * 0.5
        x_sums = x_at - op.Abs(x_at) * x_at * 0.5
        of_y = op.Slice(y_sums, [1], [1000], [0]) - op.Slice(y_sums, [0], [-1], [0])
        of_x = op.Slice(x_sums, [1], [1000], [0]) - op.Slice(x_sums, [0], [-1], [0])
        features = op.Gather(table, start + op.Unsqueeze(y, [1]) * width + x)  # (h, w, C)
        by_row = op.MatMul(of_y, op.Reshape(features, op.Concat(bottom - top, [-1], axis=0)))
        by_row = op.Reshape(by_row, op.Concat([-1], right - left, op.Shape(table, start=1, end=2), axis=0))
        also = op.Identity(go_on)
        return also, op.MatMul(of_x, by_row)

    count = op.Squeeze(op.Shape(edges, start=0, end=1))
    return op.Loop(count, op.Cast(count, to=9), body=pool_one)
