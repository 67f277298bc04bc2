"""Prometheus's files, with the promtool of the image that runs them."""

from __future__ import annotations

import os
from pathlib import Path

from docker_engine import docker

FOLDER = Path(__file__).parents[2] / "docker" / "prometheus"


def promtool(*arguments: str) -> str:
    return docker(
        "run", "--rm", "--network", "none", "--volume", f"{FOLDER}:/etc/prometheus:ro", "--workdir", "/etc/prometheus",
        "--entrypoint", "promtool", os.environ["PROMETHEUS_IMAGE"], *arguments,
    )  # fmt: skip


def test_the_configuration_and_its_rules_are_valid() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")


def test_every_alert_fires_and_recovers_in_the_rule_tests() -> None:
    assert "SUCCESS" in promtool("test", "rules", "tests/alerts.yml", "tests/thresholds.yml")
    tested = (FOLDER / "tests" / "alerts.yml").read_text(encoding="utf-8")
    rules = (FOLDER / "rules" / "alerts.yml").read_text(encoding="utf-8")
    alerts = [line.split(":")[1].strip() for line in rules.splitlines() if "- alert:" in line]
    assert alerts
    for alert in alerts:
        outcomes = [part.partition("exp_alerts:")[2][:20] for part in tested.split(f"alertname: {alert}")[1:]]
        assert any("[]" in outcome for outcome in outcomes), f"{alert} is never seen to recover"
        assert any("[]" not in outcome for outcome in outcomes), f"{alert} is never seen to fire"
