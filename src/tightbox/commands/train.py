"""Train a detector on your own images; COCO, Pascal VOC and YOLO folders are recognised."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from tightbox.commands import on_data
from tightbox.errors import UserError
from tightbox.files import only_writer, write_text
from tightbox.options import (
    MODEL_OPTIONS,
    AugmentOptions,
    BackboneOptions,
    Preprocess,
    TrainOptions,
    from_earlier_versions,
)
from tightbox.reading import is_file, read_yaml

USAGE = "--data DIR --out DIR [--init CHECKPOINT] [--config FILE] [--resume] [options]"
CONFIGURATION = "config.yaml"
SAVED = ("last", "resume", "resume.old")  # one of them is there once a run has saved anything
# What a resumed run may do differently and still be the same run; `data` and `out` may have been moved.
MAY_CHANGE = (
    *("config", "resume", "data", "out", "device", "epochs", "minutes", "eval_every", "patience", "keep_all"),
    *("precision", "workers", "cache", "skip_unreadable", "tensorboard"),
)


def add_arguments(parser: ArgumentParser) -> None:
    """The folders, then every field of every options class."""
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the options below")
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--classes", nargs="+", help="learn only these; objects of other classes are background")
    parser.add_argument("--out", required=True, help="folder for checkpoints, metrics and the resolved configuration")
    init = "checkpoint folder to start from: its model, its options where none are given, and its weights"
    parser.add_argument("--init", help=init)
    others = (
        "--epochs or --minutes, --eval-every, --patience, --keep-all, --precision, --workers, --cache, "
        "--skip-unreadable, --tensorboard, --device and, where the data set was moved, --data"
    )
    resume = "continue the run in --out exactly where it stopped, with its own options; others may be given for "
    parser.add_argument("--resume", action="store_true", help=resume + others)
    parser.add_argument("--model", choices=list(MODEL_OPTIONS), default="vfnet", help="which detector")
    parser.add_argument("--standalone", action="store_true", help="short for --iou_net.standalone true")
    parser.add_argument("--backbone", default="resnet50", help="any timm model with features at strides 8, 16 and 32")
    on_data.add_device(parser)
    parser.add_class_arguments(BackboneOptions, None, skip={"name"})
    resized = "images are resized, keeping their shape, so that the longer side has at most this many pixels ..."
    usual = "(left out: as the objects need, 320 to 640; tightbox doctor says why)"
    parser.add_argument("--long_side", type=int | None, help=f"{resized} {usual}")
    parser.add_argument("--short_side", type=int | None, help="... and the shorter side at most this many (as many)")
    parser.add_class_arguments(TrainOptions, None)
    parser.add_class_arguments(AugmentOptions, None)
    for name, kind in MODEL_OPTIONS.items():
        parser.add_class_arguments(kind, name)
    parser.set_defaults(small())


def small() -> dict[str, Any]:
    """The defaults where they are not those of the options classes."""
    return _flat(read_yaml(Path(__file__).with_name("small.yaml")))


def small_options(detector: str) -> dict[str, Any]:
    """A detector's own options, as far as their defaults here are not those of its published model."""
    prefix = f"{detector}."
    return {name.removeprefix(prefix): value for name, value in small().items() if name.startswith(prefix)}


def earlier_choices(arguments: Sequence[str]) -> dict[str, Any]:
    """The defaults of `train --resume --out DIR` and `train --init CHECKPOINT`, in the place of the usual ones.

    They are the options that the run was started with, or those of the checkpoint; what is given overrides them.

    Raises:
        UserError: if there is no such run, or no such checkpoint.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--resume", action="store_true")
    for option in ("--out", "--init"):
        first.add_argument(option)
    first.add_argument("--config", action="append", default=[])
    try:
        named, _ = first.parse_known_args(arguments)
    except argparse.ArgumentError:  # an option without its value: the parser of all options says so
        return {}
    if named.resume:
        return {} if named.out is None else _flat(_configuration(Path(named.out)))
    inits = [_named_in(Path(config)) for config in named.config if config]
    init = named.init or next((init for init in reversed(inits) if init), None)
    return _choices_of(Path(init)) if init else {}


def _choices_of(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint was made with."""
    from tightbox.checkpoint import read_card

    card = read_card(checkpoint)
    try:
        own = {"backbone" if name == "name" else name: value for name, value in card["backbone"].items()}
        options = from_earlier_versions(card["model"], card["options"])
        return _flat({**own, **card["preprocess"], "model": card["model"], card["model"]: options})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the card of {checkpoint} is damaged ({error}); copy the checkpoint again") from error


def _named_in(config: Path) -> str | None:
    """The checkpoint to start from in a configuration file; the parser says which of its options are wrong."""
    try:
        content = read_yaml(config)
        config.read_text(encoding="utf-8")  # as jsonargparse reads it
    except UnicodeDecodeError as error:
        raise UserError(f"{config} is not UTF-8 text; save it as such") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"{config} holds no options; write them as lines such as epochs: 50")
    init = content.get("init")
    return init if isinstance(init, str) else None


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Names such as "vfnet.channels" for the options of a model."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def run(args: Namespace) -> int:
    """Read the data, build the model, train it, and say what came out."""
    out = Path(args.out)
    if args.standalone and args.model != "iou_net":
        raise UserError("--standalone trains the IoU head of iou_net alone; add --model iou_net")
    args.iou_net.standalone |= args.standalone
    backbone, preprocess, options, augment, chosen = choices(args)
    args.epochs, args.lr = options.epochs, options.lr  # what is not given is known here
    if args.resume:
        _require_same_run(args, out)
    elif any((out / name).exists() for name in SAVED):
        raise UserError(f"{out} already holds a run; continue it with --resume, or choose another --out")

    from tightbox.data.input_size import input_size_of
    from tightbox.data.layout import read_data, splits

    train, val = on_data.read(args, "train"), None
    if "val" in splits(args.data):
        val = read_data(args.data, "val")
        if args.classes:
            val = val.only_classes([name for name in args.classes if name in val.class_names])
        val = val.with_classes(train.class_names)

    device = None if args.device == "auto" else on_data.find_device(args.device)  # accelerate's own choice, if None
    if device is not None and device.type != "cpu" and on_data.several_processes():
        raise UserError(f"--device {args.device} is one device, but each process needs its own; leave it out")

    from accelerate.utils import set_seed

    from tightbox.distributed import new_accelerator
    from tightbox.models import create_model, start_from
    from tightbox.training.fit import choose_precision, fit

    state = new_accelerator(device)
    state.print(f"found {train.layout}: {len(train.records)} training images, classes {', '.join(train.class_names)}")
    if args.model == "iou_net" and args.iou_net.standalone:
        val = None
        state.print("nothing will be evaluated: an IoU head alone finds no boxes, it judges those of other detectors")
    elif val is None:
        state.print("found no validation split: nothing will be evaluated; add one to see how good the boxes are")
    else:
        state.print(f"found {val.layout}: {len(val.records)} validation images")
    if preprocess is None:
        fitting = input_size_of(train)
        state.print(f"images of {fitting.long_side} px: {fitting}; --long-side chooses another size")
        preprocess = Preprocess(long_side=fitting.long_side, short_side=fitting.long_side)
    args.long_side, args.short_side = preprocess.long_side, preprocess.short_side
    set_seed(options.seed)
    model = create_model(args.model, class_names=train.class_names, backbone=backbone, preprocess=preprocess, **chosen)
    if args.init and not args.resume:
        same = start_from(model, args.init)
        anew = "" if same else " but those of the class layer, which starts anew because the class names differ"
        state.print(f"starting from {args.init}: all weights{anew}")
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million weights"
    precision = choose_precision(options.precision, device)
    state.print(f"{args.model} on {backbone.name}, {size}, mixed precision: {precision}")

    with ExitStack() as until_trained:

        def when_ready() -> None:
            until_trained.enter_context(only_writer(out))
            write_text(out / CONFIGURATION, _resolved(args))

        trained = fit(model, train, val, out, options, augment, resume=args.resume, ready=when_ready, device=device)
    if val is not None and "ap" in trained.metrics:
        state.print(f"best checkpoint: {out / 'best'}")
    if args.model == "iou_net" and args.iou_net.standalone:
        state.print(f"next: tightbox rescore {out / 'best'} --data {args.data} --dt RESULTS --out BETTER")
    else:
        state.print(f"next: tightbox predict {out / 'best'} YOUR_IMAGES --out predictions")
    return 0


def choices(args: Namespace) -> tuple[BackboneOptions, Preprocess | None, TrainOptions, AugmentOptions, dict[str, Any]]:
    """What was chosen, the model's own options last; no size of images if it is to fit the data.

    Raises:
        UserError: if a choice makes no sense.
    """
    # A configuration file may say null, or nothing, which is the same.
    if args.model not in MODEL_OPTIONS:
        raise UserError(f"--model is {args.model}; choose from {', '.join(MODEL_OPTIONS)}")
    if args[args.model] is None:
        raise UserError(f"{args.model} has no options in the configuration; give some, or leave that line out")
    backbone = BackboneOptions(name=args.backbone, **_pick(BackboneOptions, args, skip="name"))
    if args.init or args.resume:
        backbone = replace(backbone, pretrained=False)  # nothing is downloaded only to be overwritten
    longer, shorter = args.long_side or args.short_side, args.short_side or args.long_side
    preprocess = Preprocess(long_side=longer, short_side=shorter) if longer else None
    options = TrainOptions(**_pick(TrainOptions, args))
    augment, chosen = AugmentOptions(**_pick(AugmentOptions, args)), vars(args[args.model])
    MODEL_OPTIONS[args.model](**chosen)
    return backbone, preprocess, options, augment, chosen


def _configuration(out: Path) -> dict[str, Any]:
    """The options that the run in `out` was started with, by today's names.

    Raises:
        UserError: if there are none.
    """
    path = out / CONFIGURATION
    if not is_file(path):
        missing = f"there is nothing to resume in {out}: it has no {CONFIGURATION}"
        raise UserError(f"{missing}; start without --resume, in an empty --out")
    try:
        content: dict[str, Any] = read_yaml(path)
        return {name: from_earlier_versions(name, v) if isinstance(v, dict) else v for name, v in content.items()}
    except (ValueError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); start anew in another --out") from error


def _require_same_run(args: Namespace, out: Path) -> None:
    """Refuses options that would make another network, or another training, of the run in `out`."""
    run = _configuration(out)
    for name, now in args.items():
        group, _, field = name.rpartition(".")
        before = run.get(group, {}) if group else run
        if name not in MAY_CHANGE and field in before and before[field] != now:
            option = name.replace("_", "-")
            anew = f"start a new run in another --out, perhaps with --init {out / 'last'}"
            differs = f"the run in {out} has {option} {before[field]}, not {now}"
            raise UserError(f"{differs}; leave --{option} out to resume it, or {anew}")


def _pick(kind: type[Any], args: Namespace, skip: str = "") -> dict[str, Any]:
    return {field.name: args[field.name] for field in fields(kind) if field.name != skip}


def _resolved(args: Namespace) -> str:
    """The YAML that gives the same run again."""
    import yaml

    plain = {name: value for name, value in args.as_dict().items() if name not in ("config", "resume", "device")}
    return str(yaml.safe_dump(plain, sort_keys=False))
