"""Writes Grafana's dashboard, dashboards/hiera.json, from the rows of panels.py.

    python docker/grafana/dashboard.py

The JSON is committed, so that Grafana needs no step of its own; a test holds the two together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from panels import ROWS, Panel

DASHBOARD = Path(__file__).parent / "dashboards" / "hiera.json"
DATASOURCE = {"type": "prometheus", "uid": "hiera-prometheus"}
COLUMNS = 24


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        inside: list[dict[str, Any]] = []
        header: dict[str, Any] = {
            "id": len(panels) + 1 + sum(len(panel.get("panels", ())) for panel in panels),
            "type": "row",
            "title": row.title,
            "collapsed": row.collapsed,
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        y += 1
        x = 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + row.height
            position = {"x": x, "y": y, "w": panel.width, "h": row.height}
            inside.append(_panel(panel, header["id"] + len(inside) + 1, position))
            x += panel.width
        y += row.height
        panels.append(header)
        if row.collapsed:
            header["panels"] = inside
        else:
            panels += inside
    return {
        "uid": "hiera",
        "title": "Hiera",
        "tags": ["hiera"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_variable("instance", 'job="hiera"'), _variable("model", 'job="hiera"')]},
        "annotations": {"list": [_alerts()]},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, position: dict[str, int]) -> dict[str, Any]:
    over_time = panel.kind == "timeseries"
    return {
        "id": number,
        "type": "stat" if panel.kind == "names" else panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": position,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
                "range": over_time,
                "instant": not over_time,
            }
            for index, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
    }


def _field(panel: Panel) -> dict[str, Any]:
    field: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": None}]},
    }
    if panel.kind == "timeseries":
        field["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    if panel.mapping:
        options = {value: {"text": text, "color": colour} for value, text, colour in panel.mapping}
        field["mappings"] = [{"type": "value", "options": options}]
    return field


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    if panel.kind == "bargauge":
        return {"reduceOptions": reduce, "orientation": "horizontal", "displayMode": "basic", "showUnfilled": False}
    names = panel.kind == "names"
    text = "name" if names else ("value_and_name" if panel.mapping else "value")
    return {
        "reduceOptions": reduce,
        "textMode": text,
        "colorMode": "none" if names else "value",
        "graphMode": "none",
        "orientation": "horizontal" if names or panel.mapping else "auto",
    }


def _variable(label: str, selector: str) -> dict[str, Any]:
    metric = "up" if label == "instance" else "hiera_model_ready"
    return {
        "name": label,
        "label": label.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": f"label_values({metric}{{{selector}}}, {label})", "refId": label},
        "definition": f"label_values({metric}{{{selector}}}, {label})",
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "enable": True,
        "iconColor": "red",
        "datasource": DATASOURCE,
        "expr": 'ALERTS{alertname=~"Hiera.*", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{model}} {{instance}}",
        "step": "15s",
    }


def main() -> None:
    DASHBOARD.write_text(json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
