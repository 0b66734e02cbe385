"""FDDB's discrete and continuous ROC curves of a face detector, as numbers and as a plot."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from tightbox.commands import on_data
from tightbox.errors import UserError
from tightbox.files import write_json

USAGE = "CHECKPOINT --data DIR [--split test] [--out fddb]"
FACE = "face"


def add_arguments(parser: ArgumentParser) -> None:
    """Which detector, on which folds."""
    parser.add_argument("checkpoint", help="folder that `tightbox train` wrote, of a detector with the class face")
    parser.add_argument("--data", required=True, help="folder with FDDB-folds and originalPics in it")
    parser.add_argument("--split", default="test", help="test for all folds, or one of them: fold-01 to fold-10")
    parser.add_argument("--out", default="fddb", help="folder for fddb.json and fddb.png")
    on_data.add_loading(parser)
    on_data.add_device(parser)


def run(args: Namespace) -> int:
    """Detect faces, compare them with the ellipses, write and draw the curves, and print a few of their points."""
    from tightbox.data.faces import read_ellipses, read_fddb

    data, ellipses = read_fddb(Path(args.data), args.split), read_ellipses(Path(args.data), args.split)

    from tightbox.evaluation.fddb import fddb_curves, plot_fddb

    model = on_data.open_model(args)
    if FACE not in model.class_names:
        names = ", ".join(model.class_names)
        raise UserError(f"{args.checkpoint} detects {names}; FDDB needs a detector with the class {FACE}")
    found = on_data.detect(args, model, data)
    faces = [found[i][found[i].labels == model.class_names.index(FACE)] for i in range(len(data.records))]
    boxes, scores = [face.boxes.numpy() for face in faces], [face.scores.numpy() for face in faces]
    curves = fddb_curves(ellipses, boxes, scores, [record.size for record in data.records])
    print(f"{data.layout}: {len(data.records)} images, {curves.faces} faces, {sum(map(len, faces))} detections")
    print("true positive rate   discrete  continuous")
    for most in (0, 100, 500, 1000, 2000):
        discrete, continuous = curves.at(most)
        print(f"at {most:4} false          {discrete:.3f}       {continuous:.3f}")
    out = Path(args.out)
    write_json(out / "fddb.json", curves.to_dict())
    plot_fddb({model.name: curves}, out / "fddb.png")
    print(f"written: {out / 'fddb.json'} and fddb.png")
    return 0
