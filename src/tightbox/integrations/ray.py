"""Detection on Ray: a callable class for `map_batches`, and the parts of a job worked off by its actors."""

from pathlib import Path
from typing import Any

import numpy as np

from tightbox.errors import UserError, import_extra
from tightbox.inference.files import DECODERS, FileResult, Selection, detect_files, labels_of, load_on
from tightbox.inference.jobs.job import Job, Part
from tightbox.inference.jobs.parts import COLUMNS, Row, row_of
from tightbox.inference.jobs.run import Work

Batch = dict[str, Any]
RETRIES = 2  # of a part whose actor died; Ray itself would go on for ever with one that kills every actor


class Predictor:
    """Adds what is found in each image to a batch of rows that name images, for `Dataset.map_batches`.

    Each actor loads the detector once, and decodes inside, so that only paths and boxes travel. Images that cannot be
    read are rows with their `error`.

    Args:
        checkpoint: a folder that every node sees.
        root: where the paths start; absolute paths need none.
        path_column: which column holds the paths.
        threshold: boxes with a lower score are left out.
        min_iou: boxes with a lower predicted IoU are left out.
        classes: only these; all by default.
        batch_size: images that the network sees together.
        workers: threads that decode ahead.
        device: `auto` takes the GPU that Ray gave to the actor.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        root: str = "",
        path_column: str = "path",
        threshold: float = 0.3,
        min_iou: float | None = None,
        classes: list[str] | None = None,
        batch_size: int = 8,
        workers: int = DECODERS,
        device: str = "auto",
    ) -> None:
        self.model = load_on(checkpoint, threshold, device)
        labels = labels_of(classes, self.model.class_names) if classes else None
        self.select = Selection(threshold, min_iou, labels)
        self.root = Path(root)
        self.path_column = path_column
        self.batch_size = batch_size
        self.workers = workers

    def __call__(self, batch: Batch) -> Batch:
        """The batch with `width`, `height`, `error`, `boxes`, `scores`, `classes` and `ious` of each image."""
        names = [str(name) for name in batch[self.path_column]]
        paths = (self.root / name for name in names)
        results = detect_files(self.model, paths, batch_size=self.batch_size, workers=self.workers)
        rows = []
        for name, result in zip(names, results, strict=True):
            kept = FileResult(result.path, self.select(result.found), result.size, error=result.error)
            rows.append(row_of(0, name, kept, self.model.class_names))
        added = [name for name in COLUMNS if name not in ("index", "path")]
        # Arrays of objects, as some columns hold lists of different lengths.
        return batch | {name: np.fromiter((row[name] for row in rows), object, len(rows)) for name in added}


class _PartRunner:
    """An actor that writes parts of a job."""

    def __init__(self, checkpoint: str, folder: str, kind: str, work: Work, device: str) -> None:
        self.model = load_on(checkpoint, work.select.threshold, device)
        self.folder, self.kind, self.work = Path(folder), kind, work

    def __call__(self, row: Row) -> Row:
        part = Part(int(row["number"]), int(row["start"]), tuple(str(name) for name in row["names"]))
        target = self.folder / f"part-{part.number:06d}.{self.kind}"
        if not target.exists():  # Ray runs a row again if the actor that had done it died
            try:
                self.work.run(self.model, part, target)
            except UserError as error:  # Ray would bury the sentence in a traceback
                return {"number": part.number, "error": str(error)}
        return {"number": part.number, "error": ""}


def run_parts(
    checkpoint: Path, job: Job, work: Work, *, actors: int = 1, address: str | None = None, device: str = "auto"
) -> None:
    """Work off a job's pending parts by a pool of actors, each of which writes whole parts into the job's folder.

    Args:
        checkpoint: a folder that every node sees, as are those of job and images.
        job: its folder was entered.
        work: how.
        actors: processes.
        address: of a running cluster; None starts one on this machine for the time of the work.
        device: as for `Predictor`.

    Raises:
        UserError: if there is no such cluster, or a worker died; finished parts stay.
    """
    parts = [{"number": part.number, "start": part.start, "names": list(part.names)} for part in job.pending()]
    if not parts:
        return
    ray = import_ray()
    from ray.data import ActorPoolStrategy, DataContext, from_items

    own = not ray.is_initialized()
    try:
        # Without an address a cluster is started here, whatever RAY_ADDRESS says.
        ray.init(
            address or "local",
            log_to_driver=False,
            logging_level="ERROR",
            ignore_reinit_error=True,
            include_dashboard=False,
        )
    except Exception as error:  # Ray's own errors have no common class
        what = f"no Ray cluster at {address}" if address else "no Ray cluster can be started here"
        way_out = "check --address" if address else "leave out --engine ray"
        raise UserError(f"{what} ({_lines(error)[0]}); {way_out}") from error
    try:
        DataContext.get_current().enable_progress_bars = False
        done = from_items(parts, override_num_blocks=len(parts)).map(
            _PartRunner,
            fn_constructor_args=(str(checkpoint.absolute()), str(job.folder.absolute()), job.card.kind, work, device),
            compute=ActorPoolStrategy(size=min(actors, len(parts))),
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
            num_gpus=1 if ray.cluster_resources().get("GPU") and device != "cpu" else 0,
        )
        for row in done.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
    except UserError:
        raise
    except Exception as error:  # Ray wraps what its workers raise
        raise UserError(
            f"a worker of Ray failed ({_lines(error)[-1]}); finished parts are kept: run again with --resume"
        ) from error
    finally:
        if own:
            ray.shutdown()


def import_ray() -> Any:
    """The module ray.

    Raises:
        UserError: if it is not installed.
    """
    ray = import_extra("ray", "ray", "Ray")
    import_extra("ray.data", "ray", "Ray")
    return ray


def _lines(error: BaseException) -> list[str]:
    """What an error says, at least its name."""
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
