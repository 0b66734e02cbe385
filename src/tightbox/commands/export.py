"""Write a checkpoint for other programs: an ONNX or OpenVINO model, or a state dict that mmdetection loads."""

from io import BytesIO
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from tightbox.commands import on_data
from tightbox.errors import UserError
from tightbox.files import atomic_path

USAGE = "CHECKPOINT --format {onnx,openvino,mmdet} --out FILE [--int8 --data DIR]"
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "mmdet": ".pth"}


def add_arguments(parser: ArgumentParser) -> None:
    """What, how, and to where."""
    parser.add_argument("checkpoint", help="folder that `tightbox train` or `tightbox import` wrote")
    kinds = (
        "onnx or openvino: from pixels to suppressed boxes with predicted IoUs, of any batch, height and width "
        "(UnitBox is read densely, as connected regions are no operation there; IoU-Net's boxes are not refined, as "
        "that takes gradients); mmdet: a .pth file for mmdetection's VFNet"
    )
    parser.add_argument("--format", choices=list(SUFFIXES), required=True, help=kinds)
    parser.add_argument("--out", required=True, help="the file to write")
    int8 = "with 8-bit integers, of onnx and openvino: smaller, faster"
    parser.add_argument("--int8", action="store_true", help=int8)
    parser.add_argument("--data", help="of --int8: folder of a data set with the checkpoint's classes")
    parser.add_argument("--split", default="train", help="which split of it shows the ranges of activations")
    parser.add_argument("--val_split", default="val", help="the split on which the AP lost to --int8 is measured")
    max_drop = "AP in [0, 1] that --int8 may lose there; layers go back to floats until it loses no more"
    parser.add_argument("--max_drop", type=float, default=0.005, help=max_drop)


def run(args: Namespace) -> int:
    """Write the file, and say what is in it."""
    out = Path(args.out)
    suffix = SUFFIXES[args.format]
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name the file to write, such as {out / ('model' + suffix)}")
    if args.format == "openvino" and out.suffix != suffix:
        raise UserError(f"--out is {out}, but OpenVINO's files end in {suffix}; name it {out.with_suffix(suffix)}")
    if args.int8 != (args.data is not None):
        raise UserError("--int8 and --data belong together: give both, or leave out both")
    if not args.int8:
        usual = {"split": "train", "val_split": "val", "max_drop": 0.005}
        on_data.refuse(args, usual, "belongs to --int8: give that too, or leave it out")
    if args.int8 and args.format == "mmdet":
        raise UserError("--int8 is of --format onnx and openvino, not of mmdet; leave it out, or choose one of these")
    if not 0 <= args.max_drop <= 1:
        raise UserError(f"--max-drop is {args.max_drop:g}; give the AP that may be lost, from 0 to 1, such as 0.005")

    from tightbox.models import load

    model = load(args.checkpoint)
    int8 = None
    if args.int8:
        from tightbox.data.layout import read_data
        from tightbox.export.int8 import Int8

        images = []  # those that show the ranges of activations, and those that AP is measured on
        for split in (args.split, args.val_split):
            data = read_data(args.data, split)
            if set(data.class_names) != set(model.class_names):
                theirs, own = (", ".join(names) for names in (data.class_names, model.class_names))
                classes = f"the classes {theirs}, and the checkpoint {own}"
                raise UserError(f"{args.data} has {classes}; give images that it was made for")
            images.append(data.with_classes(model.class_names))
        int8 = Int8(images[0], images[1], args.max_drop)
    if args.format == "mmdet":
        import torch

        from tightbox import __version__
        from tightbox.models.mmdet import export_state, settings
        from tightbox.models.mmdet.variants import title

        state = export_state(model)
        content = {"meta": {"CLASSES": model.class_names, "tightbox": __version__}, "state_dict": state}
        whole = BytesIO()  # PyTorch's own complaint about a full disk is no OSError
        torch.save(content, whole)
        with atomic_path(out) as temporary:
            temporary.write_bytes(whole.getbuffer())
        print(f"written: {out}, {len(state)} tensors of a VFNet on {title(model.backbone.options)}")
        loaded = ", ".join(f"{name}={value}" for name, value in settings(model).items())
        print(f"mmdetection loads it into its VFNet with {loaded}")
    elif args.format == "onnx":
        from tightbox.export.onnx_file import write_onnx

        write_onnx(model, out, int8=int8)
        print(f"written: {out}, {_megabytes(out)}")
        print(f"next: tightbox-runtime predict {out} YOUR_IMAGES --out results.json")
    else:
        from tightbox.export.openvino_file import write_openvino

        weights = write_openvino(model, out, int8=int8)
        print(f"written: {out} and {weights.name}, {_megabytes(weights)}")
    return 0


def _megabytes(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"
