"""Write a checkpoint for another program: a state dict that mmdetection loads."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from tightbox.errors import UserError

USAGE = "CHECKPOINT --format mmdet --out FILE"


def add_arguments(parser: ArgumentParser) -> None:
    """What, how, and to where."""
    parser.add_argument("checkpoint", help="folder that `tightbox train` or `tightbox import` wrote")
    parser.add_argument("--format", choices=["mmdet"], required=True, help="mmdet: a .pth file for mmdetection's VFNet")
    parser.add_argument("--out", required=True, help="the file to write")


def run(args: Namespace) -> int:
    """Write the file, and say what is in it."""
    out = Path(args.out)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name the file to write, such as {out / 'vfnet.pth'}")

    import torch

    from tightbox import __version__
    from tightbox.files import atomic_path
    from tightbox.models import load
    from tightbox.models.mmdet import export_state
    from tightbox.models.mmdet.variants import title

    model = load(args.checkpoint)
    state = export_state(model)
    content = {"meta": {"CLASSES": model.class_names, "tightbox": __version__}, "state_dict": state}
    whole = BytesIO()  # PyTorch's own complaint about a full disk is no OSError
    torch.save(content, whole)
    with atomic_path(out) as temporary:
        temporary.write_bytes(whole.getbuffer())
    print(f"written: {out}, {len(state)} tensors of a VFNet on {title(model.backbone.options)}")
    print(f"mmdetection loads it into its VFNet with num_classes={len(model.class_names)}")
    return 0
