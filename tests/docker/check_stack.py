"""docker-compose.yml, up for real: classify, observe, kill, drain. The tests run in order, on one project."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from compose_stack import ROOT, Load, Stack, eventually
from docker_engine import container, docker, inspect, log_of
from sample_files import panning_video, photo

DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "hiera.json"
GPU_ROW = "GPU"  # as docker/grafana/panels.py calls it
LOAD_S = 300.0  # the most that the load may last; it ends with its test
ENOUGH_REQUESTS = 50


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    project = Stack()
    try:
        project.up()
        yield project
    finally:
        project.down()


def test_it_gets_ready(stack: Stack) -> None:
    print(f"\n   ready {stack.ready_after_s:.1f} s after `up`")
    healthy = eventually(lambda: inspect(container("server"))["State"]["Health"]["Status"] == "healthy", 60)
    assert healthy, "Docker's own health check does not see the server ready"


def test_it_runs_confined(stack: Stack) -> None:
    host = inspect(container("server"))["HostConfig"]
    assert host["Init"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["Memory"] > 0
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    bindings = [binding["HostIp"] for port in host["PortBindings"].values() for binding in port]
    assert bindings == ["127.0.0.1"], "the port is open to the network without being asked"
    assert "confined by seccomp" in log_of("server"), "the media workers' own filter does not stand in a container"


def test_a_photo_is_classified_through_the_published_port(stack: Stack) -> None:
    answer = stack.classify("image", photo(), "photo.jpg", top_k=3)
    assert answer.status_code == 200, answer.text
    print(f"\n   photo: {_summary(answer.json())}")
    assert len(answer.json()["predictions"]) == 3


def test_a_panning_video_is_told_to_pan(stack: Stack) -> None:
    answer = stack.classify("video", panning_video(), "clip.mp4")
    assert answer.status_code == 200, answer.text
    print(f"\n   video: {_summary(answer.json())}")
    assert "pan" in answer.json()["predictions"][0]["label"]


def test_its_log_is_json_lines_for_programs(stack: Stack) -> None:
    lines = log_of("server").splitlines()
    assert lines
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_prometheus_sees_its_targets_up(stack: Stack) -> None:
    def all_up() -> bool:
        targets = stack.prometheus.get("/api/v1/targets").json()["data"]["activeTargets"]
        return {t["labels"]["job"] for t in targets if t["health"] == "up"} >= {"hiera", "prometheus"}

    assert eventually(all_up, 60), stack.prometheus.get("/api/v1/targets").text


def test_every_panel_rule_and_alert_has_data_under_load(stack: Stack) -> None:
    with Load(stack, LOAD_S) as load:
        expressions = _panel_expressions() + _rule_expressions(stack)
        missing: set[str] = set()

        def all_answer() -> bool:
            missing.clear()
            missing.update(expression for expression in expressions if not _has_a_number(stack.query(expression)))
            return not missing and sum(load.statuses.values()) >= ENOUGH_REQUESTS

        answered = eventually(all_answer, LOAD_S / 2)
    print(f"\n   {len(expressions)} expressions have data; the load was answered {load.statuses}")
    assert answered, "no data for:\n" + "\n".join(sorted(missing))
    assert not any(status >= 500 for status in load.statuses)


def test_promtool_has_no_complaint_about_the_metrics(stack: Stack) -> None:
    command = [os.environ["DOCKER"], "run", "--rm", "--interactive", "--network", "none", "--entrypoint", "promtool"]
    exposition = stack.server.get("/metrics").text
    done = subprocess.run(
        [*command, os.environ["PROMETHEUS_IMAGE"], "check", "metrics"],
        input=exposition,
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_every_rule_is_evaluated_without_an_error(stack: Stack) -> None:
    groups = stack.prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 10
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


def test_a_killed_server_comes_back(stack: Stack) -> None:
    os.kill(inspect(container("server"))["State"]["Pid"], signal.SIGKILL)
    begin = time.monotonic()
    assert eventually(lambda: inspect(container("server"))["RestartCount"] == 1, 30)
    stack.wait_until_ready(120)
    print(f"\n   ready again {time.monotonic() - begin:.1f} s after SIGKILL")
    assert stack.classify("image", photo(), "photo.jpg").status_code == 200


def test_stopping_drains_an_upload_that_is_half_in(stack: Stack) -> None:
    body = photo()
    url = stack.server.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        head = f"POST /classify/image HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:1000])
        time.sleep(0.5)  # the server has read the head and admitted the request
        stopping = threading.Thread(target=docker, args=("stop", "--time", "45", container("server")))
        stopping.start()
        assert eventually(lambda: not stack.is_ready(), 10), "it is still ready while it stops"
        connection.sendall(body[1000:])
        answer = connection.recv(65536)
    stopping.join()
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:400]
    state = inspect(container("server"))["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)


def _summary(answer: dict[str, Any]) -> str:
    best, model = answer["predictions"][0], answer["model"]
    return f"{best['label']} {best['probability']:.2f} by {model['name']} on {model['engine']} {model['precision']}"


def _has_a_number(series: list[dict[str, Any]]) -> bool:
    return any(math.isfinite(float(each["value"][1])) for each in series)


def _panel_expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    # The row of the GPU has data where there is one, which no stack of these tests has.
    assert GPU_ROW in [panel["title"] for panel in panels]
    panels += [inner for panel in panels if panel["title"] != GPU_ROW for inner in panel.get("panels", ())]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    for variable, value in (("$instance", ".*"), ("$model", ".*"), ("$__rate_interval", "1m")):
        expressions = [expression.replace(variable, value) for expression in expressions]
    assert expressions
    return expressions


def _rule_expressions(stack: Stack) -> list[str]:
    """What the rules look at: alerts without their thresholds, which a healthy server does not pass."""
    groups = stack.prometheus.get("/api/v1/rules").json()["data"]["groups"]
    rules = [rule["query"] for group in groups for rule in group["rules"]]
    return [re.sub(r"\s(>|==|<) \d[\d.]*", "", re.sub(r"^absent\((.*)\)$", r"\1", rule)) for rule in rules]
