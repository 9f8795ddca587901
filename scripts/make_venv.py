"""Make a virtual environment with this project in it.

scripts/make_venv.py DIR [--group G] [--extra E] [--constraints FILE]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 10)
SQLALCHEMY_ON_3_10 = "2.0.58"  # SQLAlchemy 2.1 takes Python 3.11 and newer


def read_pins(file: Path) -> dict[str, str]:
    """The ``name==version`` lines of ``file``, by name as packaging normalises it."""
    pins = (line.split("==") for line in file.read_text().split())
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins}


def make(folder: Path, *, groups: list[str], extras: list[str], constraints: Path) -> None:
    """Make ``folder`` anew, with the project editable in it and everything pinned."""
    venv.EnvBuilder(with_pip=True, clear=True).create(folder)
    pins = read_pins(constraints)
    if sys.version_info < (3, 11) and not pins["sqlalchemy"].startswith("2.0."):
        pins["sqlalchemy"] = SQLALCHEMY_ON_3_10
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
    scripts = folder / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [str(scripts / "python"), "-m", "pip", "install", "--quiet", "-c", str(constraints)]
    # A slow network is given time, where nobody has said how much.
    patient = {"PIP_DEFAULT_TIMEOUT": "60", "PIP_RETRIES": "10", **os.environ}
    # The pip that comes with Python may be too old to know dependency groups.
    subprocess.run([*pip, "pip"], check=True, cwd=ROOT, env=patient)
    project = f".[{','.join(extras)}]" if extras else "."
    chosen = [word for group in groups for word in ("--group", group)]
    subprocess.run([*pip, "-e", project, *chosen], check=True, cwd=ROOT, env=patient)
    (folder / "ready").touch()


def main() -> None:
    """Read the command line."""
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(
            f"This needs Python 3.10 or newer; {sys.executable} is {sys.version.split()[0]}. "
            "Name another one: make PYTHON=python3.12 ..."
        )
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--group", action="append", default=[])
    parser.add_argument("--extra", action="append", default=[])
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    args = parser.parse_args()
    print(f"Setting up {args.folder} with Python {sys.version.split()[0]} ...", flush=True)
    make(args.folder, groups=args.group, extras=args.extra, constraints=args.constraints.resolve())


if __name__ == "__main__":
    main()
