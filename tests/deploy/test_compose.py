"""docker-compose.yml and the image that it builds: every file, setting and variable that is named exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from app.settings import Settings, variable_of

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def test_every_mounted_file_exists() -> None:
    volumes = [volume for service in COMPOSE["services"].values() for volume in service.get("volumes", ())]
    mounts = [re.sub(r"^\$\{\w+:-(.*?)\}", r"\1", volume).split(":")[0] for volume in volumes]
    files = [mount for mount in mounts if mount.startswith("./")]
    assert len(files) >= 5
    for file in files:
        assert (ROOT / file).exists(), file
    named = {mount for mount in mounts if not mount.startswith("./")}
    assert named == set(COMPOSE["volumes"])


def test_every_setting_can_be_given_to_compose_but_those_that_the_image_fixes() -> None:
    known = {variable_of(name) for name in Settings.model_fields}
    fixed = {"HOST", "PORT", "GRPC_PORT", "MODEL_REPOSITORY", "ENGINE_CACHE_FOLDER"}
    for service in ("server", "server-gpu"):
        variables = {entry.split("=")[0] for entry in COMPOSE["services"][service]["environment"]}
        assert {name for name in variables if name[:5] != "OTEL_"} == known - {f"HIERA_{name}" for name in fixed}
    image = re.findall(r"HIERA_[A-Z_]+", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert image
    assert set(image) <= known


def test_every_variable_of_compose_is_documented_and_every_documented_one_is_taken() -> None:
    documented = set(re.findall(r"`([A-Z]+_[A-Z_]+)`", (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")))
    replaced = set(re.findall(r"\$\{([A-Z_]+):-", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    handed = {name for service in COMPOSE["services"].values() for name in service.get("environment", ())}
    assert {name for name in replaced | handed if not name.startswith(("HIERA_", "GF_"))} <= documented
    assert {name for name in documented if name.startswith("OTEL_")} <= handed
    assert "HIERA_WEIGHTS_URL" in documented & set(COMPOSE["services"]["export"]["environment"])


def test_prometheus_needs_one_line_more_where_metrics_need_a_key() -> None:
    for path in ("docker/prometheus/prometheus.yml", "deploy/kubernetes/base/monitoring.yaml"):
        text = (ROOT / path).read_text(encoding="utf-8")
        with_key = re.sub(r"# (authorization: )", r"\1", text)
        assert with_key != text, path
        document = yaml.safe_load(with_key)
        job = document["scrape_configs"][0] if "scrape_configs" in document else document["spec"]["endpoints"][0]
        assert set(job["authorization"]) == {"credentials"}


def test_docker_waits_longer_than_a_drain_takes() -> None:
    fields = Settings.model_fields
    drain_s = fields["shutdown_grace_seconds"].default + fields["shutdown_timeout_seconds"].default
    assert int(COMPOSE["services"]["server"]["stop_grace_period"].removesuffix("s")) > drain_s


def test_nothing_is_published_beyond_this_machine_unless_asked() -> None:
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("${PUBLISH_ADDRESS:-127.0.0.1}:"), name


def test_everything_that_the_image_copies_is_in_the_build_context() -> None:
    allowed = [
        line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"
    ]
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (?!--)(.+)$", dockerfile, re.M) for word in line.split()[:-1]]
    copied += re.findall(r"type=bind,source=([^,]+)", dockerfile)
    assert copied
    for path in copied:
        assert (ROOT / path).exists(), path
        assert any(path == a or path.startswith(f"{a}/") or a.startswith(f"{path}/") for a in allowed), path
