"""What MkDocs cannot do by itself: pages from elsewhere in the repository, and the reference of the command line.

Pages link to each other by their paths in the repository, so that the links work where the files lie and on the site.
"""

from __future__ import annotations

import argparse
import os.path
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from jsonargparse import ActionYesNo

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = ("recipes/*.md", "recipes/*.png", "recipes/*.yaml", "benchmarks/*.md", "CONTRIBUTING.md", "CHANGELOG.md")
COMMANDS_PAGE = "reference/commands.md"
ABOUT = """
Written from the parsers when the site is built; `tightbox COMMAND --help` says the same. An option may be typed with
dashes or underscores, and `--name value` may be `--name=value`. Exit status: 0; 1 if `doctor` has found errors or
`predict` could not read some files; 2 for a mistake, with one sentence that says what to do; 130 after Ctrl-C.
""".strip()
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files that lie beside `docs`, and the page that is written from the parsers."""
    from mkdocs.structure.files import File, InclusionLevel

    for path in sorted(path for pattern in ELSEWHERE for path in ROOT.glob(pattern)):
        file = File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls)
        file.inclusion = InclusionLevel.NOT_IN_NAV  # those that are in the navigation are in it all the same
        files.append(file)
    files.append(File.generated(config, COMMANDS_PAGE, content=commands_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points the links that leave a page's own tree to where the site has their targets."""
    at = page.file.src_uri
    elsewhere = any(Path(at).match(pattern) for pattern in ELSEWHERE)
    folder = os.path.dirname(at if elsewhere else f"docs/{at}")

    def on_site(link: re.Match[str]) -> str:
        if re.match(r"[a-z]+:", link[2]):
            return link[0]
        target = os.path.normpath(os.path.join(folder, link[2]))
        if target in ("recipes", "benchmarks"):
            target = {"recipes": "recipes/README.md", "benchmarks": "docs/benchmarks.md"}[target]
        return link[1] + os.path.relpath(target.removeprefix("docs/"), os.path.dirname(at) or ".") + link[3]

    return LINK.sub(on_site, markdown)


def commands_page() -> str:
    """Every command with its options, from the parsers themselves."""
    from tightbox.cli import COMMANDS, build_parser

    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    parts = ["# Command line", ABOUT, " · ".join(f"[{name}](#{name})" for name in COMMANDS)]
    for name in COMMANDS:
        parser: Any = commands.choices[name]
        parts += [f"## {name}", parser.description, f"```text\n{' '.join(parser.usage.split())}\n```"]
        for group in parser._action_groups:
            actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS and not _general(a)]
            if actions and group.title not in ("options", "positional arguments"):
                parts.append(f"**{group.title.strip().rstrip('.:')}**")
            parts += [_entry(action) for action in actions]
    return "\n\n".join(parts) + "\n"


def _general(action: argparse.Action) -> bool:
    return bool({"--help", "--print_config"} & set(action.option_strings))


def _entry(action: argparse.Action) -> str:
    """An option as an entry of a definition list."""
    name = max(action.option_strings, key=len, default="").replace("_", "-") or action.dest.split(".")[-1].upper()
    choices = action.choices or get_args(getattr(action, "_typehint", None))
    if choices and all(isinstance(choice, str) for choice in choices):
        name += " " + "|".join(choices)
    elif action.nargs == "+":
        name += " …"
    text = " ".join((action.help or "").split())
    text += "" if text.endswith(".") else "."
    if action.nargs != 0 and action.default not in (None, argparse.SUPPRESS):
        shown = str(action.default).lower() if isinstance(action.default, bool) else action.default
        text += f" *Default: `{shown}`.*"
    names = [f"`{name}`"]
    if isinstance(action, ActionYesNo):  # two options with one meaning
        names = [f"`{option.replace('_', '-')}`" for option in action.option_strings]
    return "\n".join(names) + f"\n:   {_escaped(text)}"


def _escaped(text: str) -> str:
    """Plain text for Markdown; what stands in backquotes is code, and the default is set already."""
    text = text.replace("<", "&lt;")
    return re.sub(r"(`[^`]*`|\*Default: |\.\*$)|([*_])", lambda found: found[1] or "\\" + found[2], text)
