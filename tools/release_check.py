"""Builds the release, installs its wheel alone in an empty environment, and uses it there as its first user would.

python tools/release_check.py

Everything happens in a temporary folder. Any failure ends the script with a message and a non-zero status.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from packaging.metadata import Metadata

CHECKOUT = Path(__file__).resolve().parents[1]
UV = [sys.executable, "-m", "uv"]
# A source tree on the path would hide what the wheel lacks.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONNOUSERSITE": "1"}
RENDER = """
from pathlib import Path
from tightbox.data.scenes import write_scenes
write_scenes(Path("scenes"), {"train": 8, "val": 4}, size=(96, 96))
"""
TRAIN = "--backbone resnet18 --pretrained false --long-side 96 --short-side 96 --batch-size 4 --epochs 1 --workers 0"


def main() -> None:
    """Every step, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="tightbox-release-") as folder:
        root = Path(folder)
        run([*UV, "build", "--quiet", "--out-dir", str(root / "dist")], CHECKOUT)  # the wheel from the sdist
        (wheel,), (sdist,) = root.glob("dist/*.whl"), root.glob("dist/*.tar.gz")
        version = check_archives(wheel, sdist)
        cited = f"\nversion: {version}\n" in (CHECKOUT / "CITATION.cff").read_text(encoding="utf-8")
        require(cited, f"CITATION.cff does not say version: {version}")
        print(f"built and checked: {wheel.name}, {sdist.name}")
        binaries = install(wheel, root / "environment")
        print("installed without extras")
        use(binaries, root / "work", version)
        check_runtime(root, version)
        print("the runtime works without PyTorch")
    print("the release works")


def check_archives(wheel: Path, sdist: Path) -> str:
    """Compares the files in both with git's, checks both copies of the metadata, and returns the version."""
    tracked = set(run(["git", "ls-files"], CHECKOUT).splitlines())
    with tarfile.open(sdist) as archive:
        top = sdist.name.removesuffix(".tar.gz") + "/"
        names = {member.name.removeprefix(top) for member in archive.getmembers() if member.isfile()}
        require_same(names, tracked | {"PKG-INFO"}, sdist)
        information = archive.extractfile(f"{top}PKG-INFO")
        assert information is not None
        check_metadata(information.read())
    with zipfile.ZipFile(wheel) as opened:
        about = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info/"
        names = {name for name in opened.namelist() if not name.startswith(about)}
        require_same(names, {name.removeprefix("src/") for name in tracked if name.startswith("src/tightbox/")}, wheel)
        require(f"{about}licenses/LICENSE" in opened.namelist(), f"{wheel.name} has no LICENSE")
        return check_metadata(opened.read(f"{about}METADATA"))


def check_metadata(content: bytes) -> str:
    """Validates core metadata by the packaging standards, and its long description, and returns the version."""
    checked = Metadata.from_email(content, validate=True)  # raises an ExceptionGroup that names each fault
    require(checked.description_content_type == "text/markdown", "the long description is not declared as Markdown")
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    require((checked.description or "").strip() == readme.strip(), "the long description is not README.md")
    require(checked.license_expression == "Apache-2.0", "the licence is not declared as an SPDX expression")
    return str(checked.version)


def install(wheel: Path, environment: Path) -> Path:
    """Installs the wheel without extras, dependencies as requirements.txt pins them; returns the scripts' folder."""
    run([*UV, "venv", "--quiet", "--python", sys.executable, str(environment)], CHECKOUT)
    binaries = environment / ("Scripts" if os.name == "nt" else "bin")
    pins = ["--constraints", "requirements.txt"]
    run([*UV, "pip", "install", "--quiet", "--python", str(binaries / "python"), *pins, str(wheel)], CHECKOUT)
    return binaries


def use(binaries: Path, work: Path, version: str) -> None:
    """Renders scenes, trains, evaluates and predicts with the installed package, in an empty folder."""
    work.mkdir()
    tightbox, python = str(binaries / "tightbox"), [str(binaries / "python"), "-I", "-c"]
    home = run([*python, "import tightbox; print(tightbox.__file__)"], work)
    require(home.startswith(str(binaries.parent)), f"tightbox was imported from {home}, not from its wheel")
    require(run([tightbox, "--version"], work) == f"tightbox {version}\n", "--version is not the version of the wheel")
    run([*python, RENDER], work)
    require_files(work, "scenes/train.json", "scenes/val.json")
    run([tightbox, "train", "--data", "scenes", "--out", "run", *TRAIN.split()], work)
    require_files(work, "run/config.yaml", "run/best/card.json", "run/best/weights.safetensors")
    run([tightbox, "eval", "run/best", "--data", "scenes", "--out", "evaluated"], work)
    require_files(work, "evaluated/metrics.json", "evaluated/results.json")
    image = min((work / "scenes" / "images").iterdir())
    run([tightbox, "predict", "run/best", str(image), "--out", "predictions"], work)
    require_files(work, f"predictions/{image.stem}.jpg", "predictions/results.json")
    sentence = run([tightbox, "diagnose", "run/best", "--data", "scenes"], work, status=2)
    expected = "tightbox: matplotlib is not installed; it comes with: pip install 'tightbox[viz]'\n"
    require(sentence == expected, f"a missing extra is not one sentence that names it, but:\n{sentence}")


def check_runtime(root: Path, version: str) -> None:
    """Builds tightbox-runtime, installs its wheel alone, and gives it a file that is none of tightbox."""
    run([*UV, "build", "--quiet", "--out-dir", str(root / "runtime")], CHECKOUT / "runtime")
    (wheel,) = root.glob("runtime/*.whl")
    binaries = install(wheel, root / "runtime-environment")
    command, python = str(binaries / "tightbox-runtime"), [str(binaries / "python"), "-I", "-c"]
    require(run([command, "--version"], root) == f"tightbox-runtime {version}\n", "the runtime has another version")
    found = run([*python, "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('tightbox'))"], root)
    require(found == "None None\n", "the runtime brings PyTorch or tightbox with it")
    sentence = run([command, "predict", str(wheel), "image.jpg"], root, status=2)
    require(f"tightbox-runtime: {wheel} cannot be loaded" in sentence, f"a foreign file is not a sentence:\n{sentence}")


def run(command: list[str], folder: Path, status: int = 0) -> str:
    """What the command wrote to its output, or to its error stream where it is expected to fail."""
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    require(
        done.returncode == status,
        f"{' '.join(command)}\nended with status {done.returncode}, not {status}:\n{done.stdout}{done.stderr}",
    )
    return done.stderr if status else done.stdout


def require_files(folder: Path, *names: str) -> None:
    """Ends the script unless each of the files is there and holds something."""
    for name in names:
        require((folder / name).is_file() and (folder / name).stat().st_size > 0, f"{name} was not written")


def require_same(names: set[str], expected: set[str], archive: Path) -> None:
    """Ends the script unless the archive holds the expected files and no others."""
    missing, extra = sorted(expected - names), sorted(names - expected)
    require(not missing, f"{archive.name} lacks {', '.join(missing)}")
    require(not extra, f"{archive.name} holds what git does not know: {', '.join(extra)}; commit, ignore or delete it")


def require(fine: bool, message: str) -> None:
    """Ends the script with the message unless all is fine."""
    if not fine:
        sys.exit(f"release check failed: {message}")


if __name__ == "__main__":
    main()
