"""Write constraints.txt anew: what the newest releases resolve to on every Python supported."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from matrix import PYTHONS, SQLALCHEMYS, interpreter

ROOT = Path(__file__).resolve().parent.parent


def resolve(python: Path, folder: Path) -> dict[str, str]:
    """What pip chooses on ``python``, by name."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True)
    packages = ["-e", ".[otlp]", "--group", "dev"]
    subprocess.run([*pip, "install", "--quiet", *packages], check=True, cwd=ROOT)
    frozen = subprocess.run(
        [*pip, "list", "--format=freeze", "--exclude-editable"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return dict(line.split("==") for line in frozen.stdout.split() if "==" in line)


def main() -> None:
    """Resolve on each Python, and pin what all agree on; where they differ, the older one's."""
    pins: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for version in reversed(PYTHONS):
            python = interpreter(version)
            if python is None:
                message = f"Python {version} is not on this machine; constraints need all of them."
                raise SystemExit(message)
            # The oldest Python comes last and has the last word: what it takes, all take.
            pins |= resolve(python, Path(scratch) / version)
    pins["SQLAlchemy"] = SQLALCHEMYS[-1]  # which the oldest Python does not take: see make_venv.py
    pins.pop("setuptools", None)
    lines = [f"{name}=={pins[name]}" for name in sorted(pins, key=str.lower)]
    (ROOT / "constraints.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
