"""The wheel and the sdist: what is in them, and the wheel in fresh environments."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import HeaderParser
from typing import TYPE_CHECKING

import pytest
from matrix import PYTHONS, interpreter
from pages import DOCS, fenced

from servers.packages import ROOT
from servers.processes import needs

if TYPE_CHECKING:
    from pathlib import Path

    from servers.packages import Distributions

README = """
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
engine = create_engine("sqlite://")
{lines}
with Session() as session:
    session.execute(text("select 1"))
from prometheus_client import generate_latest
print(generate_latest().decode())
"""


def test_wheel(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as wheel:
        inside = set(wheel.namelist())
        (named,) = (name for name in inside if name.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(wheel.read(named).decode())
    package = {name for name in inside if name.startswith("session_metrics_otel/")}
    assert {name.split("/")[0] for name in inside - package} == {named.split("/")[0]}
    source = ROOT / "src"
    ours = {
        path.relative_to(source).as_posix()
        for path in (source / "session_metrics_otel").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    grafana = {
        f"session_metrics_otel/{path.relative_to(ROOT).as_posix()}"
        for folder in ("dashboards", "rules")
        for path in (ROOT / "grafana" / folder).iterdir()
    }
    assert "session_metrics_otel/py.typed" in ours
    assert package == ours | grafana
    assert set(metadata.get_all("Provides-Extra") or []) == {"otlp", "autoload", "top"}
    needed = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert {line.split(">=")[0] for line in needed} == {
        "sqlalchemy",
        "prometheus-client",
        "opentelemetry-api",
        "opentelemetry-sdk",
    }


def test_sdist_is_the_tree(distributions: Distributions) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    with tarfile.open(distributions.sdist) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    assert inside == {*listed, "PKG-INFO"}


@pytest.mark.parametrize("python", PYTHONS)
def test_three_lines_of_the_readme_after_installing_the_wheel(
    python: str, distributions: Distributions, tmp_path: Path
) -> None:
    found = needs(f"Python {python}", interpreter(python))
    # Without a pip of its own, which takes as long to install as all the rest.
    subprocess.run([found, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    fresh = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", fresh, "install", "--quiet"]
    environment = distributions.environment
    subprocess.run([*install, distributions.wheel], check=True, env=environment, cwd=tmp_path)
    program = README.format(lines=fenced((DOCS.parent / "README.md").read_text())[0].text)

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [fresh, "-W", "error", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = run("-c", program).splitlines()
    assert 'sqlalchemy_session_creations_total{factory="orders",outcome="success"} 1.0' in said
    run("-m", "session_metrics_otel", "dashboards", "export", "dashboards")
    exported = {path.name for path in (tmp_path / "dashboards").iterdir()}
    assert exported == {path.name for path in (ROOT / "grafana/dashboards").glob("*.json")}
    run("-m", "session_metrics_otel", "rules", "export", "rules")
    (rules,) = (tmp_path / "rules").iterdir()
    assert rules.read_text() == (ROOT / "grafana" / "rules" / rules.name).read_text()
    (tmp_path / "shop.py").write_text(program)
    said = run("-m", "session_metrics_otel", "doctor", "shop:Session").splitlines()
    assert "well  shop:Session is instrumented: its series have factory='orders'" in said


def test_installing_the_sdist(distributions: Distributions, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    fresh = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", fresh, "install", "--quiet", "--no-deps"]
    subprocess.run(
        [*install, distributions.sdist], check=True, env=distributions.environment, cwd=tmp_path
    )
    told = subprocess.run(
        [
            fresh,
            "-c",
            "from importlib.metadata import version; print(version('session-metrics-otel'))",
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert f"-{told.stdout.strip()}.tar.gz" in distributions.sdist.name
