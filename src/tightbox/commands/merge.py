"""Put the parts of a `tightbox predict` job together, and prove that no image is missing or there twice."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

USAGE = "FOLDER [FOLDER ...] --out FILE.parquet|FILE.jsonl|FILE.json"


def add_arguments(parser: ArgumentParser) -> None:
    """What to put together, and where."""
    parser.add_argument("folder", nargs="+", help="--out of the job, or of each of its shards")
    parser.add_argument("--out", required=True, help="file to write: rows in .parquet or .jsonl, COCO results in .json")


def run(args: Namespace) -> int:
    """Merge, or say what is missing."""
    from tightbox.inference.jobs.merge import merge

    target = Path(args.out)
    merged = merge([Path(folder) for folder in args.folder], target)
    print(f"{merged.images} images, each once, {merged.failed} of them failed, with {merged.boxes} boxes; see {target}")
    return 0
