"""``dashboards export`` and ``rules export``: what Grafana and Prometheus load."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import session_metrics_otel
from session_metrics_otel.catalog import CATALOG

ALERT = "{alert}"
"""What stands for an alert's name in the address of its page."""

_PACKAGE = Path(session_metrics_otel.__file__).parent
# In a wheel they lie inside the package; in a checkout, beside src/.
_HOMES = (_PACKAGE / "grafana", _PACKAGE.parents[1] / "grafana")


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the commands to the command line."""
    dashboards = _add(
        commands,
        "dashboards",
        "Grafana dashboards (Grafana 9.4 and newer)",
        "Then import them in Grafana, or let a dashboard provider read DIR. If Prometheus scrapes "
        "less often than every 15 s, say so in Grafana's data source (Scrape interval); otherwise "
        "rates have gaps. "
        "Example: dashboards export /var/lib/grafana/dashboards --datasource Main. ",
        export_dashboards,
    )
    dashboards.add_argument("--job", help="the scrape job that is selected by default")
    dashboards.add_argument(
        "--datasource", help="the name of the Prometheus data source that is selected by default"
    )
    rules = _add(
        commands,
        "rules",
        "Prometheus recording rules and alerts",
        "Then name the file under rule_files in prometheus.yml. "
        "Example: rules export /etc/prometheus/rules --job shop "
        "--runbooks https://docs.example.org/runbooks/{alert}.html. ",
        export_rules,
    )
    rules.add_argument("--job", help="the scrape job of your services: nothing else is included")
    rules.add_argument(
        "--runbooks",
        metavar="URL",
        type=_address_of_an_alert,
        help="where you keep each alert's page, with {alert} for its name: what runbook_url says "
        "(default: the page's path in the source of this package)",
    )


def _address_of_an_alert(text: str) -> str:
    if ALERT not in text:
        missing = f"{text!r} has no {ALERT} for the alert's name"
        raise argparse.ArgumentTypeError(missing)
    return text


def _add(
    commands: argparse._SubParsersAction[Any], name: str, what: str, then: str, run: Any
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=f"export {what}", description=f"Export {what}.")
    actions = parser.add_subparsers(title="actions", required=True, metavar="ACTION")
    export: argparse.ArgumentParser = actions.add_parser(
        "export",
        help="write them into a folder",
        description=f"Write {what} to DIR.",
        epilog=f"{then}Exit code: 0, or 1 if DIR cannot be written to.",
    )
    export.add_argument(
        "folder", metavar="DIR", type=Path, help="the folder; it is made if it does not exist"
    )
    export.set_defaults(run=run)
    return export


def export_dashboards(options: argparse.Namespace) -> None:
    """Write the dashboards to a folder."""
    chosen = {"datasource": options.datasource, "job": options.job}
    for file in _files("dashboards", "*.json"):
        board = json.loads(file.read_text("utf-8"))
        for variable in board["templating"]["list"]:
            if value := chosen.get(variable["name"]):
                variable["current"] = {"selected": True, "text": value, "value": value}
        _write(options.folder, file.name, json.dumps(board, indent=2) + "\n")


def export_rules(options: argparse.Namespace) -> None:
    """Write the rules to a folder."""
    for file in _files("rules", "*.yaml"):
        text = file.read_text("utf-8")
        if options.job:
            text = of_job(text, options.job)
        if options.runbooks:
            text = with_runbooks(text, options.runbooks)
        _write(options.folder, file.name, text)


def of_job(rules: str, job: str) -> str:
    """``rules`` with every series that is scraped restricted to ``job``."""
    names = [name for metric in CATALOG for name in metric.sample_names]
    # By PromQL's escapes: what stands there must mean nothing to YAML.
    plain = re.sub(r"[^\w ./-]", lambda found: f"\\U{ord(found[0]):08x}", job)
    matcher = f'job="{plain}"'
    series = re.compile(rf"(?<![\w:])({'|'.join(names)})(?![\w:])(\{{)?")

    def restrict(found: re.Match[str]) -> str:
        name, brace = found.groups()
        return f"{name}{{{matcher}," if brace else f"{name}{{{matcher}}}"

    return series.sub(restrict, rules)


def with_runbooks(rules: str, address: str) -> str:
    """``rules`` whose alerts have their pages at ``address``, with their name for ``ALERT``."""

    def quoted(found: re.Match[str]) -> str:
        # JSON is YAML, whatever the address has in it.
        return f"runbook_url: {json.dumps(address.replace(ALERT, found[1]), ensure_ascii=False)}"

    return re.sub(r"runbook_url: docs/runbooks/(\w+)\.md", quoted, rules)


def _files(kind: str, pattern: str) -> list[Path]:
    for home in _HOMES:
        found = sorted((home / kind).glob(pattern))
        if found:
            return found
    sys.exit(f"No {kind} are in this installation ({_PACKAGE}). Install the wheel again.")


def _write(folder: Path, name: str, text: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    except OSError as refusal:
        sys.exit(f"Cannot write to {folder} ({refusal}). Give a folder that can be written to.")
    print(folder / name)
