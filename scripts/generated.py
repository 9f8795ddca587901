"""Files that are made by code and committed: written, or held against what is there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def write(files: Mapping[Path, str], command: str) -> None:
    """Write ``files``; with ``--check`` write none, and fail where one is not what is made now.

    Args:
        files: What is to be in each.
        command: What writes them, for whoever finds one stale.
    """
    stale = [file for file, text in files.items() if not file.exists() or file.read_text() != text]
    if "--check" not in sys.argv:
        for file in stale:
            file.write_text(files[file])
    elif stale:
        sys.exit(f"{', '.join(map(str, stale))}: not what is made now. Run {command}.")
