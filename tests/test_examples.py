"""Each example, run as its first line says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_three_lines():
    done = subprocess.run(
        [sys.executable, EXAMPLES / "three_lines" / "main.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "request_id='r-1'" in done.stdout
    assert "query_count=1, transaction_count=1" in done.stdout
    assert (
        'sqlalchemy_session_creations_total{factory="orders",outcome="success"} 1.0' in done.stdout
    )
