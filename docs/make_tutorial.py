"""Run the commands of the tutorial, and write their outputs and pictures into its page.

python docs/make_tutorial.py --data DIR

DIR is the BCCD data set as a COCO folder. What is run are the page's own shell blocks that are marked `<!-- run -->`,
in a new folder; the block after each takes what was printed. Needs Chromium for the screenshots.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))

from machine import machine  # noqa: E402 - a script of another folder, not a package

PAGE, PICTURES = HERE / "tutorial.md", HERE / "tutorial"
RUN = re.compile(r"(<!-- run -->\n```sh\n(.*?)```\n\n```text\n)(.*?)(```)", re.DOTALL)
ABOUT = re.compile(r"(<!-- about -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# Bars, and the lines that stand for them where there is no terminal.
PROGRESS = re.compile(r"━.*\d+:\d\d|, \d+:\d\d left$|: starting$|^Downloading|^\s*$")
COLUMNS = 100  # of the terminal that the commands believe to print to
SHOWN = 4  # images in the picture of the predictions
SIDE = 480  # their width


def main() -> None:
    """Everything, in a folder that may be looked at afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--work", type=Path, default=Path("runs/tutorial"), help="folder to run in; emptied first")
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    (args.work / "bccd").symlink_to(args.data.resolve())
    started = time.monotonic()
    text = RUN.sub(lambda block: block[1] + run(block[2], args.work) + block[4], PAGE.read_text(encoding="utf-8"))
    minutes = round((time.monotonic() - started) / 60)
    about = f"It was run on {datetime.date.today()} on {machine()}; all of it took {minutes} minutes.\n"
    PAGE.write_text(ABOUT.sub(lambda part: part[1] + about + part[3], text), encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    screenshots(args.work / "diagnosis" / "diagnosis.html")
    predictions(args.work)


def run(commands: str, work: Path) -> str:
    """What the commands print, without progress bars."""
    print(commands, end="", flush=True)
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"COLUMNS": str(COLUMNS), "PATH": binaries}
    shell = ["bash", "-euc", commands]
    done = subprocess.run(
        shell, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nstatus {done.returncode} of: {commands}")
    lines = [line.rstrip() for line in done.stdout.splitlines() if not PROGRESS.search(line)]
    return "\n".join(lines) + "\n"


def screenshots(page: Path) -> None:
    """The top of the page of the diagnosis, and its gallery."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1000, "height": 900})
        tab.goto(page.resolve().as_uri())
        tab.wait_for_load_state("networkidle")
        tab.screenshot(path=PICTURES / "diagnosis.png")
        tab.locator("#gallery").evaluate("section => section.scrollIntoView()")
        tab.wait_for_timeout(500)
        tab.screenshot(path=PICTURES / "gallery.png")
        browser.close()
    for name in ("diagnosis.png", "gallery.png"):
        with Image.open(PICTURES / name) as picture:
            picture.convert("RGB").quantize(128).save(PICTURES / name, optimize=True)


def predictions(work: Path) -> None:
    """Some annotated images of the test split, two by two."""
    content = json.loads((work / "bccd" / "test.json").read_text(encoding="utf-8"))
    names = [image["file_name"] for image in content["images"]][:: len(content["images"]) // SHOWN][:SHOWN]
    drawn = []
    for name in names:
        with Image.open((work / "predictions" / name).with_suffix(".jpg")) as image:
            drawn.append(image.resize((SIDE, round(SIDE * image.height / image.width)), Image.Resampling.LANCZOS))
    height = max(image.height for image in drawn)
    grid = Image.new("RGB", (2 * SIDE, -(-len(drawn) // 2) * height), "white")
    for i, resized in enumerate(drawn):
        grid.paste(resized, (i % 2 * SIDE, i // 2 * height))
    grid.save(PICTURES / "predictions.jpg", quality=80, optimize=True)


if __name__ == "__main__":
    main()
