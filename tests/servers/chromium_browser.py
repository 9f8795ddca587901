"""Debian's Chromium, without a window and without calls home."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from servers.processes import needs

if TYPE_CHECKING:
    from pathlib import Path

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass(frozen=True)
class Chromium:
    path: str
    flags: tuple[str, ...]

    def command(self, *arguments: str) -> list[str]:
        return [self.path, *self.flags, *arguments]


def chromium_with_profile(folder: Path) -> Chromium:
    """Chromium whose profile is ``folder``."""
    path = needs("Chromium", shutil.which("chromium"))
    return Chromium(path, (*FLAGS, f"--user-data-dir={folder}"))
