"""Who may call: API keys on a real server, what stays open without one, and which pages may call from a browser."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from colours import image_of
from running_server import RunningServer


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, colour_repository: Path) -> Iterator[tuple[RunningServer, Path]]:
    """A server with keys from the environment and from a file."""
    folder = tmp_path_factory.mktemp("server")
    keys = folder / "keys"
    keys.write_text("# who: what\ncarol:filed-secret\n")
    running = RunningServer(
        folder,
        colour_repository,
        {
            "api_keys": "alice:first-secret, bob:second-secret",
            "api_keys_file": keys,
            "cors_origins": "https://app.example",
            "metrics_need_key": True,
        },
    ).wait_until_ready()
    yield running, keys
    assert running.stop() == 0, running.log


def classify(running: RunningServer, headers: dict[str, str]) -> httpx.Response:
    return httpx.post(f"{running.url}/classify/image", files={"file": image_of()}, headers=headers, timeout=60)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": "first-secret"},
        {"X-API-Key": "second-secret"},
        {"X-API-Key": "filed-secret"},
        {"Authorization": "Bearer first-secret"},
        {"Authorization": "bearer second-secret"},
    ],
)
def test_any_of_the_keys_opens_the_server(locked: tuple[RunningServer, Path], headers: dict[str, str]) -> None:
    assert classify(locked[0], headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "alice"},
        {"X-API-Key": "alice:first-secret"},
        {"X-API-Key": "first-secre"},
        {"Authorization": "Basic first-secret"},
    ],
)
def test_without_one_the_caller_is_asked_for_it(locked: tuple[RunningServer, Path], headers: dict[str, str]) -> None:
    response = classify(locked[0], headers)
    assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert httpx.get(f"{locked[0].url}/models", headers=headers).status_code == 401


def test_health_and_pages_stay_open(locked: tuple[RunningServer, Path]) -> None:
    for path in ("/health/live", "/health/ready", "/", "/docs", "/docs/docs.js", "/openapi.json"):
        assert httpx.get(locked[0].url + path).status_code == 200


def test_metrics_ask_for_a_key_when_told_to(locked: tuple[RunningServer, Path]) -> None:
    assert httpx.get(f"{locked[0].url}/metrics").status_code == 401
    assert httpx.get(f"{locked[0].url}/metrics", headers={"X-API-Key": "first-secret"}).status_code == 200


def test_requests_are_counted_by_key(locked: tuple[RunningServer, Path]) -> None:
    def counted() -> dict[str, float]:
        text = httpx.get(f"{locked[0].url}/metrics", headers={"X-API-Key": "first-secret"}).text
        found = re.findall(r'^hiera_key_requests_total\{code="(\d+)",key="(\w+)"\} (.+)$', text, re.MULTILINE)
        return {f"{key} {code}": float(value) for code, key, value in found}

    before = counted()
    assert {"alice 200", "alice 429", "bob 200", "carol 200"} <= set(before)
    assert classify(locked[0], {"X-API-Key": "second-secret"}).status_code == 200
    assert classify(locked[0], {}).status_code == 401
    httpx.post(f"{locked[0].url}/classify/image", content=b"none", headers={"X-API-Key": "first-secret"})
    after = counted()
    assert {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)} == {
        "bob 200": 1,
        "none 401": 1,
        "alice 415": 1,
    }


def test_the_openapi_document_says_how_to_send_a_key(locked: tuple[RunningServer, Path]) -> None:
    document = httpx.get(f"{locked[0].url}/openapi.json").json()
    assert {"key", "bearer"} <= set(document["components"]["securitySchemes"])
    assert document["paths"]["/classify/image"]["post"]["security"] == [{"key": []}, {"bearer": []}]
    assert "security" not in document["paths"]["/health/live"]["get"]


def test_the_log_names_the_key_and_never_shows_a_secret(locked: tuple[RunningServer, Path]) -> None:
    running = locked[0]
    httpx.get(f"{running.url}/models?api_key=first-secret", headers={"X-API-Key": "second-secret"})
    running.wait_for('"path": "/models", .*"key": "bob"')
    assert "secret" not in running.log


def test_a_changed_file_of_keys_is_read_again(locked: tuple[RunningServer, Path]) -> None:
    running, keys = locked
    keys.write_text("dave:new-secret\n")
    end = time.monotonic() + 20
    while classify(running, {"X-API-Key": "new-secret"}).status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert classify(running, {"X-API-Key": "filed-secret"}).status_code == 401
    assert classify(running, {"X-API-Key": "first-secret"}).status_code == 200


def test_only_the_named_origins_may_call_from_a_browser(locked: tuple[RunningServer, Path]) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    url = f"{locked[0].url}/classify/image"
    friend = httpx.options(url, headers={"Origin": "https://app.example", **ask})
    assert friend.headers["access-control-allow-origin"] == "https://app.example"
    stranger = httpx.options(url, headers={"Origin": "https://evil.example", **ask})
    assert "access-control-allow-origin" not in stranger.headers


def test_without_the_setting_no_origin_may(server: RunningServer) -> None:
    response = httpx.get(f"{server.url}/models", headers={"Origin": "https://app.example"})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_without_keys_the_server_is_open(client: httpx.Client) -> None:
    assert client.get("/models").status_code == 200
    schemes = client.get("/openapi.json").json()["components"]["securitySchemes"]
    assert set(schemes) == {"admin_key", "admin_bearer"}
