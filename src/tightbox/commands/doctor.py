"""Say what is wrong in a data set: every finding with its severity, picture and fix."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from tightbox.errors import UserError

USAGE = "DIR [--json FILE]"


def add_arguments(parser: ArgumentParser) -> None:
    """Which data set."""
    parser.add_argument("data", help="folder of the data set")
    parser.add_argument("--json", default=None, help="also write all findings to this JSON file")


def run(args: Namespace) -> int:
    """Print the report; the status is 1 if something must be mended before training."""
    if not Path(args.data).expanduser().is_dir():
        raise UserError(f"the data folder {args.data} does not exist; check the path")

    from dataclasses import asdict

    from tightbox.data.doctor import Severity, examine, print_report
    from tightbox.files import write_json
    from tightbox.progress import counting

    with counting("reading pictures") as progress:
        report = examine(Path(args.data), lambda _, done, total: progress(done, total))
    print_report(report.findings, report.splits)
    if args.json is not None:
        write_json(Path(args.json), [asdict(finding) for finding in report.findings])
    return int(any(finding.severity is Severity.ERROR for finding in report.findings))
