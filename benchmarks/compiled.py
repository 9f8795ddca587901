"""Whether compiling the hot modules would pay: a copy of them through Cython, measured beside them.

python benchmarks/compiled.py (after ``make bench``, whose environment it uses; needs a C compiler)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import sampling
from peers import BARE, METRICS
from run import ROOT, SQLALCHEMYS
from usual_instrumentation import environment

MODULES = (
    "hooks/observed_record",
    "hooks/observer",
    "hooks/places",
    "hooks/pools",
    "hooks/session_classes",
    "hooks/sessions",
    "hooks/statements",
    "series",
    "session_metrics",
)
SETUP = """
from Cython.Build import cythonize
from setuptools import setup

directives = {"language_level": 3, "annotation_typing": False}
setup(
    ext_modules=cythonize(FILES, compiler_directives=directives),
    script_args=["--quiet", "build_ext", "--inplace"],
)
"""


def main() -> None:
    """Print both, beside the bare session."""
    python = environment("bench", SQLALCHEMYS[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "src"
        shutil.copytree(ROOT / "src", folder)
        files = [f"session_metrics_otel/{module}.py" for module in MODULES]
        (folder / "setup.py").write_text(SETUP.replace("FILES", repr(files)))
        subprocess.run([python, "setup.py"], cwd=folder, check=True, capture_output=True)  # noqa: S603
        for what, path in (("as it is", ""), ("compiled", str(folder))):
            os.environ["PYTHONPATH"] = path
            told = sampling.measure(
                python, "session", [BARE, METRICS], "", generations=3, rounds=30
            )[METRICS]
            print(
                f"{what}: {told.ratio:.2f} of the bare session ({told.low:.2f} - {told.high:.2f})"
            )


if __name__ == "__main__":
    main()
