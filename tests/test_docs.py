"""What the documentation says is so: python runs, commands parse, links lead somewhere, rows are those measured."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from PIL import Image

from tightbox.checkpoint import read_card
from tightbox.cli import COMMANDS, build_parser, with_underscores
from tightbox.data.scenes import CLASS_NAMES, write_scenes
from tightbox.diagnosis.numbers import Diagnosis
from tightbox.evaluation.coco import CocoMetrics
from tightbox.models.build import DETECTORS, create_model
from tightbox.options import MODEL_OPTIONS, BackboneOptions, Preprocess

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "recipes" / "README.md", *sorted(DOCS.rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
BLOCK = re.compile(r"^```(\w+)(?: title=\"(.*?)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Options of programs that are not tightbox.
FOREIGN = {"--strict", "--num_processes"}


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[tuple[str | None, str]]:
    """The title and the text of every block in a language."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(title or None, text) for kind, title, text in found if kind == language]


def without_blocks(page: Path) -> str:
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def options_of() -> dict[str, set[str]]:
    """The options of every command, as they are typed."""
    (commands,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {name: set(commands.choices[name]._option_string_actions) for name in COMMANDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the python on the pages finds in its working folder."""
    root = tmp_path_factory.mktemp("docs")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "image.jpg")
    write_scenes(root / "data", {"train": 4, "val": 2}, size=(64, 64))
    shared: dict[str, Any] = {
        "class_names": CLASS_NAMES,
        "backbone": BackboneOptions(name="test_resnet", pretrained=False),
        "preprocess": Preprocess(long_side=64, short_side=64),
        "channels": 32,
    }
    detector = create_model("vfnet", **shared, tower_depth=1, score_threshold=0.0, max_detections=20)
    detector.save(root / "runs" / "first" / "best")
    judge = create_model("iou_net", **shared, standalone=True, fc_channels=32)
    judge.save(root / "runs" / "judge" / "best")
    return root


@pytest.fixture
def _as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Working folder, tables and modules are put back after what a page adds."""
    monkeypatch.chdir(folder)
    AcceleratorState._reset_state(reset_partial_state=True)
    tables: list[dict[str, Any]] = [COMMANDS, DETECTORS, MODEL_OPTIONS]
    before, modules = [dict(table) for table in tables], set(sys.modules)
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
    for name in set(sys.modules) - modules:
        if name.startswith("tightbox.") and not getattr(sys.modules[name], "__file__", "").startswith(str(ROOT)):
            parent, _, own = name.rpartition(".")
            delattr(sys.modules[parent], own)
            del sys.modules[name]
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("_as_it_was")
@pytest.mark.parametrize("page", [name for name in NAMES if blocks(ROOT / name, "python")])
def test_python_runs(page: str, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    for number, (title, text) in enumerate(blocks(ROOT / page, "python")):
        if title is None:
            exec(compile(text, f"{page}, block {number + 1}", "exec"), names)
        else:
            _load_module(title, text, folder)


def _load_module(title: str, text: str, folder: Path) -> None:
    """A block that is a file of the package becomes that module."""
    name = title.removeprefix("src/").removesuffix(".py").replace("/", ".")
    parent, _, own = name.rpartition(".")
    assert importlib.util.find_spec(name) is None, f"{title} exists; the page must show something else"
    path = folder / title
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    setattr(importlib.import_module(parent), own, module)


def test_what_must_run_is_there() -> None:
    assert {name for name in NAMES if blocks(ROOT / name, "python")} >= {
        "README.md",
        "docs/howto/add_a_command.md",
        "docs/howto/add_a_detector.md",
        "docs/howto/add_a_reader.md",
        "docs/howto/rescore.md",
        "docs/howto/rules.md",
        "docs/howto/serve.md",
        "docs/howto/thresholds.md",
        "docs/reference/evaluation.md",
        "docs/tutorial.md",
    }


def shell_lines(page: Path) -> list[list[str]]:
    """The lines of the shell blocks that run something of this repository, split as a shell does."""
    text = "".join(text for _, text in blocks(page, "sh"))
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("page", NAMES)
def test_commands_parse(page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    for line in shell_lines(ROOT / page):
        if "tightbox" in line[:1]:
            arguments = line[1:]
        elif line[:1] == ["accelerate"]:
            arguments = line[line.index("tightbox") + 1 :]
        elif line[0] == "python" and line[1].endswith(".py"):
            assert (ROOT / line[1]).is_file(), line
            continue
        elif line[0] == "make":
            assert re.search(rf"^{line[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), line
            continue
        else:
            continue
        if "--resume" in arguments and arguments[0] == "train":
            arguments = [*arguments, "--data", "DIR"]  # which such a run remembers
        try:
            build_parser().parse_args(with_underscores(arguments))
        except SystemExit:
            pytest.fail(f"{shlex.join(line)}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", NAMES)
def test_commands_within_text_exist(page: str) -> None:
    known = options_of()
    everything = set.union(*known.values()) | FOREIGN
    for code in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", without_blocks(ROOT / page)):
        words = code.split()
        given = [option.split("=")[0] for option in words if option.startswith("--")]
        if words[0] == "tightbox" and re.fullmatch(r"[a-z]+", "".join(words[1:2])):
            assert words[1] in known, code
            unknown = [o for o in given if with_underscores([o])[0] not in known[words[1]]]
        elif words[0].startswith("--"):
            unknown = [o for o in given if with_underscores([o])[0] not in everything]
        else:
            continue
        assert not unknown, code


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page: str) -> None:
    text = without_blocks(ROOT / page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if file.resolve() == DOCS / "reference" / "commands.md":  # made when the site is built
            assert not anchor or anchor in COMMANDS, target
            continue
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    found = set()
    for heading in re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE):
        own = re.search(r"\{ #([\w-]+) \}$", heading)
        found.add(own[1] if own else re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", NAMES)
def test_no_page_speaks_of_a_machine(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not re.findall(r"(?<![\w.])/(?:work|tmp|home|root|mnt|opt|Users)\b\S*", text)
    assert "pip install tightbox" not in text
    assert "pip install 'tightbox" not in text


@pytest.mark.parametrize("page", NAMES)
def test_rows_are_those_of_the_measurement(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    copied = re.findall(r"^<!-- rows of (\S+) -->\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert len(copied) == text.count("<!-- rows of")
    for source, table in copied:
        known = (ROOT / source).read_text(encoding="utf-8").splitlines()
        for row in table.splitlines():
            assert row in known, f"{source} has no such row, or no longer: {row}"


def test_figures_in_the_readme_are_those_of_the_measurement() -> None:
    rows = (ROOT / "recipes" / "rescoring.md").read_text(encoding="utf-8")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for detector, before, after in (("FCOS, torchvision", "49.0", "52.3"), ("RetinaNet, tightbox", "42.0", "47.0")):
        section = rows.split(f"### {detector}")[1].split("###")[0]
        assert f"| its own results | {before} ±" in section
        assert f"| + both | {after} ±" in section
        assert f"from {before} to {after}" in readme


@pytest.mark.parametrize("kind", [CocoMetrics, Diagnosis])
def test_fields_of_files_are_all_there(kind: type[Any]) -> None:
    text = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    table = re.search(rf"^<!-- fields of {kind.__name__} -->\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None
    first_cells = [row.split("|")[1] for row in table[1].splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", " ".join(first_cells))) == sorted(field.name for field in fields(kind))


def test_fields_of_a_card_are_all_there(folder: Path) -> None:
    text = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    table = text.split("{ #card }")[1].split("All options")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(
        read_card(folder / "runs" / "first" / "best")
    )


def test_the_page_of_the_commands_has_every_option() -> None:
    page = hooks().commands_page()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == list(COMMANDS)
    for name, known in options_of().items():
        shown = set(re.findall(r"^`(--[\w.-]+)", sections[name], re.MULTILINE))
        hidden = {"-h", "--help", "--print_config"}
        missing = {o for o in known if not o.endswith("+")} - hidden - {with_underscores([o])[0] for o in shown}
        assert not {o for o in missing if o.startswith("--")}, name


def test_links_are_turned_to_where_the_site_has_their_targets() -> None:
    def turned(at: str, link: str) -> str:
        page = SimpleNamespace(file=SimpleNamespace(src_uri=at))
        return str(hooks().on_page_markdown(f"[x]({link})", page, None, None))

    assert turned("systems/vfnet.md", "../../recipes/iou_net.md#bccd") == "[x](../recipes/iou_net.md#bccd)"
    assert turned("systems/vfnet.md", "../howto/rescore.md") == "[x](../howto/rescore.md)"
    assert turned("systems/vfnet.md", "https://arxiv.org/abs/2008.13367") == "[x](https://arxiv.org/abs/2008.13367)"
    assert turned("index.md", "../benchmarks/star_conv.md") == "[x](benchmarks/star_conv.md)"
    assert turned("recipes/iou_net.md", "iou_net.png") == "[x](iou_net.png)"
    assert turned("CONTRIBUTING.md", "docs/howto/rules.md") == "[x](howto/rules.md)"


def test_the_navigation_has_every_page() -> None:
    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry if isinstance(entry, list) else entry.values():
                yield from pages(part)

    listed = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert len(listed) == len(set(listed))
    own = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert own <= set(listed)
    assert all((DOCS / name).is_file() or (ROOT / name).is_file() for name in set(listed) - {"reference/commands.md"})
