"""Names everything in a built site that a browser would fetch from another host; the status is 1 if there is anything.

python tools/check_site.py site

Links that a reader may follow are no requests and are left alone.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

# Attributes whose content is fetched as the page is shown; so is what a `link` names, but for these relations.
FETCHED_ATTRIBUTES = {"src", "srcset", "poster", "data"}
MERELY_NAMED = {"canonical", "alternate", "author", "license", "help", "search", "prev", "next"}
ELSEWHERE = re.compile(r"(^|[\s,])(https?:)?//", re.IGNORECASE)
IN_STYLES = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^\"')\s]+)", re.IGNORECASE)
# What the theme's own script fetches from other hosts, where a page holds it.
BY_SCRIPT = {"mermaid": "a Mermaid diagram", "__mermaid": "a Mermaid diagram"}


class Page(HTMLParser):
    """Collects what one page fetches from other hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at the attributes of an element."""
        self.in_style = tag == "style"
        values = {name: value or "" for name, value in attrs}
        fetched = [values[name] for name in FETCHED_ATTRIBUTES & values.keys()]
        if tag == "link" and not set(values.get("rel", "").lower().split()) & MERELY_NAMED:
            fetched.append(values.get("href", ""))
        self.found += [f"{tag}: {value}" for value in fetched if ELSEWHERE.search(value)]
        self.found += IN_STYLES.findall(values.get("style", ""))
        self.found += [BY_SCRIPT[name] for name in values.get("class", "").split() if name in BY_SCRIPT]
        if values.get("data-md-component") == "source":
            self.found.append("repo_url: the theme asks its host for the number of stars")

    def handle_data(self, data: str) -> None:
        """Look into a style sheet within the page."""
        if self.in_style:
            self.found += IN_STYLES.findall(data)

    def handle_endtag(self, tag: str) -> None:
        """Leave it."""
        self.in_style = False


def main() -> int:
    """Go through the folder that the command line names."""
    site = Path(sys.argv[1])
    pages, count = sorted(site.rglob("*.html")), 0
    if not pages:
        sys.exit(f"there is no page in {site}; build it first: make docs")
    for path in [*pages, *sorted(site.rglob("*.css"))]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".html":
            page = Page()
            page.feed(text)
            found = page.found
        else:
            found = IN_STYLES.findall(text)
        for what in found:
            count += 1
            print(f"{path}: {what}", file=sys.stderr)
    print(f"{len(pages)} pages, {count} requests to other hosts")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
