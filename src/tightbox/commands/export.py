"""Write a checkpoint for other programs: an ONNX or OpenVINO model, or a state dict that mmdetection loads."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from tightbox.errors import UserError

if TYPE_CHECKING:
    from tightbox.data.records import DetectionData
    from tightbox.models import Detector

USAGE = "CHECKPOINT --format {onnx,openvino,mmdet} --out FILE [--int8 --data DIR]"
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "mmdet": ".pth"}


def add_arguments(parser: ArgumentParser) -> None:
    """What, how, and to where."""
    parser.add_argument("checkpoint", help="folder that `tightbox train` or `tightbox import` wrote")
    parser.add_argument(
        "--format",
        choices=list(SUFFIXES),
        required=True,
        help="onnx or openvino: from pixels to suppressed boxes with predicted IoUs, of any batch, height and width "
        "(UnitBox is read densely, as connected regions are no operation there; IoU-Net's boxes are not refined, as "
        "that takes gradients); "
        "mmdet: a .pth file for mmdetection's VFNet",
    )
    parser.add_argument("--out", required=True, help="the file to write")
    parser.add_argument("--int8", action="store_true", help="with 8-bit integers, of openvino: smaller and faster")
    parser.add_argument("--data", help="of --int8: folder of a data set with the checkpoint's classes, for the ranges")
    parser.add_argument("--split", default="train", help="which split of it")


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
    if args.int8 and args.format != "openvino":
        raise UserError(f"--int8 is of --format openvino, not of {args.format}; leave it out, or choose openvino")

    from tightbox.models import load

    model = load(args.checkpoint)
    if args.format == "openvino":
        _openvino(model, out, _ranges(args, model) if args.int8 else None)
    else:
        {"onnx": _onnx, "mmdet": _mmdet}[args.format](model, out)
    return 0


def _onnx(model: Detector, out: Path) -> None:
    from tightbox.export.onnx_file import write_onnx

    write_onnx(model, out)
    print(f"written: {out}, {_megabytes(out)}")
    print(f"next: tightbox-runtime predict {out} YOUR_IMAGES --out results.json")


def _ranges(args: Namespace, model: Detector) -> DetectionData:
    """The images that show the ranges of activations."""
    from tightbox.data.layout import read_data

    data = read_data(args.data, args.split)
    if set(data.class_names) != set(model.class_names):
        theirs, own = (", ".join(names) for names in (data.class_names, model.class_names))
        raise UserError(
            f"{args.data} has the classes {theirs}, and the checkpoint {own}; give images that it was made for"
        )
    return data


def _openvino(model: Detector, out: Path, data: DetectionData | None) -> None:
    from tightbox.export.openvino_file import write_openvino

    weights = write_openvino(model, out, int8_from=data)
    print(f"written: {out} and {weights.name}, {_megabytes(weights)}")


def _mmdet(model: Detector, out: Path) -> None:
    import torch

    from tightbox import __version__
    from tightbox.files import atomic_path
    from tightbox.models.mmdet import export_state
    from tightbox.models.mmdet.variants import title

    state = export_state(model)
    content = {"meta": {"CLASSES": model.class_names, "tightbox": __version__}, "state_dict": state}
    whole = BytesIO()  # PyTorch's own complaint about a full disk is no OSError
    torch.save(content, whole)
    with atomic_path(out) as temporary:
        temporary.write_bytes(whole.getbuffer())
    print(f"written: {out}, {len(state)} tensors of a VFNet on {title(model.backbone.options)}")
    print(f"mmdetection loads it into its VFNet with num_classes={len(model.class_names)}")


def _megabytes(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"
