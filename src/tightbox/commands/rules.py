"""Ranking and suppression as options of a command."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt

from tightbox.errors import UserError

if TYPE_CHECKING:
    from tightbox.models import Detector
    from tightbox.rank import Rank
    from tightbox.suppress import Suppress


RANKS = ["own", "class", "power", "iou"]
RULES = ["own", "none", "greedy", "voting", "soft_linear", "soft_gaussian", "iou_guided"]
# Options of suppression, which are also names of a detector's options, and the arguments they are.
THRESHOLDS = {"nms_iou": "iou_threshold", "score_threshold": "score_threshold", "max_detections": "max_detections"}


def add_arguments(parser: ArgumentParser) -> None:
    """How to rank, how to suppress, and the thresholds."""
    parser.add_argument("--rank", choices=RANKS, default="own", help="the detector's own, p, p^alpha u^(1-alpha), or u")
    parser.add_argument("--suppress", choices=RULES, default="own", help="how the ranked boxes are suppressed")
    parser.add_argument("--sigma", type=PositiveFloat, help="width of --suppress soft_gaussian; 0.5")
    parser.add_argument("--class_agnostic", action="store_true", help="boxes suppress those of other classes too")
    add_numbers(parser, "the detector's own", "the detector's own", "the detector's own")


def add_numbers(parser: ArgumentParser, overlap: str, score: str, most: str) -> None:
    """The numbers of ranking and suppression, and in words what the last three are if absent."""
    parser.add_argument("--alpha", type=ClosedUnitInterval, help="weight of p in --rank power; 0.5")
    parser.add_argument("--nms_iou", type=ClosedUnitInterval, help=f"overlap of suppression; {overlap}")
    parser.add_argument("--score_threshold", type=ClosedUnitInterval, help=f"lowest score that counts; {score}")
    parser.add_argument("--max_detections", type=PositiveInt, help=f"most boxes per image; {most}")


def given(args: Namespace) -> bool:
    """Whether anything but the detector's own rules is asked for.

    Raises:
        UserError: if a number belongs to a rule that is not.
    """
    alpha(args)
    if args.sigma is not None and args.suppress != "soft_gaussian":
        raise UserError("--sigma is the width of --suppress soft_gaussian: give that too")
    numbers = args.alpha is not None or args.sigma is not None or bool(thresholds(args))
    return numbers or args.rank != "own" or args.suppress != "own" or bool(args.class_agnostic)


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
    options, given = model.options, thresholds(args)
    if args.suppress == "own" and not args.class_agnostic and not given:
        return None
    own = {name: getattr(options, option) for option, name in THRESHOLDS.items()}
    name = model.suppression if args.suppress == "own" else args.suppress
    sigma = 0.5 if args.sigma is None else args.sigma
    return suppression(name, own | given | {"class_agnostic": args.class_agnostic}, sigma)


def thresholds(args: Namespace) -> dict[str, Any]:
    """The numbers of the suppression that were given, by the names of its arguments."""
    return {name: args[option] for option, name in THRESHOLDS.items() if args[option] is not None}


def suppression(name: str, numbers: Mapping[str, Any], sigma: float = 0.5) -> Suppress:
    """A suppression of `RULES`, but the detector's own, with its numbers."""
    from tightbox.suppress import greedy_nms, iou_guided_nms, soft_nms

    match name:
        case "none":  # no IoU is above 1
            return partial(greedy_nms, **{**numbers, "iou_threshold": 1.0})
        case "voting":
            return partial(greedy_nms, voting=True, **numbers)
        case "iou_guided":
            return partial(iou_guided_nms, **numbers)
        case "soft_linear":
            return partial(soft_nms, method="linear", **numbers)
        case "soft_gaussian":
            return partial(soft_nms, method="gaussian", sigma=sigma, **numbers)
    return partial(greedy_nms, **numbers)
