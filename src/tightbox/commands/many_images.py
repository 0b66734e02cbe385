"""The part of `tightbox predict` that is for any number of images: what its options are, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from tightbox.commands import on_data
from tightbox.errors import UserError
from tightbox.reading import is_whole

if TYPE_CHECKING:
    from tightbox.inference.files import Selection
    from tightbox.models import Detector

_OPTIONS: dict[str, dict[str, Any]] = {
    "manifest": {"help": "text file with one path a line, instead of a SOURCE"},
    "part_size": {"type": PositiveInt, "default": 1000, "help": "images of a part file"},
    "resume": {"action": "store_true", "default": False, "help": "go on: parts that are there stay"},
    "shard": {"default": "1/1", "help": "only the i-th of n equal shares, such as 2/8"},
    "workers": {"type": PositiveInt, "default": 2, "help": "threads that decode ahead"},
    "engine": {"type": Literal["local", "ray"], "default": "local", "help": "this process, or Ray's"},
    "address": {"help": "with ray: a running cluster; left out, one is started here"},
    "actors": {"type": PositiveInt, "default": 1, "help": "with ray: how many processes"},
}
_NAMED = 10  # failures that are named


def add_arguments(parser: ArgumentParser) -> None:
    """What only --format parquet and jsonl know."""
    group = parser.add_argument_group("with --format parquet or jsonl")
    for name, settings in _OPTIONS.items():
        group.add_argument(f"--{name}", **settings)


def refuse_options(args: Namespace, names: Iterable[str] = _OPTIONS, need: str = "--format parquet or jsonl") -> None:
    """See that no option was given that would be passed over.

    Raises:
        UserError: naming the first.
    """
    on_data.refuse(args, {name: _OPTIONS[name].get("default") for name in names}, f"belongs to {need}; give that too")


def run(args: Namespace, selection: Callable[[Namespace, Detector], Selection]) -> int:
    """Work off the parts of a job; the status is 1 if some images could not be read."""
    usual = {"crops": False, "order": "score", "coverage": None}
    on_data.refuse(args, usual, f"is for single results; leave it out with --format {args.format}")
    if args.engine != "ray":
        refuse_options(args, ("address", "actors"), "--engine ray")
    if len(args.source) + (args.manifest is not None) != 1:
        raise UserError(f"--format {args.format} takes one folder of images as SOURCE, or --manifest FILE")

    from tightbox.inference.jobs.job import Job, JobCard, Manifest, Shard, checkpoint_digest, refuse_missing
    from tightbox.inference.jobs.parts import Work, failures_in, import_pyarrow

    shard = Shard.parse(args.shard)
    if args.format == "parquet":
        import_pyarrow()
    if args.engine == "ray":
        from tightbox.integrations.ray import import_ray, run_parts

        import_ray()
    if args.manifest is not None:
        manifest = Manifest.of_file(Path(args.manifest).expanduser())
    elif (folder := Path(args.source[0]).expanduser()).is_dir():
        manifest = Manifest.of_folder(folder)
    else:
        raise UserError(f"{folder} is no folder; --format {args.format} takes a folder of images, or --manifest FILE")
    if args.format == "parquet" and (odd := [name for name in manifest.names if not is_whole(name)]):
        raise UserError(f"{odd[0]!r} is no UTF-8, as names in Parquet must be; rename the file, or give --format jsonl")

    from tightbox.models import load

    checkpoint, out = Path(args.checkpoint), Path(args.out)
    model = load(checkpoint)
    select = selection(args, model)
    card = JobCard(
        manifest=manifest.digest,
        images=len(manifest.names),
        checkpoint=checkpoint_digest(checkpoint),
        kind=args.format,
        part_size=args.part_size,
        class_names=model.class_names,
        options={"score_threshold": select.threshold, "min_iou": select.min_iou, "classes": args.classes},
    )
    job = Job(out, manifest, card, shard)
    for part in job.pending():
        refuse_missing(manifest.root, part.names)
    drawn = out / "images" if args.images else None
    if drawn is not None and out.absolute().is_relative_to(manifest.root.absolute()):
        raise UserError(f"--out {out} is in {manifest.root}, whose images are the sources; choose another --out")
    job.enter(args.resume)
    work = Work(manifest.root.absolute(), select, args.batch_size, args.workers, drawn)
    if args.engine == "ray":
        run_parts(checkpoint, job, work, actors=args.actors, address=args.address, device=args.device)
    else:
        from tightbox.progress import progress_bar

        model.to(on_data.find_device(args.device))
        pending, done = list(job.pending()), count(1)
        total = sum(len(part.names) for part in pending)
        with progress_bar("images", shown=bool(pending)) as progress:
            for part in pending:
                work.run(model, part, card.part_path(out, part.number), lambda: progress(next(done), total))
    parts = job.finished()
    failures = failures_in(parts)
    named = list(islice(failures, _NAMED))
    more = sum(1 for _ in failures)
    images = sum(min(card.part_size, card.images - number * card.part_size) for number in job.numbers())
    print(f"{images} images in {len(parts)} parts, {len(named) + more} failed; see {out}")
    for sentence in [*named, f"and {more} more"] if more else named:
        on_data.warn(f"failed: {sentence}")
    return int(bool(named))
