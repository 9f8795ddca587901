"""The how-to pages whose programs are servers of several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from pages import write_files

from servers.processes import HOST, PATIENCE, free_port, running, wait_for

pytest.importorskip("gunicorn")
pytest.importorskip("celery")


def sessions(address: str, factory: str) -> float:
    """Sessions that were created, as /metrics says."""
    series = f'sqlalchemy_session_creations_total{{factory="{factory}",outcome="success"}} '
    with urllib.request.urlopen(address, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.removeprefix(series)) for line in lines if line.startswith(series))


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    counts = tmp_path / "counts"
    counts.mkdir()
    return {"PROMETHEUS_MULTIPROC_DIR": os.fspath(counts), "PYTHONPATH": os.fspath(tmp_path)}


def test_gunicorn(tmp_path: Path, environment: dict[str, str]) -> None:
    write_files("how-to/gunicorn", tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-b", f"{HOST}:{port}", "app:app"]
    address = f"http://{HOST}:{port}"
    with running(command, tmp_path / "log.txt", environment):
        wait_for(lambda: sessions(f"{address}/metrics", "orders"), lambda _: True, "gunicorn")
        for _ in range(20):
            urllib.request.urlopen(f"{address}/orders", timeout=10).close()
        assert sessions(f"{address}/metrics", "orders") == 20


def test_celery(tmp_path: Path, environment: dict[str, str]) -> None:
    write_files("how-to/celery", tmp_path)
    port = free_port()
    page = tmp_path / "tasks.py"
    page.write_text(page.read_text().replace("9540", str(port)))
    (tmp_path / "results").mkdir()
    environment |= {"CELERY_BROKER_URL": "filesystem://", "CELERY_RESULT_BACKEND": "file://results"}
    settings = tmp_path / "celeryconfig.py"  # the broker's folders, of which the page says nothing
    folders = {
        name: os.fspath(tmp_path / "queue") for name in ("data_folder_in", "data_folder_out")
    }
    folders["control_folder"] = os.fspath(tmp_path / "control")
    for name in folders.values():
        Path(name).mkdir(exist_ok=True)
    settings.write_text(f"broker_transport_options = {folders!r}\n")
    configured = "import tasks; tasks.app.config_from_object('celeryconfig'); app = tasks.app"
    (tmp_path / "configured.py").write_text(configured + "\n")
    command = [
        sys.executable, "-m", "celery", "-A", "configured:app", "worker", "-c", "2",
        "--without-gossip", "--without-mingle", "--without-heartbeat",
    ]  # fmt: skip
    ask = (
        "from configured import app, tasks\n"
        "sent = [tasks.count_orders.delay() for _ in range(6)]\n"
        f"print([task.get(timeout={PATIENCE}) for task in sent])"
    )
    with running(command, tmp_path / "log.txt", environment):
        asked = subprocess.run(
            [sys.executable, "-c", ask],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        assert asked.stdout == "[1, 1, 1, 1, 1, 1]\n", asked.stderr + Path("log.txt").read_text()
        assert sessions(f"http://{HOST}:{port}/metrics", "tasks") == 6
