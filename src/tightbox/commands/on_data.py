"""A detector on a data set: the options that every command on both takes, and how the two are opened and run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from tightbox.errors import UserError

SPLIT, BATCH_SIZE, DEVICE = "val", 8, "auto"
MERGES = ("soft_linear", "vote", "vote_score", "vote_iou")  # as in `tightbox.inference.views`, which needs torch

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from tightbox.data.records import DetectionData
    from tightbox.inference.detect import Loading
    from tightbox.models import Detector
    from tightbox.structures import Detections


def add_arguments(parser: ArgumentParser, *, or_results: bool = False) -> None:
    """Which detector, on what; with `or_results`, any tool's result file and its ground truth can take their place."""
    if or_results:
        parser.add_argument("checkpoint", nargs="?", help="folder of a detector; needs --data")
        parser.add_argument("--gt", help="COCO file with the ground truth, for --dt")
        parser.add_argument("--dt", help="COCO result file of any tool, instead of a checkpoint")
    else:
        parser.add_argument("checkpoint", help="folder that `tightbox train` wrote, such as runs/x/best")
    add_data(parser, required=not or_results)
    add_loading(parser)
    add_device(parser)


def add_data(parser: ArgumentParser, *, required: bool = True) -> None:
    """Which images and objects."""
    parser.add_argument("--data", required=required, help="folder of the data set")
    parser.add_argument("--split", default=SPLIT, help="which split of it")
    parser.add_argument("--classes", nargs="+", help="only these; objects of other classes count as background")


def add_batch_size(parser: ArgumentParser) -> None:
    """How many images the network sees together."""
    parser.add_argument("--batch_size", type=PositiveInt, default=BATCH_SIZE, help="images at a time")


def add_loading(parser: ArgumentParser) -> None:
    """How the images are loaded."""
    add_batch_size(parser)
    parser.add_argument("--workers", type=NonNegativeInt, default=0, help="processes that load images")
    parser.add_argument("--skip_unreadable", type=bool, default=False, help="count objects of such images as missed")


def add_views(parser: ArgumentParser) -> None:
    """Test-time augmentation."""
    scales = "see each image at these sizes, 1 being the usual"
    parser.add_argument("--scales", type=PositiveFloat, nargs="+", help=scales)
    parser.add_argument("--flip", action="store_true", help="see each image mirrored too")
    parser.add_argument("--merge", choices=MERGES, default=MERGES[0], help="how what is found in several views is one")


def add_device(parser: ArgumentParser) -> None:
    """Where the network runs."""
    parser.add_argument("--device", default=DEVICE, help="cpu, cuda or cuda:1; auto takes a GPU if there is one")


def of_results(args: Namespace) -> bool:
    """Whether a result file was given, and not a checkpoint.

    Raises:
        UserError: if it is neither, both, or half of one.
    """
    given = [bool(part) for part in (args.checkpoint, args.data, args.gt, args.dt)]
    if given not in ([True, True, False, False], [False, False, True, True]):
        raise UserError("give either a checkpoint and --data, or a ground truth --gt and a result file --dt")
    usual = {"split": SPLIT, "classes": None, "batch_size": BATCH_SIZE, "workers": 0, "device": DEVICE}
    if args.gt:
        why = "belongs to a checkpoint and --data; leave it out with --gt and --dt"
        refuse(args, usual | {"skip_unreadable": False}, why)
    return bool(args.gt)


def refuse(args: Namespace, usual: Mapping[str, object], why: str) -> None:
    """See that no option was given that would be passed over.

    Args:
        args: of the command.
        usual: each such option with what it is when it was left out.
        why: what follows the option's name in the sentence.

    Raises:
        UserError: naming the first.
    """
    for name, value in usual.items():
        if args[name] != value:
            raise UserError(f"--{name.replace('_', '-')} {why}")


def warn(sentence: str) -> None:
    """Something that a person should know of, but that ends nothing."""
    print(f"tightbox: {sentence}", file=sys.stderr)


def open_model(args: Namespace, *, calibrated: bool = True) -> Detector:
    """The detector, on its device, calibrated if it ever was, or raw."""
    from tightbox.models import load

    model = load(args.checkpoint, calibrated=calibrated).to(find_device(args.device))
    if several_views(args):
        from tightbox.inference.views import Views, see

        see(model, Views(scales=tuple(args.scales or (1.0,)), flip=args.flip, merge=args.merge))
    return model


def several_views(args: Namespace) -> bool:
    """Whether test-time augmentation is asked for.

    Raises:
        UserError: if only its merging is.
    """
    asked = bool(args.get("scales") or args.get("flip"))
    if not asked and args.get("merge", MERGES[0]) != MERGES[0]:
        raise UserError("--merge merges what is found in several views: also give --scales or --flip")
    return asked


def read(args: Namespace, split: str | None = None) -> DetectionData:
    """A split of the data set, `--split` if not another."""
    from tightbox.data.layout import read_data

    data = read_data(args.data, split or args.split)
    return data.only_classes(args.classes) if args.classes else data


def open_both(args: Namespace, *, calibrated: bool = True) -> tuple[Detector, DetectionData]:
    """The detector of `open_model`, and the data set with its classes."""
    data = read(args)  # before anything slow: a wrong path is known at once
    model = open_model(args, calibrated=calibrated)
    return model, data.with_classes(model.class_names)


def find_device(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one, of several processes each its own.

    Raises:
        UserError: if this machine has no such device.
    """
    import torch

    if name == "auto" and several_processes():
        from tightbox.distributed import new_accelerator

        return torch.device(new_accelerator().device)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"--device {name} cannot be used here ({reason}); choose auto or cpu") from error


def several_processes() -> bool:
    """Whether `accelerate launch` or `torchrun` started more than one; asking accelerate itself takes a second."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def loading(args: Namespace) -> Loading:
    """How images are loaded, for whatever goes through the data set."""
    from tightbox.inference.detect import Loading

    return Loading(args.batch_size, args.workers, args.skip_unreadable)


def detect(
    args: Namespace, model: Detector, data: DetectionData, accelerator: Accelerator | None = None
) -> dict[int, Detections]:
    """What the detector finds in every record; an accelerator spreads the work over its processes."""
    from tightbox.inference.detect import detect_data
    from tightbox.progress import progress_bar

    shown = accelerator is None or accelerator.is_main_process
    with progress_bar(f"detecting in {data.split}", shown=shown) as progress:
        return detect_data(model, data, accelerator=accelerator, loading=loading(args), progress=progress)
