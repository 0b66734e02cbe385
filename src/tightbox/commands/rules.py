"""Ranking and suppression as options of a command."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt

from tightbox.errors import UserError

if TYPE_CHECKING:
    from tightbox.models import Detector
    from tightbox.rank import Rank
    from tightbox.suppress import Suppress


RANKS = ["own", "class", "power", "iou"]
RULES = ["own", "none", "greedy", "soft_linear", "soft_gaussian", "iou_guided"]


def add_arguments(parser: ArgumentParser) -> None:
    """How to rank, how to suppress, and the thresholds."""
    parser.add_argument("--rank", choices=RANKS, default="own", help="the detector's own, p, p^alpha u^(1-alpha), or u")
    parser.add_argument(
        "--alpha", type=ClosedUnitInterval, default=None, help="weight of p in --rank power; 0.5 if absent"
    )
    parser.add_argument("--suppress", choices=RULES, default="own", help="how the ranked boxes are suppressed")
    parser.add_argument(
        "--nms_iou", type=ClosedUnitInterval, default=None, help="overlap of suppression; the detector's own if absent"
    )
    parser.add_argument("--sigma", type=PositiveFloat, default=None, help="width of --suppress soft_gaussian; 0.5")
    parser.add_argument(
        "--score_threshold", type=ClosedUnitInterval, default=None, help="lowest score that is reported"
    )
    parser.add_argument("--max_detections", type=PositiveInt, default=None, help="most boxes reported per image")
    parser.add_argument("--class_agnostic", action="store_true", help="boxes suppress those of other classes too")


def given(args: Namespace) -> bool:
    """Whether anything but the detector's own rules is asked for.

    Raises:
        UserError: if a number belongs to a rule that is not.
    """
    alpha(args)
    if args.sigma is not None and args.suppress != "soft_gaussian":
        raise UserError("--sigma is the width of --suppress soft_gaussian: give that too")
    numbers = (args.alpha, args.sigma, args.nms_iou, args.score_threshold, args.max_detections)
    return args.rank != "own" or args.suppress != "own" or args.class_agnostic or any(n is not None for n in numbers)


def alpha(args: Namespace) -> float:
    """The weight of the class score in --rank power.

    Raises:
        UserError: if it is given for another ranking.
    """
    if args.alpha is not None and args.rank != "power":
        raise UserError("--alpha is the weight of the class score in --rank power: give that too")
    return 0.5 if args.alpha is None else float(args.alpha)


def rank_rule(args: Namespace) -> Rank | None:
    """The ranking asked for; None for the detector's own."""
    from tightbox.rank import by_class_score, by_power

    if args.rank == "own":
        return None
    if args.rank == "class":
        return by_class_score
    return partial(by_power, alpha=0.0 if args.rank == "iou" else alpha(args))


def suppress_rule(args: Namespace, model: Detector) -> Suppress | None:
    """The suppression asked for; None for the detector's own."""
    options = model.options
    numbers = (args.nms_iou, args.score_threshold, args.max_detections)
    if args.suppress == "own" and not args.class_agnostic and all(n is None for n in numbers):
        return None

    from tightbox.suppress import greedy_nms, iou_guided_nms, soft_nms

    name = options.suppress if args.suppress == "own" and hasattr(options, "suppress") else args.suppress
    shared = {
        "iou_threshold": options.nms_iou if args.nms_iou is None else args.nms_iou,
        "score_threshold": options.score_threshold if args.score_threshold is None else args.score_threshold,
        "max_detections": args.max_detections or options.max_detections,
        "class_agnostic": args.class_agnostic,
    }
    if name == "none":  # no IoU is above 1
        return partial(greedy_nms, **shared | {"iou_threshold": 1.0})
    if name == "iou_guided":
        return partial(iou_guided_nms, **shared)
    if name == "soft_linear":
        return partial(soft_nms, method="linear", **shared)
    if name == "soft_gaussian":
        return partial(soft_nms, method="gaussian", sigma=0.5 if args.sigma is None else args.sigma, **shared)
    return partial(greedy_nms, **shared)
