"""How far imported VFNet files are from mmdetection 3.3.0, on its reference outputs for weights drawn from names.

Each network is written as a `.pth` file, imported, and given the reference's image, 320x256 pixels, in float32; the
largest differences are shown.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path

import torch
from machine import measured
from safetensors.torch import load_file

from tightbox.files import atomic_path
from tightbox.models.mmdet import import_checkpoint
from tightbox.models.mmdet.variants import title
from tightbox.structures import ImageBatch

HEADER = (
    "| network | class logits | initial boxes, px | final boxes, px | same detections | boxes, px | scores |\n"
    "|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goldens", type=Path, required=True, help="folder of the reference outputs")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    args = parser.parse_args()
    lines = [measured(), "", HEADER]
    print("\n".join(lines), flush=True)
    for path in sorted(args.goldens.glob("vfnet_*_names0.safetensors")):
        lines.append(row(path, path.name.removeprefix("vfnet_").removesuffix("_names0.safetensors")))
        print(lines[-1], flush=True)
    if args.markdown:
        with atomic_path(args.markdown) as temporary:
            temporary.write_text(
                f"# Parity with mmdetection\n\n{__doc__}\n" + "\n".join(lines) + "\n", encoding="utf-8"
            )


@torch.no_grad()
def row(path: Path, variant: str) -> str:
    golden = load_file(path)
    module_path = path.parent / "weights_from_names.py"
    specification = importlib.util.spec_from_file_location("weights_from_names", module_path)
    assert specification is not None
    assert specification.loader is not None
    generator = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(generator)
    shapes = json.loads((path.parent / "zoo_layouts.json").read_text(encoding="utf-8"))[variant]["shapes"]
    state = {name: torch.from_numpy(value) for name, value in generator.weights_from_names(shapes, seed=0).items()}
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"meta": {}, "state_dict": state}, Path(folder) / "published.pth")
        model = import_checkpoint(Path(folder) / "published.pth", top_k_of="pairs")
    pixels = golden["input/image"]
    output = model(pixels)
    counts = [height * width for height, width in output.sizes]
    differences = []
    for name, ours in (
        ("cls_score", output.logits),
        ("bbox_pred", output.initial),
        ("bbox_pred_refine", output.distances),
    ):
        largest = 0.0
        for level, part in enumerate(ours.split(counts, dim=1)):
            theirs = golden[f"raw/{name}_{level}"].permute(0, 2, 3, 1).flatten(1, 2)
            part = part[..., ::8] if name == "cls_score" and level < 2 else part  # every 8th class is stored of these
            largest = max(largest, float((part - theirs).abs().max()))
        differences.append(f"{largest:.0e}")
    found = model.detect(ImageBatch(pixels * model.backbone.std + model.backbone.mean, ((256, 320),)))[0]
    boxes, scores, labels = (golden[f"pred/0/{name}"] for name in ("bboxes", "scores", "labels"))
    apart = (found.boxes[:, None] - boxes).abs().amax(-1)
    apart[found.labels[:, None] != labels] = torch.inf
    nearest, partner = apart.min(dim=1)
    same = (nearest < 0.1) & ((found.scores - scores[partner]).abs() < 2e-3)
    score = float((found.scores - scores[partner]).abs()[same].max())
    kept = f"{int(same.sum())} of {len(boxes)}"
    name = title(model.backbone.options)
    return f"| {name} | {' | '.join(differences)} | {kept} | {float(nearest[same].max()):.0e} | {score:.0e} |"


if __name__ == "__main__":
    main()
