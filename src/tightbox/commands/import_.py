"""Turn a published VFNet file of mmdetection into a tightbox checkpoint."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from tightbox.errors import UserError
from tightbox.reading import is_file, read_lines

USAGE = "CHECKPOINT --out DIR [--class-names FILE | NAME ...]"


def add_arguments(parser: ArgumentParser) -> None:
    """From where, to where."""
    parser.add_argument("checkpoint", help=".pth file; docs/published_checkpoints.md lists the published ones")
    parser.add_argument("--out", required=True, help="folder for the checkpoint")
    class_names = "the classes in order, or a text file with one a line; left out, the file's own or COCO's"
    parser.add_argument("--class_names", nargs="+", help=class_names)
    ranked = "what is ranked before suppression: locations, as for the published AP, or pairs, as mmdetection 3 does"
    parser.add_argument("--top_k_of", choices=["locations", "pairs"], default="locations", help=ranked)


def run(args: Namespace) -> int:
    """Read the file, write the folder, and say what was found."""
    names = args.class_names
    if names is not None and len(names) == 1 and is_file(path := Path(names[0])):
        names = read_lines(path)
        if not names:
            raise UserError(f"{path} has no class names; give a text file with one a line")

    from tightbox.models.mmdet import import_checkpoint
    from tightbox.models.mmdet.names import to_published
    from tightbox.models.mmdet.variants import title

    model = import_checkpoint(args.checkpoint, names, top_k_of=args.top_k_of)
    folder = model.save(args.out)
    shown = ", ".join(model.class_names[:3]) + (", ..." if len(model.class_names) > 3 else "")
    print(f"found VFNet on {title(model.backbone.options)}: {len(to_published(model.state_dict()))} tensors, all used")
    print(f"{len(model.class_names)} classes: {shown}")
    print(f"written: {folder}")
    print(f"next: tightbox predict {folder} YOUR_IMAGES --out predictions")
    return 0
