"""What the figures say, in one plain sentence for each part of the page, and TIDE's kinds of error in words."""

from functools import partial
from typing import NamedTuple

from tightbox.diagnosis.numbers import Diagnosis, ScoreReliability
from tightbox.evaluation.figures import percent

_percent = partial(percent, width=0)  # within a sentence, and not in a column

STAGES = {
    "ranking": "scores that do not put the tightest box first",
    "suppression": "suppression that keeps the wrong box",
    "localisation": "boxes that are not quite tight",
    "misses": "objects that have no box on them",
}


class Kind(NamedTuple):
    """How an error is called in a table, in a sentence about all of its kind, and on the card of one."""

    column: str
    all: str
    one: str


KINDS = {
    "classification": Kind("class", "the wrong class", "on an object of another class"),
    "localisation": Kind("location", "loose boxes", "on its object, but too loose"),
    "both": Kind("both", "loose boxes of the wrong class", "loosely on an object of another class"),
    "duplicate": Kind("duplicate", "second boxes on one object", "a second box on an object that was found"),
    "background": Kind("background", "boxes on no object", "on no object"),
    "missed": Kind("missed", "missed objects", "an object that was missed"),
}


def sentences(diagnosis: Diagnosis) -> dict[str, str]:
    """A sentence for each part: "lost", "tight", "kinds", "reliability", "groups" and "better"."""
    judged = _reliability("score", diagnosis.score), _reliability("predicted IoU", diagnosis.predicted_iou)
    return {
        "lost": _lost(diagnosis),
        "tight": _tight(diagnosis),
        "kinds": _kinds(diagnosis),
        "reliability": " ".join(judged),
        "groups": _groups(diagnosis),
        "better": _better(diagnosis),
    }


def _lost(diagnosis: Diagnosis) -> str:
    ap = diagnosis.aps.ap
    if ap is None:
        return "There is no object in the truth, so there is no AP to lose."
    gains = {name: aps.ap for name, aps in diagnosis.lost.items() if aps is not None and aps.ap is not None}
    worst = max(gains, key=lambda name: gains[name], default=None)
    if worst is None or gains[worst] < 0.0005:
        if diagnosis.all.found == 0:
            every = "The only object is" if diagnosis.objects == 1 else f"All {diagnosis.objects:,} objects are"
            return f"{every} missed, so AP is {_percent(ap)}."
        return f"AP is {_percent(ap)}, and none of the stages costs any."
    others = ", ".join(f"{name} {_percent(gain)}" for name, gain in gains.items() if name != worst)
    return (
        f"{_percent(gains[worst])} points of AP are lost because of {STAGES[worst]}: without that AP would be "
        f"{_percent(ap + gains[worst])} instead of {_percent(ap)} (the other stages alone: {others})."
    )


def _tight(diagnosis: Diagnosis) -> str:
    group = diagnosis.all
    if group.found is None:
        return "There is no object to be tight on."
    if group.mean_iou is None:
        return f"Not one of the {group.objects:,} objects is found at IoU 0.5."
    found = f"{group.found:.0%} of the {group.objects:,} objects are found, with a mean IoU of {group.mean_iou:.3f}"
    falls = f"AP falls from {_percent(diagnosis.coco.ap50)} at IoU 0.50 to {_percent(diagnosis.coco.ap90)} at 0.90"
    lrp = "" if diagnosis.lrp.error is None else f" Optimal LRP is {_percent(diagnosis.lrp.error)}."
    return f"{found}; {falls}.{lrp}"


def _kinds(diagnosis: Diagnosis) -> str:
    if not diagnosis.objects:
        return "There is no object, so there is no AP50 for mistakes to cost."
    gain = diagnosis.errors.gain
    gains = {name: value for name in KINDS if (value := getattr(gain, name)) is not None}
    worst = max(gains, key=lambda name: gains[name], default=None)
    if worst is None or gains[worst] < 0.0005:
        if diagnosis.all.found == 0:
            return "Every object is missed, and fixing any other kind of mistake alone would give no AP50."
        return "No kind of mistake costs AP50 anything."
    count = getattr(diagnosis.errors.count, worst)
    costliest = f"The costliest mistake is {KINDS[worst].all} ({count:,} of them)"
    return f"{costliest}: fixing it would give {_percent(gains[worst])} points of AP50."


def _reliability(name: str, reliability: ScoreReliability | None) -> str:
    if reliability is None or reliability.error is None or reliability.bias is None:
        return f"There is no {name} to judge."
    one_sided = abs(reliability.bias) > reliability.error / 2
    way = ("too high" if reliability.bias > 0 else "too low") if one_sided else "either way"
    rank = reliability.correlation.spearman
    told = "" if rank is None else f", and orders boxes by their tightness with a rank correlation of {rank:.2f}"
    return f"The {name} is off by {reliability.error:.3f} on average, {'mostly ' if one_sided else ''}{way}{told}."


def _groups(diagnosis: Diagnosis) -> str:
    rows = {name: value for name, value in diagnosis.aps.by_class.items() if value is not None}
    if not rows:
        return "There is no class with objects, so there is nothing to compare."
    if len(rows) == 1:
        return "There is one class with objects, so there is nothing to compare it with."
    worst, best = min(rows, key=lambda name: rows[name]), max(rows, key=lambda name: rows[name])
    sizes = {name: value for name, value in diagnosis.aps.by_size.items() if value is not None}
    differ = len({_percent(value) for value in sizes.values()}) > 1
    hardest = f"; {min(sizes, key=lambda name: sizes[name])} objects are hardest" if differ else ""
    if _percent(rows[best]) == _percent(rows[worst]):
        return f"All {len(rows)} classes with objects have the same AP, {_percent(rows[best])}{hardest}."
    return f"{best} does best (AP {_percent(rows[best])}) and {worst} worst ({_percent(rows[worst])}){hardest}."


def _better(diagnosis: Diagnosis) -> str:
    where = "among the candidates" if diagnosis.from_candidates else "in the file"
    if not diagnosis.all.found:
        return "No box was kept on any object, so there is none to be tighter than."
    if not diagnosis.better_boxes or diagnosis.iou_lost is None:
        return f"No object had a clearly tighter box {where} than the one that was kept."
    objects = f"For {diagnosis.better_boxes:,} of {diagnosis.objects:,} objects"
    lost = f"these lost {diagnosis.iou_lost:.2f} of IoU on average"
    return f"{objects} a tighter box was there {where} and was not kept; {lost}."
