from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "hot_path.py"


def test_a_session_runs_no_more_of_our_code_than_it_did():
    """By calls and instructions, which are the same on every machine, in a process of its own."""
    counted = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert counted.returncode == 0, counted.stderr
    assert counted.stdout.count(" calls, ") == 4
