"""What a calibration reaches, in the lines that `tightbox calibrate` prints."""

from collections.abc import Sequence

import numpy as np

from tightbox.calibration import IOUS, IouCalibration
from tightbox.evaluation.calibrated_results import ResultCalibration
from tightbox.evaluation.figures import Floats, mean
from tightbox.evaluation.fit_margins import covered, fit_margins, matched_boxes, relative_area
from tightbox.evaluation.fit_miss_bound import object_scores
from tightbox.evaluation.matching import Matches
from tightbox.evaluation.reliability import reliability
from tightbox.promises import Margins, Promises

HEADING = "predicted IoU against true IoU      boxes  error  worst  predicted actual"


def before_and_after(split: str, matches: Matches, calibrated: IouCalibration) -> list[str]:
    """How reliable the predicted IoUs of some images are, raw and calibrated."""
    counted = ~matches.at(IOUS[0]).ignored
    raw, actual = matches.ious[counted], matches.best_iou[counted]
    return [reliability_row(split, "before", raw, actual), reliability_row(split, "after", calibrated(raw), actual)]


def reliability_row(split: str, name: str, predicted: Floats, actual: Floats) -> str:
    """One line below the heading, of predicted IoUs (N,) and the true ones."""
    table = reliability(predicted, actual)
    figures = (table.error, table.worst, mean(predicted), mean(actual))
    columns = "".join("      -" if value is None else f"{value:7.3f}" for value in figures)
    return f"{split:25} {name:6} {len(predicted):8d} {columns}"


def promises_kept(
    calibration: Promises, matches: Matches, class_names: Sequence[str], tested: Matches | None = None, where: str = ""
) -> list[str]:
    """What the margins and the score threshold, those that were asked for, reach; on `tested`, named so, if given."""
    lines = []
    if calibration.outer is not None:
        lines += _margins(calibration.outer, calibration.inner, matches, class_names, tested, where)
    if (bound := calibration.misses) is not None:
        # Of a result file all digits, as its rows will be compared with it, and by the score that they had.
        of_rows = isinstance(calibration, ResultCalibration)
        threshold = f"raw_score threshold {bound.threshold!r}" if of_rows else f"score threshold {bound.threshold:.3f}"
        promise = f"at most {bound.miss:g} of the objects are missed, with probability {1 - bound.delta:g}"
        lines.append(f"\n{threshold}: {promise} ({bound.missed} of {bound.objects} were)")
        if tested is not None and len(scores := object_scores(tested)):
            lines.append(f"{where} {np.mean(scores < bound.threshold):.3f} are missed")
    return lines


def _margins(
    outer: Margins, inner: Margins | None, matches: Matches, names: Sequence[str], tested: Matches | None, where: str
) -> list[str]:
    """Coverage and area of the margins, beside those of the plainer kinds."""
    found = matched_boxes(matches, names)
    where, new = ("as learned", found) if tested is None else (where, matched_boxes(tested, names))
    rows: list[tuple[str, Margins, bool]] = []
    for unit in ("pixels", "size", "iou"):
        plain = outer if unit == outer.unit and not outer.classes else fit_margins(found, outer.coverage, unit)
        rows.append((unit, plain, False))
    if outer.classes:
        rows.append((f"{outer.unit} per class", outer, False))
    if inner is not None:
        rows.append((f"{inner.unit}, inner", inner, True))
    title = f"\nouter boxes for a coverage of {outer.coverage:g}, {where}: {len(new)} matched boxes"
    lines = [title, "margins            coverage   area"]
    for name, margins, inward in rows if len(new) else ():
        holds, area = covered(new, margins, inner=inward).mean(), relative_area(new, margins, inner=inward)
        lines.append(f"{name:18} {holds:8.3f} {area:6.2f}")
    if without := [names[label] for label in outer.about.get("classes_without_own", ())]:
        lines.append(f"margins of all classes together, as there are too few boxes, for: {', '.join(without)}")
    return lines
