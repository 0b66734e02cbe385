"""Anybody's COCO results with calibrated scores, the IoU to expect, and boxes that hold their object."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tightbox.calibration import IOUS, IouCalibration
from tightbox.errors import UserError
from tightbox.evaluation.figures import Floats
from tightbox.evaluation.fit_calibration import FITS, choose_of_pairs
from tightbox.evaluation.matching import Matches
from tightbox.promises import Promises


@dataclass(frozen=True)
class ResultCalibration(Promises):
    """What the results of held-out images taught about a tool's numbers.

    Attributes:
        by_score: whether the score stands in for the predicted IoU, as the results have none.
        scores: from the score to the IoU that counts: that of a right box, 0 of a wrong one.
        ious: from the raw predicted IoU to the IoU to expect with the nearest object of the class.
        class_ids: category id of each label of the margins.
    """

    by_score: bool
    scores: IouCalibration
    ious: IouCalibration
    class_ids: tuple[int, ...]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rows of a COCO result file of the same tool with calibrated numbers, the raw ones beside them.

        Raises:
            UserError: if a row has no predicted IoU, or a class, that the calibration needs.
        """
        if not rows:
            return []
        scores = np.array([row["score"] for row in rows], dtype=np.float64)
        raw = scores if self.by_score else np.array([row.get("iou", np.nan) for row in rows], dtype=np.float64)
        if np.isnan(raw).any():
            raise UserError("a row to calibrate has no iou, but those that it was learned from have; write it too")
        calibrated, ious = self.scores(scores), self.ious(raw)
        boxes = self._boxes(rows, raw)
        changed = []
        for i, row in enumerate(rows):
            kept = {"raw_score": row["score"]} | ({} if self.by_score else {"raw_iou": row["iou"]})
            more = {name: values[i].round(3).tolist() for name, values in boxes.items()}
            changed.append({**row, **kept, "score": float(calibrated[i]), "iou": float(ious[i]), **more})
        return changed

    def _boxes(self, rows: Sequence[Mapping[str, Any]], raw: Floats) -> dict[str, Floats]:
        """(N, 4) [x, y, width, height] of the outer and inner boxes, those that there are."""
        corners = np.array([row["bbox"] for row in rows], dtype=np.float64)
        corners[:, 2:] += corners[:, :2]
        label_of = {category: label for label, category in enumerate(self.class_ids)}
        try:
            labels = np.array([label_of[row["category_id"]] for row in rows])
        except KeyError as error:
            raise UserError(f"a row to calibrate has the category_id {error}, which the ground truth lacks") from error
        moved = self.moved(corners, raw, labels)
        return {f"{name}_bbox": np.hstack([b[:, :2], b[:, 2:] - b[:, :2]]) for name, b in moved.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        maps = {"scores": self.scores.to_json(), "ious": self.ious.to_json()}
        return {"by_score": self.by_score, **maps, "class_ids": list(self.class_ids), **self.promises_to_json()}


def fit_maps(matches: Matches) -> tuple[bool, IouCalibration, IouCalibration]:
    """Whether scores stand in for predicted IoUs, and the maps of scores and of predicted IoUs.

    Each is the simplest that helps on images it was not learned from (`choose_of_pairs`), of all classes together.

    Raises:
        UserError: if there are too few detections.
    """
    outcome = matches.at(IOUS[0])
    counted = ~outcome.ignored
    scores, images = matches.scores[counted], matches.images[counted]
    by_score = bool(np.isnan(matches.ious).any())
    raw_ious = scores if by_score else matches.ious[counted]
    pairs = (scores, outcome.earned[counted]), (raw_ious, matches.best_iou[counted])
    of_scores, of_ious = (FITS[choose_of_pairs(*pair, images).method](*pair) for pair in pairs)
    return by_score, of_scores, of_ious
