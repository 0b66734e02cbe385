"""The figures of a diagnosis: what the page shows and the JSON file holds."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tightbox.evaluation.calibration_measures import CalibrationMeasures
from tightbox.evaluation.coco import AveragePrecision, CocoMetrics
from tightbox.evaluation.ladder import OracleVariant
from tightbox.evaluation.lrp import Lrp
from tightbox.evaluation.reliability import Correlation, Reliability
from tightbox.evaluation.tide import ClassErrors


@dataclass(frozen=True)
class ScoreReliability:
    """How reliably a score or a predicted IoU predicts the true IoU, over the final boxes.

    Attributes:
        table: what was predicted against what was actually there, in bins.
        error: expected calibration error.
        bias: the same with its sign; positive where the predictions are too high.
        correlation: with the true IoU, over boxes above IoU 0.5.
        points: some boxes as (predicted, true IoU), evenly drawn from all.
    """

    table: Reliability
    error: float | None
    bias: float | None
    correlation: Correlation
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Group:
    """One class, one size, or all.

    Attributes:
        objects: how many there are, crowds aside.
        found: fraction of them that a detection found at IoU 0.5.
        mean_iou: of these with their detections.
        best_iou: mean over all objects of the IoU of the best box there was for them: before suppression where
            candidates are known, in the file otherwise; 0 for none.
    """

    objects: int
    found: float | None
    mean_iou: float | None
    best_iou: float | None


@dataclass(frozen=True)
class Tightness:
    """How many objects have a box of which IoU, in bins of 0.05 from 0 to 1; those without any are in the first.

    Attributes:
        kept: by the box that was reported for them (the nearest one, if none reaches IoU 0.5).
        best: by the tightest box that was there.
    """

    kept: tuple[int, ...]
    best: tuple[int, ...]


@dataclass(frozen=True)
class ClassRow:
    """The figures of one class: AP, optimal LRP, TIDE's errors, and calibration of the score (LaECE)."""

    group: Group
    lrp: Lrp
    errors: ClassErrors
    laece: float | None


@dataclass(frozen=True)
class CardImage:
    """The image of a card.

    Attributes:
        id: the data set's own.
        file: its file's name.
        width: in pixels, None if unknown; likewise `height`.
    """

    id: int
    file: str
    width: float | None
    height: float | None


@dataclass(frozen=True)
class CardBox:
    """A box of a card; what does not apply to it is None.

    Attributes:
        box: [x, y, width, height] in pixels of the image.
        class_name: its class; a detection's is the predicted one.
        score: what the detection or candidate is ranked by.
        predicted_iou: as the detector reports it, calibrated if the detector is.
        iou: the true IoU with the card's object.
    """

    box: tuple[float, float, float, float]
    class_name: str
    score: float | None = None
    predicted_iou: float | None = None
    iou: float | None = None


@dataclass(frozen=True)
class Card:
    """One example of the gallery: a part of an image with its boxes.

    Attributes:
        kind: a better box was there; or the object was missed; or the box is a false positive.
        image: where it is.
        class_name: of the object; of a false positive, the predicted one.
        size: of the object (of a false positive, its own), by `SIZES`.
        severity: what cards are sorted by: the IoU that was lost, a missed object's area in pixels, or the score of a
            false positive.
        ground_truth: the object; for a false positive the nearest one of any class, if one touches it.
        kept: the box that was reported.
        better: the tighter one that was there.
        why: what happened, in words.
    """

    kind: Literal["better", "miss", "false_positive"]
    image: CardImage
    class_name: str
    size: str
    severity: float
    ground_truth: CardBox | None
    kept: CardBox | None
    better: CardBox | None
    why: str


@dataclass(frozen=True)
class Diagnosis:
    """Everything on the page.

    Attributes:
        title: what was diagnosed.
        from_candidates: whether what was there before suppression is known.
        images: how many images; likewise `objects` and `detections`.
        notes: what has to be known to read the figures.
        coco: COCO's figures.
        aps: the same AP with its curve.
        all: the objects of all classes and sizes together.
        tightness: of the boxes of these.
        lrp: optimal LRP, mean over the classes.
        errors: TIDE's errors at IoU 0.5, all classes.
        laece: localisation-aware calibration error of the score, by its threshold τ.
        measures: calibration of the score as published, each measure on all classes.
        score: reliability of the score.
        predicted_iou: reliability of the predicted IoU, calibrated if the detector is; None if there is none.
        before_suppression: correlations with the true IoU of the candidates that would be reported.
        ladder: AP with one output replaced by the truth, of every oracle variant.
        lost: the AP that each stage of `STAGES` costs: what AP would gain if that stage alone made no mistake. They do
            not add up. For "ranking" the score of every box on an object is its true IoU; for "suppression", of the
            candidates on an object only the tightest is left, with the best score among them (None where candidates are
            not known); for "localisation" every box on an object is the object's; for "misses" objects without any box
            of their class on them (IoU 0.5) are not asked for.
        miss_breakdown: how many objects without a final box of their class on them (IoU 0.5) were lost at which stage,
            the last one; None where candidates are not known. "suppressed": a box that was good enough to be reported
            was suppressed, or came too late among the candidates; "scored_low": a box was there, but scored below the
            threshold; "no_box": no candidate of any score was on them.
        per_class: by class name.
        per_size: by `SIZES`.
        better_boxes: for how many objects a box tighter than the kept one was there, by at least 0.01.
        iou_lost: the mean IoU these lost.
        gallery: some cards of each kind.
    """

    title: str
    from_candidates: bool
    images: int
    objects: int
    detections: int
    notes: tuple[str, ...]
    coco: CocoMetrics
    aps: AveragePrecision
    all: Group
    tightness: Tightness
    lrp: Lrp
    errors: ClassErrors
    laece: dict[str, float | None]
    measures: CalibrationMeasures
    score: ScoreReliability
    predicted_iou: ScoreReliability | None
    before_suppression: dict[str, Correlation]
    ladder: tuple[OracleVariant, ...]
    lost: dict[str, AveragePrecision | None]
    miss_breakdown: dict[str, int] | None
    per_class: dict[str, ClassRow]
    per_size: dict[str, Group]
    better_boxes: int
    iou_lost: float | None
    gallery: tuple[Card, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers."""
        return asdict(self)
