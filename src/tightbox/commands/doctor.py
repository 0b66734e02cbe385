"""Say what is wrong in a data set: every finding with its severity, image and fix."""

from dataclasses import asdict
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from tightbox.files import write_json
from tightbox.progress import progress_bar

USAGE = "DIR [--json FILE]"


def add_arguments(parser: ArgumentParser) -> None:
    """Which data set."""
    parser.add_argument("data", help="folder of the data set")
    parser.add_argument("--json", help="also write all findings to this JSON file")


def run(args: Namespace) -> int:
    """Print the report; the status is 1 if something must be fixed before training."""
    from tightbox.data.doctor import Severity, examine, print_report
    from tightbox.data.layout import data_folder

    folder = data_folder(args.data)
    with progress_bar("reading images") as progress:
        report = examine(folder, progress)
    print_report(report)
    if args.json is not None:
        write_json(Path(args.json), [asdict(finding) for finding in report.findings])
    return int(any(finding.severity is Severity.ERROR for finding in report.findings))
