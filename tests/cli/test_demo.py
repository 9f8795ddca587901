"""The demo, as a user starts it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families
from reading import since_2_0_31

DEMO = [sys.executable, "-u", "-m", "session_metrics_otel", "demo"]
ANY_PORTS = ["--port", "0", "--metrics-port", "0"]


@contextmanager
def started(*arguments: str):
    process = subprocess.Popen(
        [*DEMO, *ANY_PORTS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@since_2_0_31
def test_what_metrics_say_is_what_the_service_counted(tmp_path):
    truth = tmp_path / "truth.json"
    with started("--requests", "150", "--rate", "500", "--seed", "3", "--truth", truth) as demo:
        lines = [demo.stdout.readline() for _ in range(2)]
        address = re.search(r"http://\S+/metrics", lines[1])[0]
        while not truth.exists():
            assert demo.poll() is None
            time.sleep(0.01)
        with urllib.request.urlopen(address, timeout=10) as answer:
            text = answer.read().decode()
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=30)
    assert demo.returncode == 0
    books = json.loads(truth.read_text())
    creations = {}
    for family in text_string_to_metric_families(text):
        if family.name == "sqlalchemy_session_creations":
            for sample in family.samples:
                key = f"{sample.labels['factory']}.{sample.labels['outcome']}"
                creations[key] = creations.get(key, 0) + sample.value
    assert {key: n for key, n in creations.items() if n} == {
        key: n for key, n in books.items() if key != "orders.leak"
    }
    success = books["orders.success"] + books["reports.success"]
    total = success + books["reports.failure"]
    rate = 100 * success / total
    assert f"sessions created {total}, {rate:.1f} % successfully | open 0" in output
    assert output.rstrip().endswith("Stopped.")


@since_2_0_31
def test_it_stops_when_its_time_is_up():
    done = subprocess.run(
        [*DEMO, *ANY_PORTS, "--seconds", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    assert "Stopped." in done.stdout


@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_that_is_taken_says_what_to_do(option):
    with started() as first:
        lines = [first.stdout.readline() for _ in range(2)]
        taken = re.search(r":(\d+)/", lines[option == "--metrics-port"])[1]
        second = subprocess.run(
            [*DEMO, *ANY_PORTS, option, taken],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert second.returncode == 1
    assert f"Cannot listen on port {taken}" in second.stderr
    assert f"Choose another: {option} 0 for any." in second.stderr


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        (["--port", "99999"], 1, "Cannot listen on port 99999"),
        (["--host", "192.0.2.1"], 1, "--host has to be an address of this machine."),
        (["--rate", "0"], 2, "argument --rate: '0' is not a number above 0"),
        (["--seconds", "nan"], 2, "argument --seconds: 'nan' is not a number above 0"),
        (["--truth", "/missing/t.json"], 2, "there is no folder '/missing'; make it first"),
    ],
)
def test_what_cannot_be_is_an_error_that_says_so(given, code, says):
    ended = subprocess.run(
        [*DEMO, *ANY_PORTS, *given], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code
    assert says in ended.stderr


def test_help_names_the_commands():
    done = subprocess.run(
        [*DEMO[:-1], "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "run an order service under traffic" in done.stdout


def test_starving_a_pool_prints_who_holds_its_connections():
    printed = subprocess.run(
        [*DEMO, "--starve"], capture_output=True, text=True, check=True, timeout=60
    )
    assert printed.stderr == ""
    holders = [line.split("; ") for line in printed.stdout.splitlines() if " s: " in line]
    assert [what.split(" s: ")[1].partition(" (")[0][:7] for what, _ in holders] == [
        "session",
        "session",
        "a conne",
    ]
    said = "\n".join(what for what, _ in holders)
    for expected in (
        "(orders, active), request request-1, route POST /orders, 2 statements, last INSERT orders",
        "(orders, active), request request-2, route GET /orders/{id}, 2 statements, last SELECT",
        "without a session, request request-3, route GET /export, 1 statement, last SELECT",
    ):
        assert expected in said
    assert [where.rpartition(" in ")[2] for _, where in holders] == [
        "_calls_another_service",
        "_forgets_to_close",
        "_exports",
    ]
    assert "QueuePool limit of size 3 overflow 0 reached" in printed.stdout
