"""What was found in images, written as the files that other tools read: one small writer for each format."""

import csv
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

from torchvision.ops import box_convert

from tightbox.errors import UserError
from tightbox.files import atomic_path, write_json, write_text
from tightbox.structures import Detections
from tightbox.version import __version__

Format = Literal["coco", "csv", "json", "yolo", "labelstudio"]
Order = Literal["score", "loosest"]


@dataclass(frozen=True, eq=False)
class ImageResult:
    """What was found in one image, or in one frame of a video.

    Attributes:
        image_id: counted from 1 over all images and frames.
        file_name: of the image or the video, as it was given.
        name: where its outputs are, relative to the folder of the results; its suffix is replaced.
        size: its (height, width).
        found: the detections.
        frame: number of the frame, from 0; None of an image.
    """

    image_id: int
    file_name: str
    name: Path
    size: tuple[int, int]
    found: Detections
    frame: int | None = None

    def file(self, folder: Path, suffix: str) -> Path:
        """Where a file about it belongs: at `name` in the folder, with the number of the frame."""
        frame = "" if self.frame is None else f"_{self.frame:06d}"
        return folder / self.name.with_name(self.name.stem + frame + suffix)

    @property
    def source(self) -> dict[str, Any]:
        """The name of the file, and the number of the frame where there is one."""
        return {"file_name": self.file_name} | ({} if self.frame is None else {"frame": self.frame})

    def relative(self, form: str) -> list[list[float]]:
        """Boxes in fractions of the image, in one of `torchvision.ops.box_convert`'s forms."""
        height, width = self.size
        corners = self.found.boxes.double() / self.found.boxes.new_tensor([width, height] * 2)
        rows: list[list[float]] = box_convert(corners, "xyxy", form).tolist()
        return rows

    def loosest_first(self) -> Self:
        """The same with the lowest predicted IoU first.

        Raises:
            UserError: if the detector predicts no IoU.
        """
        if self.found.ious is None:
            raise UserError("this detector predicts no IoU, so --order loosest has nothing to go by; leave it out")
        return replace(self, found=self.found[self.found.ious.argsort(stable=True)])

    def rows(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Rows of a COCO result file, with the names of file and class."""
        rows = self.found.to_coco(self.image_id, range(1, len(class_names) + 1))
        return [row | self.source | {"class": class_names[row["category_id"] - 1]} for row in rows]


def write_results(
    kind: Format, folder: Path, results: Sequence[ImageResult], class_names: Sequence[str], order: Order = "score"
) -> None:
    """Write the results into a folder in one of the formats.

    Args:
        kind: which.
        folder: made if need be.
        results: of all images and frames.
        class_names: the name of each label.
        order: "loosest" puts the boxes of the lowest predicted IoU first: over all images where one file holds them
            all, else in each file.

    Raises:
        UserError: if the disk refuses, or the detector predicts no IoU to order by.
    """
    if order == "loosest":
        results = sorted((result.loosest_first() for result in results), key=_loosest)
    match kind:
        case "coco":
            write_json(folder / "results.json", _all_rows(results, class_names, order))
        case "csv":
            write_csv(folder / "results.csv", _all_rows(results, class_names, order), results)
        case "json":
            for result in results:
                height, width = result.size
                content = {"width": width, "height": height, "detections": box_rows(result.found, class_names)}
                write_json(result.file(folder, ".json"), result.source | content)
        case "yolo":
            write_yolo(folder / "labels", results, class_names)
        case "labelstudio":
            write_json(folder / "labelstudio.json", [labelstudio_task(result, class_names) for result in results])


def write_csv(path: Path, rows: Iterable[dict[str, Any]], results: Iterable[ImageResult]) -> None:
    """One line for each box: corners in pixels, and the size of its image."""
    sizes = {result.image_id: result.size for result in results}
    columns = ("image_id", "file_name", "frame", "width", "height", "class", "score", "iou", "x1", "y1", "x2", "y2")
    # The names of files need not be UTF-8.
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with atomic_path(path) as temporary, temporary.open("w", **how) as file:
        lines = csv.DictWriter(file, columns, extrasaction="ignore")
        lines.writeheader()
        for row in rows:
            (height, width), (x, y, w, h) = sizes[row["image_id"]], row["bbox"]
            corners = {"x1": x, "y1": y, "x2": round(x + w, 3), "y2": round(y + h, 3)}
            lines.writerow(row | {"width": width, "height": height} | corners)


def box_rows(found: Detections, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Each box as [x1, y1, x2, y2] in pixels, with its score, label and class, and its predicted IoU if it has one."""
    rows: list[dict[str, Any]] = [
        {"box": [round(side, 3) for side in box], "score": round(score, 6), "label": label, "class": class_names[label]}
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    ]
    if found.ious is not None:
        for row, iou in zip(rows, found.ious.tolist(), strict=True):
            row["iou"] = round(iou, 6) if math.isfinite(iou) else None
    return rows


def write_yolo(folder: Path, results: Iterable[ImageResult], class_names: Sequence[str]) -> None:
    """A label file for each image, `class x y width height` with centres and sides as fractions, and `classes.txt`."""
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in class_names))
    for result in results:
        rows = zip(result.found.labels.tolist(), result.relative("cxcywh"), strict=True)
        lines = (f"{label} {x:.6f} {y:.6f} {width:.6f} {height:.6f}\n" for label, (x, y, width, height) in rows)
        write_text(result.file(folder, ".txt"), "".join(lines))


def labelstudio_task(result: ImageResult, class_names: Sequence[str]) -> dict[str, Any]:
    """One of Label Studio's tasks, for `<Image name="image"/>` and `<RectangleLabels name="label" toName="image"/>`.

    Boxes are in percent of the image. The score of a region is its class score, and the predicted IoU is in its notes;
    the score of the whole prediction, by which the list of tasks is sorted there, is the lowest predicted IoU.
    """
    height, width = result.size
    regions = []
    for number, (row, box) in enumerate(zip(box_rows(result.found, class_names), result.relative("xywh"), strict=True)):
        value = dict(zip(("x", "y", "width", "height"), (100 * side for side in box), strict=True))
        region: dict[str, Any] = {"id": f"{result.image_id}-{number}", "from_name": "label", "to_name": "image"}
        region |= {"type": "rectanglelabels", "original_width": width, "original_height": height, "image_rotation": 0}
        region |= {"value": value | {"rotation": 0, "rectanglelabels": [row["class"]]}, "score": row["score"]}
        if "iou" in row:
            region["meta"] = {"text": [f"predicted IoU {row['iou']:.3f}"], "iou": row["iou"]}
        regions.append(region)
    # Label Studio serves files of its own disk at this address, if it is told to.
    path = quote(os.fsencode(Path(result.file_name).absolute().as_posix().lstrip("/")))
    prediction = {"model_version": f"tightbox {__version__}", "score": _loosest(result), "result": regions}
    return {"data": {"image": f"/data/local-files/?d={path}"}, "predictions": [prediction]}


def _all_rows(results: Iterable[ImageResult], class_names: Sequence[str], order: Order) -> list[dict[str, Any]]:
    rows = [row for result in results for row in result.rows(class_names)]
    return sorted(rows, key=lambda row: float(row["iou"])) if order == "loosest" else rows


def _loosest(result: ImageResult) -> float:
    """The lowest predicted IoU of the image, the lowest score where there is none, 1 where there is no box."""
    values = result.found.scores if result.found.ious is None else result.found.ious
    return values.min().item() if len(values) else 1.0
