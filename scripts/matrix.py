"""Run the tests on every supported Python with every supported SQLAlchemy, two cells at a time.

A cell is a virtual environment under .matrix/. An interpreter that is not on this machine is left
out with a note, and is an error where CI=true.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from make_venv import read_pins

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".matrix"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SQLALCHEMYS = ("2.0.58", "2.1.9")
NOT_TO_BE_HAD = ("3.10", "2.1.9")  # SQLAlchemy 2.1 takes Python 3.11 and newer
GROUPS = ("test", "servers", "frameworks")
AT_ONCE = 2
TAIL = 60


class Cell(NamedTuple):
    """One combination: name, Python, and the pins that replace those of constraints.txt."""

    name: str
    python: str
    pins: dict[str, str]
    groups: tuple[str, ...]


def cells() -> list[Cell]:
    """All of them."""
    found = [
        Cell(f"python {python}, sqlalchemy {version}", python, {"sqlalchemy": version}, GROUPS)
        for python in PYTHONS
        for version in SQLALCHEMYS
        if (python, version) != NOT_TO_BE_HAD
    ]
    # Frameworks want newer versions than the oldest: there the tests that need them are skipped.
    oldest = read_pins(ROOT / "oldest-supported.txt")
    return [*found, Cell("oldest supported", PYTHONS[0], oldest, GROUPS[:1])]


def interpreter(version: str) -> Path | None:
    """Where Python ``version`` is on this machine: on PATH, or among pyenv's."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [*sorted(versions.glob(f"{version}.*/bin/python")), shutil.which(f"python{version}")]
    for candidate in found:
        if candidate is not None and works(candidate, version):
            return Path(candidate)
    return None


def works(candidate: Path | str, version: str) -> bool:
    """Whether ``candidate`` starts and is what it says; pyenv's stand-ins may not."""
    command = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.returncode == 0 and run.stdout.strip() == version


def run(cell: Cell, python: Path) -> tuple[Cell, int, str, float]:
    """Set the cell up where it isn't, and run the tests in it."""
    started = time.monotonic()
    folder = HOME / re.sub(r"[^a-z0-9.]+", "-", cell.name)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = read_pins(ROOT / "constraints.txt") | cell.pins
    constraints = folder / "constraints.txt"
    text = "".join(f"{name}=={version}\n" for name, version in wanted.items())
    made_of = text + (ROOT / "pyproject.toml").read_text()
    stamp = folder / "made-of.txt"
    log = folder / "log.txt"
    with log.open("w") as out:
        code = 0
        if not stamp.exists() or stamp.read_text() != made_of:
            constraints.write_text(text)
            setup: list[str | Path] = [
                python,
                ROOT / "scripts" / "make_venv.py",
                folder / "venv",
                "--constraints",
                constraints,
            ]
            setup += [word for group in cell.groups for word in ("--group", group)]
            code = subprocess.call(setup, stdout=out, stderr=subprocess.STDOUT)
            if code == 0:
                stamp.write_text(made_of)
        if code == 0:
            tests: list[str | Path] = [
                folder / "venv" / "bin" / "python",
                "-m",
                "pytest",
                "-q",
                "tests",
            ]
            tests += ["--ignore=tests/servers", "-p", "no:cacheprovider"]
            code = subprocess.call(tests, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT)
    return cell, code, log.read_text(), time.monotonic() - started


def main() -> None:
    """Run them and print a line for each."""
    chosen = [cell for cell in cells() if all(word in cell.name for word in sys.argv[1:])]
    found = [(cell, interpreter(cell.python)) for cell in chosen]
    missing = [cell.name for cell, python in found if python is None]
    failed = bool(missing) and os.environ.get("CI") == "true"
    for name in missing:
        print(f"{name:38} left out: this Python is not on this machine")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        jobs = [pool.submit(run, cell, python) for cell, python in found if python is not None]
        for job in jobs:
            cell, code, log, seconds = job.result()
            summary = log.strip().splitlines()[-1] if log.strip() else ""
            print(f"{cell.name:38} {summary.strip('= ')}  ({seconds:.0f} s in all)", flush=True)
            if code != 0:
                failed = True
                print("\n".join(log.splitlines()[-TAIL:]), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
