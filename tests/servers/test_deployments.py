"""The files under deploy/: those a real server takes are given to one."""

from __future__ import annotations

from pathlib import Path

import yaml
from grafana.expressions import DASHBOARDS, GRAFANA, RULES, rules

from servers.demo_process import demo_running
from servers.prometheus_server import prometheus_with

DEPLOY = GRAFANA.parent / "deploy"


def loaded(*path: str) -> dict:
    return yaml.safe_load(DEPLOY.joinpath(*path).read_text())


def test_prometheus_of_the_compose_file_scrapes_the_demo_by_its_rules(tmp_path: Path):
    text = (DEPLOY / "compose" / "prometheus.yml").read_text()
    (tmp_path / "demo").mkdir()
    with demo_running(tmp_path / "demo", requests=50) as demo:
        text = text.replace("application:9464", demo.metrics)
        text = text.replace("/etc/prometheus/rules/*.yaml", str(RULES)).replace("5s", "1s")
        with prometheus_with(text, tmp_path) as prometheus:
            prometheus.wait_for('sum(sqlalchemy_sessions{job="order-service"})', lambda n: n == 0)
            assert len(prometheus.rules()) == len(rules())


def test_the_compose_file_mounts_what_is_there():
    services = loaded("compose", "compose.yaml")["services"]
    assert set(services) == {"application", "prometheus", "jaeger", "grafana"}
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0] if volume[0] != "." else volume.split(":")[0]
            assert (DEPLOY / "compose" / source).resolve().exists(), volume
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_grafana_is_provisioned_with_the_data_sources_the_dashboards_need():
    home = GRAFANA / "provisioning"
    sources = yaml.safe_load((home / "datasources" / "session-metrics.yaml").read_text())
    by_type = {source["type"]: source for source in sources["datasources"]}
    (exemplars,) = by_type["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert exemplars == {"name": "trace_id", "datasourceUid": by_type["jaeger"]["uid"]}
    (provider,) = yaml.safe_load((home / "dashboards" / "session-metrics.yaml").read_text())[
        "providers"
    ]
    mounted = loaded("compose", "compose.yaml")["services"]["grafana"]["volumes"]
    assert f"../../grafana/dashboards:{provider['options']['path']}:ro" in mounted


def test_kubernetes_has_every_dashboard_and_every_rule():
    kept = loaded("kubernetes", "kustomization.yaml")
    (dashboards,) = kept["configMapGenerator"]
    here = DEPLOY / "kubernetes"
    assert sorted((here / path).resolve() for path in dashboards["files"]) == DASHBOARDS
    assert all((here / path).exists() for path in kept["resources"])
    assert loaded("kubernetes", "prometheusrule.yaml")["spec"] == yaml.safe_load(RULES.read_text())


def test_each_service_in_kubernetes_is_a_job_and_each_pod_an_instance(tmp_path: Path):
    pods = [
        {"namespace": "live", "pod_name": "shop-1", "pod_label_app_kubernetes_io_name": "shop"},
        {"namespace": "trial", "pod_name": "shop-2", "pod_label_app_kubernetes_io_name": "shop"},
        {"namespace": "live", "pod_name": "nameless-3"},
    ]
    monitor = loaded("kubernetes", "podmonitor.yaml")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    snake_case = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    relabelings = [
        {snake_case.get(name, name): value for name, value in relabeling.items()}
        for relabeling in endpoint["relabelings"]
    ]
    scraped = {
        "job_name": "monitoring/session-metrics",  # which the operator gives all of them
        "scrape_interval": "1s",
        "static_configs": [
            {
                "targets": [f"127.0.0.1:{number}"],  # where nothing answers
                "labels": {f"__meta_kubernetes_{name}": value for name, value in pod.items()},
            }
            for number, pod in enumerate(pods, 1)
        ],
        "relabel_configs": relabelings,
    }
    with prometheus_with(yaml.safe_dump({"scrape_configs": [scraped]}), tmp_path) as prometheus:
        prometheus.wait_for("count(up)", lambda count: count == len(pods))
        assert sorted((row["job"], row["instance"]) for row, _ in prometheus.query("up")) == [
            ("live/shop", "shop-1"),
            ("monitoring/session-metrics", "nameless-3"),
            ("trial/shop", "shop-2"),
        ]


def test_the_collectors_pipelines_are_of_parts_it_has():
    collector = loaded("collector", "collector.yaml")
    for pipeline in collector["service"]["pipelines"].values():
        for kind, parts in pipeline.items():
            assert set(parts) <= set(collector[kind])
