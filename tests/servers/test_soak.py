"""The soak, kept short."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servers.processes import needs
from servers.soak import soak

if TYPE_CHECKING:
    from pathlib import Path


def test_after_a_short_soak_every_count_is_exact(tmp_path: Path) -> None:
    import shutil

    needs("Prometheus", shutil.which("prometheus"))
    rows = soak(12, tmp_path)
    assert [row for row in rows if not row.holds] == []
    assert sum(row.truth for row in rows) > 500
    assert all(
        row.truth > 0 for row in rows if '"reports"' in row.what and "unused" not in row.what
    )
