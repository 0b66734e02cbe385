"""Writes docs/claims.md, what the four papers say and what was measured here, from the records of the studies.

    python recipes/claims.py

Every figure of ours comes from a record in `recipes/`, and every verdict from the one rule of `evidence.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import claims_measured as measured
from claims_measured import (
    BRANCH,
    CHOSEN,
    CLASS_SCORE,
    DETACHED,
    GREEDY,
    GREEDY_REFINED,
    GUIDED,
    HALF,
    REFINED,
    RETINANET,
)
from evidence import FEWEST, SHOWS, Evidence, verdict
from photographs_iou_net import FPN, HEAD, LIGHT, MORE_BOXES
from photographs_unitbox import IOU_LOSS, ORACLES, PUBLISHED
from training import HERE

from tightbox.files import atomic_path

PAGE = HERE.parent / "docs" / "claims.md"
LONG = ", twice as long"
BELOW = "([beside the claims](#beside-the-claims))"


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    Attributes:
        paper: whose.
        claim: in words.
        published: the paper's figures.
        figure: which figure of ours is compared.
        evidence: gives what was measured.
        cause: why it is not shown everywhere, as far as that was looked into; or why it cannot be tested here.
    """

    paper: str
    claim: str
    published: str
    figure: str
    evidence: Callable[[], Iterable[Evidence]]
    cause: str

    def verdict(self) -> str:
        """Over all data sets."""
        return "cannot be tested here" if self.evidence is measured.nothing else verdict(list(self.evidence()))


CLAIMS = (
    Claim(
        "UnitBox",
        "With the IoU loss it learns in fewer iterations, misses less and finds more than with ℓ2 (figure 4)",
        "miss rate 0.08–0.10 against 0.18–0.25; recall 0.93 against 0.845 (read off)",
        "miss rate, and recall with one false positive an image, in per cent: ℓ2 → IoU loss",
        measured.unitbox_curves,
        "In the mean of every set fewer objects are missed by all boxes. On BCCD recall with one false positive an "
        "image is within the spread; we take it that it hangs on the order of the regions, which no box loss changes. "
        "On vehicles and the aquarium nearly all is missed with either loss; on vehicles because few pixels are "
        "confident ([the threshold](#beside-the-claims)).",
    ),
    Claim(
        "UnitBox",
        "With the IoU loss the box at one pixel stays tight over six sizes of the image, with ℓ2 not (figure 5)",
        "no figures, pictures of one image",
        "mean IoU over the objects and the six sizes, in per cent: ℓ2 → IoU loss",
        measured.unitbox_sizes,
        "",
    ),
    Claim(
        "UnitBox",
        "It is the best on FDDB (figure 6)",
        "true positive rate 0.951 at 880 false positives",
        "",
        measured.nothing,
        "WIDER FACE and FDDB were not at hand; `tightbox fddb` draws the curves where they are.",
    ),
    Claim(
        "IoU-aware RetinaNet",
        "The IoU branch raises AP",
        "COCO +1.7 to +1.9, VOC +2.9 to +4.4",
        "AP: RetinaNet → with the branch",
        lambda: measured.iou_aware_pair((RETINANET, CLASS_SCORE), (BRANCH, CHOSEN)),
        "On vehicles it rises in every training, but by amounts too different for three seeds. On the aquarium, whose "
        "objects are small in images of 320 pixels, RetinaNet has hardly learned yet: from 1,504 images to 3,008 its "
        "AP more than triples (one seed).",
    ),
    Claim(
        "IoU-aware RetinaNet",
        "It raises AP more at a high IoU",
        "AP75 +2.2 to +2.5; VOC AP80 and AP90 +4.6 to +10.2",
        "RetinaNet → with the branch",
        measured.iou_aware_strict,
        "On BCCD it is AP90 that the branch raises, by half; AP75 rises by 3.0 in one seed and falls by about 1 in "
        "two. The data set is small: AP75 itself differs by 3 between seeds. On vehicles it is AP75, and hardly a box "
        "is tight enough for AP90; on the aquarium hardly one is for either.",
    ),
    Claim(
        "IoU-aware RetinaNet",
        "The gradient through the IoU target helps (table 4)",
        "AP rises (the table could not be read)",
        "AP at α = 0.5: detached → with gradient",
        lambda: measured.iou_aware_pair((DETACHED, HALF), (BRANCH, HALF)),
        "On BCCD the predicted IoU does not improve the order of the boxes in either training (the next claim), so "
        "that how it was learned can hardly tell.",
    ),
    Claim(
        "IoU-aware RetinaNet",
        "Ranking by p^α·u^(1−α) is better than by the class score (table 3)",
        "AP rises (the table could not be read)",
        "AP of the same detector: class score → chosen α, of scenes α = 0.5",
        lambda: measured.iou_aware_pair((BRANCH, CLASS_SCORE), (BRANCH, CHOSEN)),
        "On photographs the branch helps by what the network learns with it, not by the order of its boxes: by the "
        "class score alone it is as good on BCCD, and nearly so on vehicles. The true IoU would order them 5 to 8 AP "
        "better, the predicted one is too coarse.",
    ),
    Claim(
        "IoU-aware RetinaNet",
        "With the true IoU in place of the predicted one AP would be far higher (table 6)",
        "AP rises much (the table could not be read)",
        "AP at α = 0.5: predicted → true IoU",
        measured.iou_aware_bound,
        "",
    ),
    Claim(
        "IoU-Net",
        "The predicted IoU tells the true IoU, the class score does not (figure 2)",
        "Pearson 0.617 against 0.217",
        "Pearson: class score → predicted IoU",
        measured.iou_net_correlation,
        "",
    ),
    Claim(
        "IoU-Net",
        "Training with the IoU head raises AP by itself (table 3)",
        "36.4 → 37.0",
        "AP: FPN → with the head, greedy",
        lambda: measured.iou_net_steps(FPN, GREEDY),
        "In short trainings it hangs on the weight of the head's loss, of which the paper is silent: with 5, as in a "
        "re-implementation, it costs 4.5 AP on the scenes, with 1, which `tightbox train` has, nothing. At 5 neither "
        "four times as many jittered boxes nor twice the training (BCCD) nor more images (scenes) change that, nor has "
        f"the head learned its training images by heart {BELOW}. What it is good for is refinement (claim 12).",
    ),
    Claim(
        "IoU-Net",
        "IoU-guided suppression is better than greedy (table 3)",
        "37.0 → 37.6",
        "AP: greedy → IoU-guided",
        lambda: measured.iou_net_steps(GREEDY, GUIDED),
        "Boxes of a low score or of a wrong class are not to blame. By the true IoU the same suppression is 12 AP "
        "better than greedy on BCCD and 15 on the scenes, so it is the prediction that is too coarse to choose between "
        f"boxes that overlap {BELOW}; the more so, the less weight its loss has.",
    ),
    Claim(
        "IoU-Net",
        "Refinement by the gradient of the predicted IoU raises AP (table 3)",
        "37.6 → 38.1",
        "AP: IoU-guided → with refinement",
        lambda: measured.iou_net_steps(GUIDED, REFINED),
        "It rises in the mean of every set, but three seeds tell only the scenes' rises from none. After greedy "
        "suppression refinement brings more ([figures](../recipes/photographs_iou_net.md)).",
    ),
    Claim(
        "IoU-Net",
        "More steps of refinement do no harm, more steps of regression do (figure 4)",
        "after ten: 38.3 against 36.2 (read off)",
        "AP",
        measured.iou_net_many_steps,
        "One regression more brings as much as ten steps of refinement, or more ([beside the claims]"
        "(#beside-the-claims)). On BCCD, whose boxes are good after it, further ones do little harm.",
    ),
    Claim(
        "IoU-Net",
        "A head trained alone improves other detectors (tables 1 and 2)",
        "FPN 36.4 → 37.3 → 38.0, Cascade R-CNN 40.6 → 41.4, Mask R-CNN 37.5 → 39.2",
        "AP: its own results → refined by the head; or what it had before its NMS, suppressed and refined by the head",
        measured.standalone,
        "Refinement helps all. IoU-guided suppression wants finer predicted IoUs than a head learns from so few images "
        "(claim 11): VFNet's own score tells more about its boxes.",
    ),
    Claim(
        "VarifocalNet",
        "The true IoU as class score brings more than true boxes (table 1)",
        "FCOS + ATSS 38.5; true boxes 56.1, true IoU as class score 74.7",
        "AP of FCOS + ATSS: true boxes → true IoU as class score",
        measured.vfnet_oracle,
        "After 752 images the boxes are what is wrong, not the classes: with true boxes AP is 35 higher, since three "
        "kinds of blood cells are easy to tell apart. Of COCO's eighty classes the true IoU as score corrects "
        "mistaken ones, too. A score of 1 lowers AP here and raises it on COCO, which fits that.",
    ),
    Claim(
        "VarifocalNet",
        "Varifocal loss, star and refinement each raise AP (table 3)",
        "39.0 → 40.1 → 40.7 → 41.6; FCOS + ATSS 39.2",
        "AP",
        measured.vfnet_parts,
        "752 images from random weights are a thousandth of the paper's training. The star reads at the sides of a box "
        "that is not learned yet, and the refinement's loss, as published, teaches the first box nothing: if it does "
        "(`refine_gradient`), AP is 2 higher ([ablation](../recipes/ablation.md)). Longer trainings were not compared.",
    ),
    Claim(
        "VarifocalNet",
        "γ 2 and α 0.75 are best, and weighing positives by their IoU helps (table 2)",
        "41.6; without the weights 41.2",
        "AP",
        measured.vfnet_loss,
        "As before, few images: a positive whose box is loose yet has a low IoU, and so a low weight and target, and "
        "teaches its class little. In the mean weights of 1 bring 1.8 AP here, which three seeds do not tell from "
        "none.",
    ),
    Claim(
        "VarifocalNet",
        "The loss helps other heads, too (table 5)",
        "RetinaNet +0.9, FoveaBox +0.9, RepPoints +1.4, ATSS +0.9",
        "AP",
        measured.vfnet_heads,
        "RetinaNet's head, which has no estimate of its boxes, gains 1.6 by either, though three seeds tell only the "
        "IoU branch's from none. FCOS's head has its centerness, and gains nothing after so few images.",
    ),
)


# What the papers do not say: title, what the comparison tells, figure, evidence.
BESIDE: tuple[tuple[str, str, str, Callable[[], Iterable[Evidence]]], ...] = (
    (
        "UnitBox: what touching objects cost",
        "One box is read from each connected region, so objects that touch are one. With the true confidence map:",
        "AP50, all of an object confident: regions → a box at each object's centre",
        lambda: measured.unitbox_readings(PUBLISHED, ORACLES[0], ORACLES[2]),
    ),
    (
        "UnitBox: regions of half the size",
        "`region_scale: 0.5` makes the middle alone confident: a remedy where objects touch, a cost elsewhere.",
        "AP50: published region → half of it",
        lambda: measured.unitbox_variants(PUBLISHED, IOU_LOSS, ("regions", "ap50")),
    ),
    (
        "UnitBox: the dense reading",
        "The remedy in use: the box of every fourth pixel, suppressed greedily.",
        "AP50, all of an object confident: regions → dense",
        lambda: measured.unitbox_readings(PUBLISHED, "regions", "dense"),
    ),
    (
        "UnitBox: both",
        "",
        "AP50, half regions: regions → dense",
        lambda: measured.unitbox_readings(IOU_LOSS, "regions", "dense"),
    ),
    (
        "UnitBox: the threshold of the confidence",
        "The paper names none; 0.5 is the model's default, 0.3 that of `tightbox train`.",
        "AP50, half regions: read at 0.5 → at 0.3",
        lambda: measured.unitbox_thresholds(0.5, 0.3),
    ),
    (
        "RetinaNet: does it still rise?",
        "",
        "AP: half as many images → as many as above",
        measured.iou_aware_longer,
    ),
    (
        "IoU-Net: all of it against FPN",
        "As published, and with greedy suppression in the place of IoU-guided.",
        "AP: FPN → IoU-Net",
        lambda: (*measured.iou_net_steps(FPN, REFINED), *measured.iou_net_steps(FPN, GREEDY_REFINED)),
    ),
    (
        "IoU-Net: refinement against one regression more",
        "",
        "AP: one more regression → ten steps of refinement",
        measured.iou_net_one_regression,
    ),
    (
        "IoU-Net: too few jittered boxes, or too short a training?",
        "",
        "AP: FPN → IoU-Net with refinement",
        lambda: measured.iou_net_gains(
            [
                ("128 jittered boxes", FPN, HEAD),
                ("512 jittered boxes", FPN, MORE_BOXES),
                ("both twice as long", FPN + LONG, HEAD + LONG),
            ]
        ),
    ),
    (
        "IoU-Net: too heavy an IoU loss?",
        "The paper names no weight; 5 is that of a re-implementation.",
        "AP: FPN → IoU-Net, greedy suppression with refinement",
        lambda: measured.iou_net_gains(
            [
                (f"weight {weight}", FPN + part, head)
                for part in ("", measured.ALL)
                for weight, head in ((5, HEAD + part), (1, LIGHT))
            ],
            measured.GREEDY_REFINED,
        ),
    ),
    (
        "IoU-Net: too few images?",
        "Parts of the training images, equally many images seen.",
        "AP: FPN → IoU-Net with refinement",
        lambda: measured.iou_net_gains(
            [
                (f"{part} %", f"{FPN}, {part} % of the images", f"{HEAD}, {part} % of the images")
                for part in (10, 30, 100)
            ]
        ),
    ),
    (
        "IoU-Net: has the head learned its training images by heart?",
        "It has, where the correlation with the true IoU is lower on other images.",
        "Pearson: training images → validation images",
        measured.iou_net_overfitting,
    ),
    (
        "IoU-Net: why is IoU-guided suppression not better than greedy?",
        "The same candidates: as they are; without those of low class score, or of a wrong class; with the true IoU.",
        "AP: greedy → IoU-guided",
        measured.iou_net_suppression,
    ),
)


def main() -> None:
    with atomic_path(PAGE) as temporary:
        temporary.write_text("\n".join(page()) + "\n", encoding="utf-8")


def page() -> Iterator[str]:
    """The page."""
    yield from ("# What the papers say, what we measured", "")
    yield "Written by `python recipes/claims.py` from the records of the studies; typed by hand are the papers' figures"
    yield "and the causes. The papers trained ResNet-50 from ImageNet's weights on COCO, or VGG-16 on WIDER FACE. Ours"
    yield "are ResNet-18 from random weights on synthetic scenes and on photographs: BCCD (blood cells) and, where they"
    yield "are named, Aquarium and vehicles. Compare directions, not figures."
    yield ""
    yield "The rule: a claim *shows* in a comparison if the mean of the differences, seed by seed, is in the paper's"
    yield "direction and differs from 0 by Student's two-sided test at 5 %: with three seeds, if it is larger than 4.3"
    yield "times its standard error. It is *the opposite* if that is so in the other direction; otherwise the"
    yield f"difference lies *within the spread*. Fewer than {FEWEST} seeds are too few. Where nothing differs, one"
    yield "comparison in twenty differs by chance."
    yield from ("", "| | claim | here | paper |", "|---|---|---|---|")
    for number, claim in enumerate(CLAIMS, 1):
        yield f"| {number} | {claim.paper}: {claim.claim} | {_bold(claim.verdict())} | {claim.published} |"
    everything: list[Evidence] = []
    for paper, of_paper in groupby(enumerate(CLAIMS, 1), key=lambda entry: entry[1].paper):
        yield from ("", f"## {paper}")
        for number, claim in of_paper:
            found = list(claim.evidence())
            everything += found
            yield from ("", f"**{number}. {claim.claim}.** Paper: {claim.published}. Here: {_bold(claim.verdict())}.")
            yield from _table(claim.figure, found)
            if claim.cause and claim.verdict() != SHOWS:
                yield from ("", f"Cause: {claim.cause}")
    yield from ("", "## Beside the claims", "", "By the same rule.")
    for title, text, figure, evidence in BESIDE:
        if found := list(evidence()):
            everything += found
            yield from ("", f"**{title}** {text}".rstrip(), *_table(figure, found))
    yield from ("", "## Commands", "")
    pages = sorted({(e.page, e.command) for e in everything})
    for name, of_page in groupby(pages, key=lambda pair: pair[0]):
        yield f"* [{name}](../recipes/{name}.md): {', '.join(f'`{command}`' for _, command in of_page)}"


def _table(figure: str, found: list[Evidence]) -> Iterator[str]:
    if found:
        yield from ("", f"| {figure} | ours | difference | seeds | verdict |", "|---|---|---|---|---|")
        yield from (evidence.line() for evidence in found)


def _bold(text: str) -> str:
    return f"**{text}**"


if __name__ == "__main__":
    main()
