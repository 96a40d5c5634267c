"""Make a trainer's virtual environment, `.venvs/<trainer>`, from the versions that were tested.

    python ci/venv.py verl
    .venvs/verl/bin/python examples/train_verl.py

Trainers exclude one another's versions, so each has an environment of its own. One that is up to date is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

ALONE = ("openrlhf", "oat", "rl2")
"""Trainers that require what only a GPU or another Python can use: every package is listed, and none fetches others."""

COMPARED = ("gem-llm", "inspect", "lm-eval", "verifiers")
"""What this package is compared with, which has every package listed."""

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "ci" / "constraints"

UV = "uv>=0.9"
"""Installs the same versions as pip, in a tenth of its time."""


def main() -> None:
    trainers = sorted(file.stem for file in CONSTRAINTS.glob("*.txt"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trainer", choices=trainers)
    parser.add_argument("--folder", type=Path, help="where to make it, instead of .venvs/<trainer>")
    args = parser.parse_args()
    make(args.trainer, (args.folder or ROOT / ".venvs" / args.trainer).resolve())


def make(trainer: str, folder: Path) -> None:
    constraints = CONSTRAINTS / f"{trainer}.txt"
    wanted = _fingerprint(constraints, ROOT / "pyproject.toml")
    stamp = folder / "made-from"
    if stamp.is_file() and stamp.read_text() == wanted:
        print(f"{folder} is up to date")
        return
    print(f"Making {folder} with the versions in {constraints.relative_to(ROOT)}: minutes the first time", flush=True)
    subprocess.run([sys.executable, "-I", "-m", "venv", str(folder)], check=True)  # -I: not this file as "venv"
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", UV], check=True)
    options = _options(subprocess.check_output([python, "-m", "pip", "config", "list"], text=True))
    for step in _steps(trainer, str(constraints)):
        done = subprocess.run([python, "-m", "uv", "pip", "install", "--python", python, *options, *step], check=False)
        if done.returncode != 0:
            sys.exit(f"error: uv could not install {trainer}. {_about_python()}")
    stamp.write_text(wanted)


def _steps(trainer: str, constraints: str) -> list[list[str]]:
    """Return the arguments of `uv pip install`, call by call."""
    if trainer in COMPARED:
        return [["--no-deps", "-r", constraints]]
    if trainer not in ALONE:
        return [["-c", constraints, "-e", f"{ROOT}[{trainer},test]"]]
    return [
        ["-c", constraints, "torch", "setuptools", "wheel", "ninja"],  # what others are built with
        ["--no-deps", "--no-build-isolation", "-r", constraints],
        ["--no-deps", "-e", str(ROOT)],
    ]


def _options(config: str) -> list[str]:
    """Return what uv must be told of pip's configuration, which it does not read.

    Args:
        config: What `pip config list` prints.
    """
    options = ["--index-strategy", "unsafe-best-match"]  # the best version of all indexes, as pip takes it
    for name, value in re.findall(r"^(?:global|install|:env:)\.([a-z-]+)='(.*)'$", config, flags=re.MULTILINE):
        option = {"index-url": "--default-index", "extra-index-url": "--index"}.get(name, f"--{name}")
        if option in ("--default-index", "--index", "--find-links", "--constraint"):
            options += [part for each in value.split() for part in (option, each)]
    return options


def _fingerprint(*files: Path) -> str:
    parts = [sys.version.encode(), str(ROOT).encode(), *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _about_python() -> str:
    tested, here = "3.11", ".".join(map(str, sys.version_info[:2]))
    return f"The versions were tested on Python {tested}, and this is Python {here}." if here != tested else ""


if __name__ == "__main__":
    main()
