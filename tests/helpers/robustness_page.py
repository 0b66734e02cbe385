"""docs/robustness.md, whose tables are written by the programs that measured them."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path

from tightbox.version import __version__

PAGE = Path(__file__).parents[2] / "docs" / "robustness.md"


def put_into_page(name: str, command: str, content: str) -> None:
    """Replace what stands between the marks of this name, with what it takes to make it again."""
    about = (
        f"`{command}`, ended on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, tightbox {__version__}, "
        f"Python {platform.python_version()}:"
    )
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(start)
    PAGE.write_text(f"{before}{start}{about}\n\n{content.strip()}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")
