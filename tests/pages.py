"""The code in the pages of the documentation, for tests to run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[1] / "docs"

_FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"# (\S+\.(?:py|yml|yaml))\n")


class Block(NamedTuple):
    """One fenced block.

    Attributes:
        language: What follows the fence: ``python``, ``sh``, ``text`` for what a command prints.
        text: What is inside.
    """

    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that the block is: its first line is a comment with the name."""
        found = _NAMED.match(self.text)
        return found[1] if found else None


def blocks(page: str) -> list[Block]:
    """Those of ``docs/<page>.md``, from top to bottom."""
    return fenced((DOCS / f"{page}.md").read_text())


def fenced(text: str) -> list[Block]:
    """The fenced blocks of ``text``."""
    return [Block(*found) for found in _FENCED.findall(text)]


def write_files(page: str, folder: Path) -> None:
    """Write the files that the page is made of."""
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.text)


def run(folder: Path, program: str, **environment: str) -> list[str]:
    """What ``program`` prints, with the files of a page beside it, line by line."""
    return run_python("-c", program, folder=folder, **environment)


def run_python(
    *arguments: str | os.PathLike[str], folder: Path | None = None, **environment: str
) -> list[str]:
    """What Python prints with these arguments, line by line; it has to end well."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
