"""Do outer boxes keep their promise? Coverage and area of the margins over random splits of held-out images.

    python recipes/conformal_study.py --set NAME CHECKPOINT DATA [--set ...]

Each set's validation and test images are put together and parted at random, again and again, into one half to calibrate
on and one to test on. The network runs once over each set, and once for each kind of shift; that is kept in
`runs/conformal`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from training import HERE, machine, spread

from tightbox.calibration import IOUS
from tightbox.data.layout import read_data, splits
from tightbox.data.records import DetectionData
from tightbox.errors import UserError
from tightbox.evaluation.fit_calibration import FITS, choose_of_pairs
from tightbox.evaluation.fit_margins import MatchedBoxes, covered, fit_margins, matched_boxes, relative_area
from tightbox.evaluation.fit_miss_bound import bound_of_scores, object_scores
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.evaluation.matching import match
from tightbox.evaluation.reliability import reliability
from tightbox.files import atomic_path, write_json
from tightbox.images import open_image
from tightbox.inference.detect import Loading, detect_data
from tightbox.models import load
from tightbox.promises import Margins

KEPT = Path("runs/conformal")
COVERAGE, MISS, DELTA = 0.9, 0.2, 0.1
SHIFTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "darker (brightness × 0.5)": lambda image: ImageEnhance.Brightness(image).enhance(0.5),
    "blurred (σ = 2 pixels)": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
}
MARGINS: dict[str, dict[str, Any]] = {
    "pixels": {"unit": "pixels"},
    "size": {"unit": "size"},
    "size × predicted IoU": {"unit": "iou"},
    "the same, Bonferroni": {"unit": "iou", "simultaneous": "bonferroni"},
    "the same, per class": {"unit": "iou", "classes": True},
    "the same, inner boxes": {"unit": "iou", "inner": True},
}
AS_THEY_ARE = "as they are"
BY_IOU = "size × predicted IoU"


@dataclass(frozen=True, eq=False)
class Found:
    """One pass of a detector over a set: matched boxes, all pairs of predicted and true IoU, and objects' scores."""

    boxes: NDArray[Any]
    errors: NDArray[Any]
    raw: NDArray[Any]
    labels: NDArray[Any]
    images: NDArray[Any]
    pair_raw: NDArray[Any]
    pair_true: NDArray[Any]
    pair_images: NDArray[Any]
    object_scores: NDArray[Any]
    object_images: NDArray[Any]
    classes: NDArray[Any]

    def matched(self, images: NDArray[Any] | None = None) -> MatchedBoxes:
        """The matched boxes of some of the images, or of all."""
        every = MatchedBoxes(self.boxes, self.errors, self.raw, self.labels, self.images)
        return every if images is None else every[np.isin(self.images, images)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--set", nargs=3, action="append", required=True, metavar=("NAME", "CHECKPOINT", "DATA"))
    parser.add_argument("--splits", type=int, default=100, help="random splits into calibration and test images")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of conformal.md, .json and .png")
    args = parser.parse_args()
    path = args.out / "conformal.json"
    studies = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    sets = {name: {AS_THEY_ARE: found(name, Path(checkpoint), Path(data), None)} for name, checkpoint, data in args.set}
    for name, checkpoint, data in args.set:
        for shift in SHIFTS:
            sets[name][shift] = found(name, Path(checkpoint), Path(data), shift)
    for name in sets:
        others = {f"the boxes of {other} instead": sets[other][AS_THEY_ARE] for other in sets if other != name}
        studies[name] = study(sets[name][AS_THEY_ARE], sets[name], others, args.splits) | {
            "command": shlex.join(["python", *sys.argv]),
            "machine": machine(),
            "date": str(datetime.date.today()),
        }
    write_json(path, studies)
    with atomic_path(args.out / "conformal.md") as temporary:
        temporary.write_text(report(studies), encoding="utf-8")
    draw(studies, args.out / "conformal.png")
    print((args.out / "conformal.md").read_text(encoding="utf-8"))
    return 0


def found(name: str, checkpoint: Path, folder: Path, shift: str | None) -> Found:
    """What the detector finds in the validation and test images, from the last time if the weights are the same."""
    number = "plain" if shift is None else f"shift{list(SHIFTS).index(shift)}"
    kept = KEPT / f"{name}-{number}-{int((checkpoint / 'weights.safetensors').stat().st_mtime)}.npz"
    if not kept.exists():
        parts = [of_split(checkpoint, read_data(folder, s), shift) for s in splits(folder) if s != "train"]
        columns = {field.name: together(field.name, parts) for field in fields(Found)}
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(kept) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **columns)
        print(f"detected: {kept}", flush=True)
    with np.load(kept) as content:
        return Found(**dict(content))


def together(field: str, parts: Sequence[Found]) -> NDArray[Any]:
    """A column of all parts, their images numbered on."""
    if field == "classes":
        return parts[0].classes
    if not field.endswith("images"):
        return np.concatenate([getattr(part, field) for part in parts])
    return np.concatenate([getattr(part, field) + 1_000_000 * i for i, part in enumerate(parts)])


def of_split(checkpoint: Path, data: DetectionData, shift: str | None) -> Found:
    """One pass over one split, of images that are changed before the detector sees them."""
    model = load(checkpoint, calibrated=False)
    known = data.with_classes(model.class_names)
    with tempfile.TemporaryDirectory() as folder:
        seen = known if shift is None else changed(known, SHIFTS[shift], Path(folder))
        detections = detect_data(model, seen, loading=Loading(4, 0, False))
    ground_truth = GroundTruth.from_data(known)
    matches = match(ground_truth, Predictions.from_detections(detections, known), IOUS)
    boxes, counted = matched_boxes(matches, model.class_names), ~matches.at(0.5).ignored
    return Found(
        **{field.name: getattr(boxes, field.name) for field in fields(MatchedBoxes)},
        pair_raw=matches.ious[counted],
        pair_true=matches.best_iou[counted],
        pair_images=matches.images[counted],
        object_scores=object_scores(matches),
        object_images=ground_truth.images[~ground_truth.crowd],
        classes=np.array(len(model.class_names)),
    )


def changed(data: DetectionData, change: Callable[[Image.Image], Image.Image], folder: Path) -> DetectionData:
    """The same data with changed copies of the images."""
    records = []
    for number, record in enumerate(data.records):
        path = folder / f"{number}.png"
        change(open_image(record.path).convert("RGB")).save(path)
        records.append(replace(record, path=path))
    return replace(data, records=tuple(records))


def study(plain: Found, shifted: dict[str, Found], others: dict[str, Found], count: int) -> dict[str, Any]:
    """All figures of one set, one value for each random split."""
    images = np.unique(plain.object_images)
    result: dict[str, Any] = {"images": len(images), "objects": len(plain.object_images), "matched": len(plain.boxes)}
    rows: dict[str, dict[str, list[float]]] = {}
    shifts: dict[str, list[float]] = {}
    ece: dict[str, list[float]] = {"before": [], "after": []}
    misses: list[float] = []
    refused: set[str] = set()
    margins: Margins | None = None
    for seed in range(count):
        order = np.random.default_rng(seed).permutation(images)
        learn, test = order[: len(images) // 2], order[len(images) // 2 :]
        calibration, new = plain.matched(learn), plain.matched(test)
        for kind, options in MARGINS.items():
            own = {"classes": int(plain.classes)} if options.get("classes") else {}
            try:
                fitted = fit_margins(calibration, COVERAGE, seed=seed, **(options | own))
            except UserError as error:
                refused.add(f"{kind}: {error}")
                continue
            inner = bool(options.get("inner"))
            row = rows.setdefault(kind, {"coverage": [], "area": []})
            row["coverage"].append(float(covered(new, fitted, inner=inner).mean()))
            row["area"].append(relative_area(new, fitted, inner=inner))
            if kind == BY_IOU:
                margins = fitted
                for shift, each in shifted.items():
                    shifts.setdefault(shift, []).append(float(covered(each.matched(test), fitted).mean()))
                for other, each in others.items():
                    shifts.setdefault(other, []).append(float(covered(each.matched(), fitted).mean()))
        for name, value in zip(ece, calibrated_error(plain, learn), strict=True):
            ece[name].append(value)
        try:
            known = np.isin(plain.object_images, learn)
            bound = bound_of_scores(plain.object_scores[known], plain.object_images[known], MISS, DELTA)
            missed = plain.object_scores[np.isin(plain.object_images, test)] < bound.threshold
            misses.append(float(missed.mean()))
        except UserError as error:
            refused.add(f"bound on misses: {str(error).split(',')[0]}")
    return result | {
        "margins": rows,
        "shifts": shifts,
        "ece": ece,
        "misses": misses,
        "refused": sorted(refused)[:6],
        "plot": points(plain, margins),
    }


def calibrated_error(plain: Found, learn: NDArray[Any]) -> tuple[float, float]:
    """Expected calibration error of predicted IoUs on the test images, raw and by the map of the others."""
    own = np.isin(plain.pair_images, learn)
    choice = choose_of_pairs(plain.pair_raw[own], plain.pair_true[own], plain.pair_images[own])
    fit = FITS[choice.method](plain.pair_raw[own], plain.pair_true[own], minimum=1)
    raw, actual = plain.pair_raw[~own], plain.pair_true[~own]
    return tuple(float(reliability(each, actual).error or 0.0) for each in (raw, fit(raw)))  # type: ignore[return-value]


def points(plain: Found, margins: Margins | None) -> dict[str, Any]:
    """Margin by predicted IoU, and the largest error of some boxes, in sizes of the box."""
    sizes = np.tile(plain.boxes[:, 2:] - plain.boxes[:, :2], 2)
    worst = (plain.errors / np.maximum(sizes, 1e-9)).max(axis=1)
    some = np.random.default_rng(0).permutation(len(worst))[:500]
    content: dict[str, Any] = {"raw": plain.raw[some].round(4).tolist(), "worst": worst[some].round(4).tolist()}
    if margins is not None:
        at = np.linspace(float(plain.raw.min()), float(plain.raw.max()), 60)
        content |= {"at": at.round(4).tolist(), "margin": (mean(margins.sides) * margins.factor(at)).round(4).tolist()}
    return content


def report(studies: dict[str, Any]) -> str:
    """All tables."""
    lines = [
        "# Outer boxes: is the promise kept?",
        "",
        "Written by `recipes/conformal_study.py` from runs that took place: validation and test images of each set,",
        "parted at random into halves to calibrate and to test on. Mean ± standard deviation over the splits. Coverage",
        "is the fraction of matched objects (IoU 0.5) that lie within the outer box of their detection, in per cent;",
        "area is that of the outer box in areas of the box, the mean over the boxes. The target is a coverage of",
        f"{100 * COVERAGE:.0f} ± 2.",
        "",
        "![margin against predicted IoU, for each set](conformal.png)",
    ]
    for name, study in studies.items():
        lines += ["", f"## {name}: {study['images']} images, {study['objects']} objects, {study['matched']} found", ""]
        lines += [f"`{study['command']}` on {study['machine']}, {study['date']}.", ""]
        lines += table(["margins", "coverage", "area"], margin_rows(study))
        lines += ["", *verdict(study), "", f"Coverage of margins by {BY_IOU} where the images are not like those:", ""]
        lines += table(
            ["images", "coverage"], ([k, spread([100 * v for v in values], 1)] for k, values in study["shifts"].items())
        )
        if study["refused"]:
            lines += ["", "Refused in some splits: " + "; ".join(study["refused"]) + "."]
    return "\n".join(lines) + "\n"


def margin_rows(study: dict[str, Any]) -> Iterator[list[str]]:
    for kind, row in study["margins"].items():
        yield [kind, spread([100 * v for v in row["coverage"]], 1), spread(row["area"], 2)]


def verdict(study: dict[str, Any]) -> list[str]:
    """The targets, reached or missed."""
    rows = study["margins"]
    lines = []
    if BY_IOU in rows:
        coverage, area = (mean(rows[BY_IOU][what]) for what in ("coverage", "area"))
        held = "reached" if abs(coverage - COVERAGE) <= 0.02 else "missed"
        lines.append(f"* A coverage of {100 * COVERAGE:.0f} ± 2: {held} ({100 * coverage:.1f}).")
        for plain in ("pixels", "size"):
            saved = 1 - area / mean(rows[plain]["area"])
            added = 1 - (area - 1) / (mean(rows[plain]["area"]) - 1)
            aim = "" if plain == "size" else ", target -15: " + ("reached" if saved >= 0.15 else "missed")
            lines.append(
                f"* Outer area against margins by {plain}: {-100 * saved:+.0f} %{aim}; "
                f"of the area that is added to the boxes, {-100 * added:+.0f} %."
            )
    before, after = (mean(study["ece"][name]) for name in ("before", "after"))
    reached = "reached" if after <= 0.03 else "missed"
    lines.append(f"* Calibrated IoU ECE of at most 0.03: {reached} ({after:.3f}; {before:.3f} raw).")
    if study["misses"]:
        kept = mean(value <= MISS for value in study["misses"])
        lines.append(
            f"* At most {100 * MISS:.0f} % missed with probability {1 - DELTA:g}: kept in {100 * kept:.0f} % of the "
            f"splits ({spread([100 * v for v in study['misses']], 1)} % missed; the test half is a sample, too, and "
            "the complement of the other, so that this is less than the promise)."
        )
    return lines


def draw(studies: dict[str, Any], path: Path) -> None:
    """Margin and largest error against the predicted IoU, a panel for each set."""
    figure = Figure(figsize=(4.6 * len(studies), 3.6), layout="constrained")
    panels = figure.subplots(1, len(studies), squeeze=False)[0]
    for panel, (name, study) in zip(panels, studies.items(), strict=True):
        plot = study["plot"]
        panel.scatter(plot["raw"], plot["worst"], s=6, alpha=0.35, color="#56B4E9", label="largest error of a box")
        if "at" in plot:
            panel.plot(plot["at"], plot["margin"], color="#D55E00", label=f"margin for {100 * COVERAGE:.0f} %")
        panel.set(xlabel="predicted IoU (raw)", ylabel="in widths or heights of the box", title=name)
        panel.set_ylim(min(0, *np.quantile(plot["worst"], [0.02])), float(np.quantile(plot["worst"], 0.995)) * 1.3)
        panel.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def table(head: Sequence[str], rows: Iterator[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


if __name__ == "__main__":
    sys.exit(main())
