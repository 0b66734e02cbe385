"""What was measured of each claim of the papers: comparisons, data set by data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from statistics import mean
from typing import Any

import numpy as np
import photographs_iou_aware as iou_aware
import photographs_iou_net as iou_net
import photographs_oracle as oracle
import photographs_rescoring as rescoring
import photographs_unitbox as unitbox
import vfnet_study
from evidence import DATA, Evidence, by_seed, command_of, record, seeds_of, trainings
from unitbox_losses import SIZES

from tightbox.evaluation import ladder

UNITBOX, IOU_AWARE, IOU_NET = "photographs_unitbox", "photographs_iou_aware", "photographs_iou_net"

# UnitBox


def best_l2(data: str) -> dict[int, Any]:
    """The trainings with ℓ2 at the learning rate that is best for it on the images reported."""
    found = [trainings(UNITBOX, data, name) for name in unitbox.L2_LOSS]
    most = max(map(len, found))
    return max(
        (rows for rows in found if len(rows) == most and rows),
        key=lambda rows: mean(by_seed(rows, "recalls", "recall").values()),
        default={},
    )


def unitbox_curves() -> Iterator[Evidence]:
    """Figure 4: miss rate and recall with both losses after equally many images."""
    yield from unitbox_losses("miss rate", lambda row: _last(row)["miss"], -1)
    yield from unitbox_losses("recall", lambda row: _last(row)["recall"], 1)


def unitbox_sizes() -> Iterator[Evidence]:
    """Figure 5: the box read at an object's middle, over six sizes of the image."""
    # Of scenes there is the IoU of every object, of photographs their mean.
    return unitbox_losses("mean IoU", lambda row: mean(float(np.mean(row["ious"][str(size)])) for size in SIZES), 1)


def _last(row: Mapping[str, Any]) -> Any:
    """Miss rate and recall at the end of the training; of scenes there are earlier ones, too."""
    return row["history"][-1] if "history" in row else row["recalls"]


def unitbox_losses(words: str, figure: Callable[[Any], float], sign: int) -> Iterator[Evidence]:
    """ℓ2 against the IoU loss, on scenes and on photographs."""
    if study := record("unitbox"):
        sides = [{r["seed"]: 100 * figure(r) for r in study["rows"] if r["loss"] == loss} for loss in ("l2", "iou")]
        command = " ".join(["python recipes/unitbox_losses.py", *study["command"]])
        yield Evidence(f"scenes, {words}", sides[0], sides[1], "unitbox", command, sign)
    for data in DATA:
        theirs, ours = best_l2(data), trainings(UNITBOX, data, unitbox.IOU_LOSS)
        if theirs and ours:
            sides = [{seed: 100 * figure(r) for seed, r in rows.items()} for rows in (theirs, ours)]
            yield Evidence(f"{data}, {words}", sides[0], sides[1], UNITBOX, command_of(ours), sign)


def unitbox_variants(worse: str, better: str, path: tuple[str, str]) -> Iterator[Evidence]:
    """A figure of one kind of training against that of another."""
    for data in DATA:
        before, after = (trainings(UNITBOX, data, name) for name in (worse, better))
        if before and after:
            yield Evidence(data, by_seed(before, *path), by_seed(after, *path), UNITBOX, command_of(after))


def unitbox_readings(variant: str, worse: str, better: str) -> Iterator[Evidence]:
    """AP50 of one reading of the same maps against that of another."""
    for data in DATA:
        if rows := trainings(UNITBOX, data, variant):
            sides = [by_seed(rows, reading, "ap50") for reading in (worse, better)]
            yield Evidence(data, sides[0], sides[1], UNITBOX, command_of(rows))


def unitbox_thresholds(before: float, after: float) -> Iterator[Evidence]:
    """AP50 of half regions read at one threshold of the confidence against another."""
    for data in DATA:
        if rows := trainings(UNITBOX, data, unitbox.BY_THRESHOLD):
            sides = [by_seed(rows, "by threshold", str(threshold), "ap50") for threshold in (before, after)]
            yield Evidence(data, sides[0], sides[1], UNITBOX, command_of(rows))


# IoU-aware RetinaNet

RETINANET, BRANCH, DETACHED = iou_aware.VARIANTS
OLD_VARIANTS = {RETINANET: "retinanet", DETACHED: "detached", BRANCH: "gradient"}
CLASS_SCORE, HALF, CHOSEN = "class score", "0.5", ""


def iou_aware_pair(
    before: tuple[str, str], after: tuple[str, str], figure: str = "ap", scenes: bool = True
) -> Iterator[Evidence]:
    """Two detectors, each with its ranking; on scenes the chosen one is α = 0.5."""
    sides = []
    for variant, rank in (before, after):
        rank = {CLASS_SCORE: "class", CHOSEN: HALF}.get(rank, rank)
        rows = record("iou_aware").get("scenes", {"rows": []})["rows"]
        of_variant = {r["seed"]: r for r in rows if r["variant"] == OLD_VARIANTS[variant]}
        sides.append(by_seed(of_variant, "by_rank", rank, figure))
    if scenes and all(sides):
        yield Evidence("scenes", sides[0], sides[1], "iou_aware", "python recipes/iou_aware_study.py")
    for data in DATA:
        found = [trainings(IOU_AWARE, data, variant) for variant, _ in (before, after)]
        if all(found):
            sides = [
                {seed: 100 * iou_aware.reported(r, rank)[figure] for seed, r in rows.items()}
                for rows, (_, rank) in zip(found, (before, after), strict=True)
            ]
            yield Evidence(data, sides[0], sides[1], IOU_AWARE, command_of(found[1]))


def iou_aware_strict() -> Iterator[Evidence]:
    """The IoU branch at high IoUs."""
    for figure in ("ap75", "ap90"):
        for evidence in iou_aware_pair((RETINANET, CLASS_SCORE), (BRANCH, CHOSEN), figure):
            yield replace(evidence, data=f"{evidence.data}, {figure.upper()}")


def iou_aware_bound() -> Iterator[Evidence]:
    """The true IoU in the place of the predicted one."""
    rows = record("iou_aware").get("scenes", {"rows": []})["rows"]
    found = {r["seed"]: r["ladder"]["variants"] for r in rows if r["variant"] == OLD_VARIANTS[BRANCH]}
    own = {seed: {name: column[1] for name, column in variants.items()} for seed, variants in found.items()}
    if own:
        sides = [by_seed(own, name) for name in (ladder.AS_PREDICTED, ladder.NEAREST_IOU)]
        yield Evidence("scenes", sides[0], sides[1], "iou_aware", "python recipes/iou_aware_study.py")
    for data in DATA:
        if results := trainings(IOU_AWARE, data, BRANCH):
            before = by_seed(results, "by_rank", HALF, "report", "ap")
            after = by_seed(results, iou_aware.BOUND, "report", "ap")
            yield Evidence(data, before, after, IOU_AWARE, command_of(results))


def iou_aware_longer() -> Iterator[Evidence]:
    """RetinaNet after twice as many images."""
    for data in DATA:
        prefix = f"{data} | {RETINANET} | "
        lengths = sorted({int(key.split(" | ")[2]) for key in record(IOU_AWARE) if key.startswith(prefix)})
        if len(lengths) > 1:
            found = [trainings(IOU_AWARE, data, RETINANET, images) for images in (lengths[0], lengths[-1])]
            sides = [by_seed(rows, "by_rank", CLASS_SCORE, "all", "ap") for rows in found]
            yield Evidence(data, sides[0], sides[1], IOU_AWARE, command_of(found[1]))


# IoU-Net

ALL = ", 100 % of the images"
GREEDY, GUIDED, REFINED = "greedy", "IoU-guided", "IoU-guided, refinement"
GREEDY_REFINED = "greedy, refinement"
OLD_STEPS = {
    GREEDY: "+ IoU head",
    GUIDED: "+ IoU-guided NMS",
    REFINED: "+ refinement",
    GREEDY_REFINED: "IoU head, greedy NMS, refinement",
}


def iou_net_steps(before: str, after: str, figure: str = "ap") -> Iterator[Evidence]:
    """Two steps of the ladder, of which the first may be `FPN`; an older study where that on photographs was not.

    Of scenes both, because that of the older study is the longer training.
    """
    for data in DATA:
        heads, scenes = _with_head(data), data == "scenes"
        for name, head in heads.items():
            first = trainings(IOU_NET, data, iou_net.FPN + ALL * scenes) if before == iou_net.FPN else head
            if first:
                step = GREEDY if before == iou_net.FPN else before
                sides = [by_seed(first, "ladder", step, figure), by_seed(head, "ladder", after, figure)]
                yield Evidence(name, sides[0], sides[1], IOU_NET, command_of(head))
        if (old := record("iou_net").get(data)) and after in OLD_STEPS and (scenes or not heads):
            sides = [by_seed(seeds_of(old), "ladder", OLD_STEPS.get(step, step), figure) for step in (before, after)]
            yield Evidence(data, sides[0], sides[1], "iou_net", old["command"])


def _with_head(data: str) -> dict[str, dict[int, Any]]:
    """IoU-Net's trainings with either weight of its loss, by name, which says of scenes how long they are."""
    found, scenes = {}, data == "scenes"
    for variant, weight in ((iou_net.HEAD + ALL * scenes, ""), (iou_net.LIGHT, ", IoU loss of weight 1")):
        if rows := trainings(IOU_NET, data, variant):
            length = f", {next(iter(rows.values()))['images']} images seen" if scenes else ""
            found[f"{data}{length}{weight}"] = rows
    return found


def iou_net_correlation() -> Iterator[Evidence]:
    """Pearson's coefficients of class score and predicted IoU with the true IoU, over boxes above 0.5."""
    for data in DATA:
        found = [(name, rows, IOU_NET, command_of(rows)) for name, rows in _with_head(data).items()]
        if (old := record("iou_net").get(data)) and (data == "scenes" or not found):
            found.append((data, seeds_of(old), "iou_net", old["command"]))
        for name, rows, page, command in found:
            sides = [by_seed(rows, "correlation", of, "pearson", times=1) for of in ("class score", "predicted IoU")]
            yield Evidence(name, sides[0], sides[1], page, command, digits=3)


def iou_net_overfitting() -> Iterator[Evidence]:
    """The predicted IoU's correlation on images that were trained on, against others."""
    for data in DATA:
        if rows := trainings(IOU_NET, data, iou_net.HEAD + (ALL if data == "scenes" else "")):
            sides = [by_seed(rows, of, "predicted IoU", "pearson", times=1) for of in reversed(iou_net.CORRELATIONS)]
            yield Evidence(data, sides[0], sides[1], IOU_NET, command_of(rows), sign=-1, digits=3)


def iou_net_many_steps() -> Iterator[Evidence]:
    """Ten steps of refinement against ten of regression, from the same boxes, and ten of either against one."""
    yield from _by_steps("after ten, regression → refinement", ("regression", 10), ("optimisation", 10))
    yield from _by_steps("regression, one → ten", ("regression", 1), ("regression", 10), sign=-1)
    yield from _by_steps("refinement, one → ten", ("optimisation", 1), ("optimisation", 10))


def iou_net_one_regression() -> Iterator[Evidence]:
    """Ten steps of refinement against one of regression."""
    return _by_steps("", ("regression", 1), ("optimisation", 10))


def _by_steps(words: str, before: tuple[str, int], after: tuple[str, int], sign: int = 1) -> Iterator[Evidence]:
    for data, old in record("iou_net").items():
        sides = [
            {seed: 100 * r["ap_by_steps"][kind][steps] for seed, r in seeds_of(old).items()}
            for kind, steps in (before, after)
        ]
        yield Evidence(f"{data}, {words}" if words else data, sides[0], sides[1], "iou_net", old["command"], sign)


def iou_net_gains(pairs: Iterable[tuple[str, str, str]], step: str = REFINED) -> Iterator[Evidence]:
    """IoU-Net's step against FPN, for each name, FPN and IoU-Net of `pairs`."""
    for data in DATA:
        for name, fpn, head in pairs:
            plain, with_head = (trainings(IOU_NET, data, variant) for variant in (fpn, head))
            if plain and with_head:
                sides = [by_seed(plain, "ladder", GREEDY, "ap"), by_seed(with_head, "ladder", step, "ap")]
                yield Evidence(f"{data}, {name}", sides[0], sides[1], IOU_NET, command_of(with_head))


def iou_net_suppression() -> Iterator[Evidence]:
    """IoU-guided against greedy suppression, with one thing about the candidates changed."""
    for data in DATA:
        rows = trainings(IOU_NET, data, iou_net.HEAD + (ALL if data == "scenes" else ""))
        for change in next(iter(rows.values()))["suppression"] if rows else ():
            sides = [by_seed(rows, "suppression", change, rule, "ap") for rule in (GREEDY, GUIDED)]
            yield Evidence(f"{data}, {change}", sides[0], sides[1], IOU_NET, command_of(rows))


def standalone() -> Iterator[Evidence]:
    """Refinement, alone and with IoU-guided suppression, of other detectors' boxes by a head trained alone."""
    for last, how in (
        ("+ refinement", "refined"),
        ("before its NMS: IoU-guided, refinement", "suppressed and refined"),
    ):
        yield from _rescored(last, how)


def _rescored(last: str, how: str) -> Iterator[Evidence]:
    for data, study in record("rescoring").items():
        for detector, found in study["detectors"].items():
            sides = [by_seed(seeds_of(found), row, "ap") for row in (rescoring.OWN, last)]
            yield Evidence(f"{data}, {detector}, {how}", sides[0], sides[1], "rescoring", found["command"])
    for data in DATA:
        for detector in rescoring.VARIANTS:
            if rows := trainings("photographs_rescoring", data, detector):
                sides = [by_seed(rows, "rows", row, "ap") for row in (rescoring.OWN, last)]
                name = f"{data}, {detector}, {how}"
                yield Evidence(name, sides[0], sides[1], "photographs_rescoring", command_of(rows))


# VarifocalNet


def vfnet_oracle() -> Iterator[Evidence]:
    """The true IoU as the class score, against ground-truth boxes."""
    for data in DATA:
        if rows := trainings("photographs_oracle", data, oracle.BASELINE):
            sides = [by_seed(rows, "alone", name) for name in (ladder.TRUE_BOX, ladder.TRUE_IOU_SCORE)]
            yield Evidence(data, sides[0], sides[1], "photographs_oracle", command_of(rows))


def vfnet_parts() -> Iterator[Evidence]:
    """Each part added to the raw detector, and all of them against the baseline."""
    names = list(vfnet_study.LADDER)
    return _vfnet_rows(vfnet_study.LADDER, [*pairwise(names[1:]), (names[0], names[-1])])


def vfnet_loss() -> Iterator[Evidence]:
    """The published α and γ against the others."""
    best = "γ 2, α 0.75"
    return _vfnet_rows(vfnet_study.LOSS, [(name, best) for name in vfnet_study.LOSS if name != best])


def vfnet_heads() -> Iterator[Evidence]:
    """The varifocal loss, and an IoU branch, on each head."""
    retinanet, with_loss, with_branch, fcos, fcos_loss, fcos_branch, plain, vfnet = vfnet_study.HEADS
    pairs = [(retinanet, with_loss), (retinanet, with_branch), (fcos, fcos_loss), (fcos, fcos_branch), (plain, vfnet)]
    return _vfnet_rows(vfnet_study.HEADS, pairs)


def _vfnet_rows(table: Mapping[str, Any], pairs: Iterable[tuple[str, str]]) -> Iterator[Evidence]:
    for data in DATA:
        for worse, better in pairs:
            before, after = (trainings("vfnet", data, vfnet_study._key(table[name][0])) for name in (worse, better))
            if before and after:
                sides = by_seed(before, "ap"), by_seed(after, "ap")
                name = f"{data}, {worse} → {better}"
                yield Evidence(name, sides[0], sides[1], "vfnet", "python recipes/vfnet_study.py")


def nothing() -> Iterator[Evidence]:
    """It cannot be measured here."""
    return iter(())
