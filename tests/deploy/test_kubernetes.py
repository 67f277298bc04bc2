"""The Kubernetes manifests against the API's own schemas, and against what the server and its image really are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from app.settings import Settings, variable_of

ROOT = Path(__file__).parents[2]
BASE = ROOT / "deploy" / "kubernetes" / "base"
GPU = ROOT / "deploy" / "kubernetes" / "gpu"
OPERATOR_KINDS = {"ServiceMonitor", "PrometheusRule"}  # of the Prometheus operator, not of Kubernetes


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return document


def resources() -> list[Path]:
    return [BASE / name for name in load(BASE / "kustomization.yaml")["resources"]]


def merged(base: Any, patch: Any) -> Any:
    """`patch` over `base` as kustomize merges: mappings by key, lists of named items by name, other lists replaced."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {key: merged(base.get(key), value) for key, value in patch.items()}
    if isinstance(base, list) and isinstance(patch, list) and all("name" in item for item in base + patch):
        named = {item["name"]: item for item in base}
        return list((named | {item["name"]: merged(named.get(item["name"]), item) for item in patch}).values())
    return patch


def server_of(deployment: dict[str, Any]) -> dict[str, Any]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


@pytest.mark.parametrize("path", resources(), ids=lambda path: path.stem)
def test_every_resource_fits_the_schema(path: Path) -> None:
    resource = load(path)
    if resource["kind"] in OPERATOR_KINDS:
        assert resource["apiVersion"] == "monitoring.coreos.com/v1"
    else:
        kubernetes_validate.validate(resource, "1.33", strict=True)


def test_the_gpu_deployment_fits_the_schema_and_asks_for_a_gpu() -> None:
    deployment = merged(load(BASE / "deployment.yaml"), load(GPU / "deployment.yaml"))
    kubernetes_validate.validate(deployment, "1.33", strict=True)
    server = server_of(deployment)
    assert server["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert server["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert {"HIERA_ENGINE_DEVICE", "HIERA_API_KEYS"} <= {variable["name"] for variable in server["env"]}


def test_the_gpu_deployment_has_the_image_for_gpus_whatever_the_base_makes_of_its_own() -> None:
    (base,), (gpu,) = (load(folder / "kustomization.yaml")["images"] for folder in (BASE, GPU))
    # kustomize renames the base's image first: an entry of the same name here would find nothing after that.
    assert server_of(load(GPU / "deployment.yaml"))["image"] == gpu["name"] != base["name"]
    assert (gpu["newName"], gpu["newTag"]) == (base["name"], f"{base['newTag']}-gpu")


@pytest.mark.parametrize("folder", [BASE, GPU], ids=lambda folder: folder.name)
def test_every_variable_is_a_setting_of_the_server(folder: Path) -> None:
    known = {variable_of(name) for name in Settings.model_fields}
    assert {variable["name"] for variable in server_of(load(folder / "deployment.yaml"))["env"]} <= known


def test_a_drain_ends_before_the_pod_is_killed() -> None:
    pod = load(BASE / "deployment.yaml")["spec"]["template"]["spec"]
    grace = float(next(v["value"] for v in server_of({"spec": {"template": {"spec": pod}}})["env"]
                       if v["name"] == "HIERA_SHUTDOWN_GRACE_SECONDS"))  # fmt: skip
    assert grace + Settings.model_fields["shutdown_timeout_seconds"].default < pod["terminationGracePeriodSeconds"]


def test_the_service_the_monitor_the_policy_and_the_probes_name_the_same_ports() -> None:
    server = server_of(load(BASE / "deployment.yaml"))
    ports = {each["name"]: each["containerPort"] for each in server["ports"]}
    assert ports == {"http": Settings.model_fields["port"].default, "grpc": Settings.model_fields["grpc_port"].default}
    assert {each["name"]: each["targetPort"] for each in load(BASE / "service.yaml")["spec"]["ports"]} == {
        name: name for name in ports
    }
    (ingress,) = load(BASE / "network-policy.yaml")["spec"]["ingress"]
    assert [each["port"] for each in ingress["ports"]] == list(ports)
    (endpoint,) = load(BASE / "monitoring.yaml")["spec"]["endpoints"]
    assert endpoint["port"] == "http"
    assert all(
        server[probe]["httpGet"]["port"] == "http" for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    )


def test_the_autoscaler_asks_for_metrics_that_the_adapter_serves() -> None:
    asked = {metric["pods"]["metric"]["name"] for metric in load(BASE / "autoscaler.yaml")["spec"]["metrics"]
             if metric["type"] == "Pods"}  # fmt: skip
    rules = load(BASE.parent / "adapter-values.yaml")["rules"]["custom"]
    assert asked == {rule["name"]["as"] for rule in rules}


def test_the_operator_has_the_same_rules_as_the_compose_file() -> None:
    spec = importlib.util.spec_from_file_location("rules", BASE.parent / "rules.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (BASE / "rules.yaml").read_text(encoding="utf-8")
    assert text == module.operator_rules(), "run: python deploy/kubernetes/rules.py"
    alerts = {rule.get("alert") for group in yaml.safe_load(text)["spec"]["groups"] for rule in group["rules"]}
    assert "HieraModelNotReady" in alerts
