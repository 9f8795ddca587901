"""Each example, run as its first line says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name / "main.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_three_lines():
    said = run("three_lines")
    assert "request_id='r-1'" in said
    assert "query_count=1, transaction_count=1" in said
    assert 'sqlalchemy_session_creations_total{factory="orders",outcome="success"} 1.0' in said


def test_plain_worker():
    lines = run("plain_worker").splitlines()
    assert lines == [
        *(f"job-{n} send_mail committed" for n in range(4)),
        'sqlalchemy_session_transactions_total{factory="worker",outcome="committed"} 4.0',
    ]


def test_celery_worker():
    pytest.importorskip("celery")
    lines = run("celery_worker").splitlines()
    assert lines == [
        "task-1 shop.count_orders committed",
        'sqlalchemy_session_transactions_total{factory="tasks",outcome="committed"} 1.0',
    ]


def test_user_sessions():
    said = run("user_sessions")
    for line in (
        'application_sessions{name="shop"} 1.0',
        'application_session_created_total{name="shop"} 2.0',
        'application_session_reused_total{name="shop"} 1.0',
        'application_session_expired_total{name="shop"} 1.0',
    ):
        assert line in said.splitlines()
