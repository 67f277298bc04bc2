"""The dashboard, the rules and their tests: every series is one of the server, with the labels and values asked for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from app.media.pool import RESTART_REASONS, WORKER_STATES
from app.telemetry.gpu import GAUGES, LABELS
from app.telemetry.metrics import TASKS, Metrics

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "hiera.json"
RULES = ROOT / "docker" / "prometheus" / "rules"

Known = dict[str, dict[str, set[str]]]
"""The values that each label has, by label, by series."""

OF_PROMETHEUS = {"job", "instance"}
# What is served, and on which card, is anything.
OPEN = {*OF_PROMETHEUS, *LABELS, "model", "version", "engine", "precision", "device", "rows", "le"}
SERIES = r"[a-z:]*hiera_[a-z0-9_:]+"


def dashboard_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    panels += [inner for panel in panels for inner in panel.get("panels", ())]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def rules() -> list[dict[str, str]]:
    documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RULES.glob("*.yml"))]
    return [rule for document in documents for group in document["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def known() -> Known:
    """The series of a server with one model of each task, and what Prometheus records of them."""
    metrics = Metrics(WORKER_STATES, RESTART_REASONS)
    for task in TASKS:
        metrics.expect_model(task, task)
    metrics.expect_keys(["alice"])
    metrics.model_ready("image", 1, True)
    metrics.engine_info("image", 1, "openvino", "bf16", "cpu")
    metrics.batch_cost("image", 1, 0.1)
    series: Known = {name: {label: set() for label in LABELS} for name, _, _ in GAUGES}
    values: dict[str, set[str]] = {}
    for sample in (sample for family in metrics.registry.collect() for sample in family.samples):
        labels = series.setdefault(sample.name, {})
        for label, value in sample.labels.items():
            labels.setdefault(label, set()).add(value)
            values.setdefault(label, set()).add(value)
    for rule in rules():
        if "record" in rule:
            series[rule["record"]] = {label: values.get(label, set()) for label in grouped_by(rule["expr"])}
    return series


def grouped_by(expression: str) -> set[str]:
    groups = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
    return {label for group in groups for label in re.findall(r"\w+", group)}


def series_of_the_rules_tests() -> list[str]:
    documents = [
        yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((RULES.parent / "tests").glob("*.yml"))
    ]
    return [each["series"] for document in documents for test in document["tests"] for each in test["input_series"]]


EXPRESSIONS = [*dashboard_queries(), *(rule["expr"] for rule in rules())]


def test_the_dashboard_is_what_its_generator_writes(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docker" / "grafana", tmp_path / "grafana", ignore=shutil.ignore_patterns("__pycache__"))
    copy = tmp_path / "grafana" / "dashboards" / "hiera.json"
    copy.unlink()
    subprocess.run([sys.executable, tmp_path / "grafana" / "dashboard.py"], check=True)
    assert copy.read_text(encoding="utf-8") == DASHBOARD.read_text(encoding="utf-8"), "run docker/grafana/dashboard.py"


def test_the_dashboard_and_the_rules_ask_only_for_series_that_exist(known: Known) -> None:
    asked = {name for expression in EXPRESSIONS for name in re.findall(SERIES, expression)}
    assert len(asked) > 15
    assert asked <= known.keys(), asked - known.keys()


@pytest.mark.parametrize("expression", [*EXPRESSIONS, *sorted(set(series_of_the_rules_tests()))])
def test_labels_exist_and_can_have_the_values_that_are_asked_for(known: Known, expression: str) -> None:
    for name, matchers in re.findall(rf"({SERIES})\{{([^}}]*)\}}", expression):
        for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', matchers):
            assert label in known[name].keys() | OF_PROMETHEUS, (name, label)
            for word in [] if label in OPEN else value.split("|"):  # a word that is never met may be a misspelt one
                pattern = word if "~" in operator else re.escape(word)
                assert any(re.fullmatch(pattern, each) for each in known[name][label]), (name, label, word)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_series_are_grouped_by_labels_that_they_have(known: Known, expression: str) -> None:
    assert grouped_by(expression) <= OF_PROMETHEUS.union(*(known[name] for name in re.findall(SERIES, expression)))


def test_each_reason_for_a_workers_end_is_of_one_alert_or_needs_none() -> None:
    alerts = " ".join(rule["expr"] for rule in rules() if "alert" in rule)
    told = [word for words in re.findall(r'_restarts_total\{reason=~"([^"]*)"', alerts) for word in words.split("|")]
    # Two are the caller's own business, and recycling is meant.
    assert sorted([*told, "deadline", "abandoned", "recycled"]) == sorted(RESTART_REASONS)
