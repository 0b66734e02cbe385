"""Detection on Ray: a callable class for `map_batches`, and the parts of a job worked off by its actors."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tightbox.errors import UserError, import_extra
from tightbox.inference.files import DECODERS, Selection, labels_of, load_on
from tightbox.inference.jobs.job import Job, JobCard
from tightbox.inference.jobs.parts import COLUMNS, Part, Row, Work

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
        self.work = Work(Path(root), Selection(threshold, min_iou, labels), batch_size, workers)
        self.path_column = path_column

    def __call__(self, batch: Batch) -> Batch:
        """The batch with `width`, `height`, `error`, `boxes`, `scores`, `classes` and `ious` of each image."""
        rows = list(self.work.rows(self.model, [str(name) for name in batch[self.path_column]]))
        # All but index and path, as arrays of objects, for some columns hold lists of different lengths.
        return batch | {name: np.fromiter((row[name] for row in rows), object, len(rows)) for name in COLUMNS[2:]}


class _PartRunner:
    """An actor that writes parts of a job."""

    def __init__(self, checkpoint: str, folder: Path, card: JobCard, work: Work, device: str) -> None:
        self.model = load_on(checkpoint, work.select.threshold, device)
        self.folder, self.card, self.work = folder, card, work

    def __call__(self, row: Row) -> Row:
        part = Part(int(row["number"]), int(row["start"]), tuple(map(str, row["names"])))
        target = self.card.part_path(self.folder, part.number)
        if not target.exists():  # Ray runs a row again if the actor that had done it died
            try:
                self.work.run(self.model, part, target)
            except UserError as error:  # Ray would bury the sentence in a traceback
                return {"error": str(error)}
        return {"error": ""}


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
    parts = [asdict(part) for part in job.pending()]
    if not parts:
        return
    ray = import_ray()
    from ray.data import ActorPoolStrategy, DataContext, from_items

    own = not ray.is_initialized()
    try:
        quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
        # Without an address a cluster is started here, whatever RAY_ADDRESS says.
        ray.init(address or "local", ignore_reinit_error=True, **quiet)
    except Exception as error:  # Ray's own errors have no common class
        what = f"no Ray cluster at {address}" if address else "no Ray cluster can be started here"
        way_out = "check --address" if address else "leave out --engine ray"
        raise UserError(f"{what} ({_lines(error)[0]}); {way_out}") from error
    try:
        DataContext.get_current().enable_progress_bars = False
        done = from_items(parts, override_num_blocks=len(parts)).map(
            _PartRunner,
            fn_constructor_args=(str(checkpoint.absolute()), job.folder.absolute(), job.card, work, device),
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
    import_extra("ray.data", "ray", "Ray")
    return import_extra("ray", "ray", "Ray")


def _lines(error: BaseException) -> list[str]:
    """What an error says, at least its name."""
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
