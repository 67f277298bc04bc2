"""Models loaded, swapped and unloaded on a running server by its admin calls, with one HTTP process and with two."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from colours import BLUE, GREEN, RED, image_of, write_colour_package
from running_server import RunningServer

from app.load.processes import resident_bytes

ADMIN = {"X-API-Key": "admin-secret"}
USE = {"X-API-Key": "use-secret"}
LABELS = {"red": RED, "green": GREEN, "blue": BLUE}


class Site:
    """A server over a repository of its own."""

    def __init__(self, folder: Path, http_workers: int, **settings: object) -> None:
        self.repository = folder / "repo"
        self.repository.mkdir()
        write_colour_package(self.repository, "colours")
        self.keys = folder / "admin-keys"
        self.keys.write_text("op:admin-secret\n")
        self.server = RunningServer(
            folder,
            self.repository,
            {"http_workers": http_workers, "api_keys": "alice:use-secret", "admin_keys_file": self.keys, **settings},
        )
        self.server.wait_until_ready()

    def admin(self, method: str, path: str, headers: dict[str, str] = ADMIN) -> httpx.Response:
        return httpx.request(method, f"{self.server.url}/admin{path}", headers=headers, timeout=60)

    def classify(self, model: str = "colours", label: str = "red") -> httpx.Response:
        url = f"{self.server.url}/classify/image?model={model}"
        return httpx.post(url, content=image_of(LABELS[label]), headers=USE, timeout=60)

    def served(self) -> dict[str, int]:
        """The models that serve, by name: of two workers both say the same."""
        first, second = self.served_by_each()
        assert first == second
        return first

    def served_by_each(self) -> list[dict[str, int]]:
        """By each of two connections, which two workers take in turn."""
        answers = [httpx.get(f"{self.server.url}/models", headers=USE).json()["models"] for _ in range(2)]
        return [{each["name"]: each["version"] for each in models if each["state"] == "ready"} for models in answers]


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    running = Site(tmp_path, request.param)
    yield running
    assert running.server.stop() == 0, running.server.log


def test_a_model_s_life_from_load_to_unload(site: Site) -> None:
    assert site.classify("late").status_code == 404
    write_colour_package(site.repository, "late")
    listed = {each["name"]: each for each in site.admin("GET", "/models").json()["models"]}
    assert (listed["late"]["pending"], listed["late"]["version"], listed["colours"]["pending"]) == ("load", None, None)
    loaded = site.admin("PUT", "/models/late")
    assert (loaded.status_code, loaded.json()["outcome"], loaded.json()["version"]) == (200, "loaded", 1)
    assert "passed the golden check" in loaded.json()["golden"]
    assert site.served() == {"colours": 1, "late": 1}
    assert site.classify("late").json()["model"]["version"] == 1

    write_colour_package(site.repository, "late", version=2)
    swapped = site.admin("PUT", "/models/late").json()
    assert (swapped["outcome"], swapped["version"], swapped["replaced"], swapped["drained"]) == ("swapped", 2, 1, True)
    assert site.served() == {"colours": 1, "late": 2}
    assert site.admin("PUT", "/models/late").json()["outcome"] == "unchanged"
    assert site.admin("PUT", "/models/late?version=1").json()["version"] == 1

    unloaded = site.admin("DELETE", "/models/late").json()
    assert (unloaded["outcome"], unloaded["version"], unloaded["replaced"]) == ("unloaded", None, 1)
    for _ in range(2):
        assert (site.classify("late").status_code, site.classify("late").json()["code"]) == (404, "unknown_model")
    metrics = httpx.get(f"{site.server.url}/metrics").text
    assert 'hiera_model_ready{model="colours",version="1"} 1.0' in metrics
    for family in ("hiera_model_ready", "hiera_engine_info", "hiera_queue_rows", "hiera_batch_cost_seconds"):
        assert not [line for line in metrics.splitlines() if line.startswith(family) and '"late"' in line]
    assert site.admin("DELETE", "/models/late").status_code == 404
    assert site.admin("PUT", "/models/nothing").status_code == 404


def test_a_bad_package_is_refused_and_the_old_one_serves_on(site: Site) -> None:
    folder = write_colour_package(site.repository, "colours", version=2)
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-1])
    refused = site.admin("PUT", "/models/colours")
    assert (refused.status_code, refused.json()["code"]) == (409, "change_refused")
    assert "model.onnx was changed after the build" in refused.json()["detail"]
    answer = site.classify(label="blue").json()
    assert (answer["model"]["version"], answer["predictions"][0]["label"]) == (1, "blue")
    assert httpx.get(f"{site.server.url}/health/ready").status_code == 200
    reason = httpx.get(f"{site.server.url}/models/colours", headers=USE).json()["reason"]
    assert "version 2 was refused" in reason


def test_strangers_read_why_a_package_was_refused_and_nothing_of_where_it_lies(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    write_colour_package(tmp_path, "good")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    running = start_server(tmp_path, admin_keys="op:admin-secret").wait_until_ready()
    [broken] = [each for each in httpx.get(f"{running.url}/models").json()["models"] if each["name"] == "broken"]
    assert "broken/1/model.json: cannot be read" in broken["reason"]
    assert str(tmp_path) not in broken["reason"]
    tmp_path.rename(tmp_path.with_name("gone"))
    refused = httpx.put(f"{running.url}/admin/models/good", headers={"X-API-Key": "admin-secret"})
    assert refused.status_code == 409
    assert "Traceback" not in running.log


def test_a_reload_makes_the_server_like_the_disk(site: Site) -> None:
    write_colour_package(site.repository, "added")
    write_colour_package(site.repository, "colours", version=2)
    outcomes = {each["name"]: each["outcome"] for each in site.admin("POST", "/reload").json()["changes"]}
    assert outcomes == {"added": "loaded", "colours": "swapped"}
    shutil.rmtree(site.repository / "added")
    assert site.admin("POST", "/reload").json()["changes"][0]["outcome"] == "unloaded"
    assert site.served() == {"colours": 2}
    shutil.rmtree(site.repository / "colours")
    assert site.admin("POST", "/reload").status_code == 409
    assert site.served() == {"colours": 2}


def test_swaps_under_load_lose_nothing_and_every_answer_is_right_for_the_version_it_names(site: Site) -> None:
    """Version 2 is much less sure of itself, so an answer shows which version gave it."""
    write_colour_package(site.repository, "colours", version=2, sharpness=2)
    stop = threading.Event()
    answered: dict[int, int] = {1: 0, 2: 0}
    wrong: list[str] = []

    def call(label: str) -> None:
        data = image_of(LABELS[label])
        with httpx.Client(base_url=site.server.url, headers=USE, timeout=60) as client:
            while not stop.is_set():
                response = client.post("/classify/image?model=colours&top_k=1", content=data)
                if response.status_code != 200:
                    wrong.append(response.text)
                    continue
                version = response.json()["model"]["version"]
                best = response.json()["predictions"][0]
                if best["label"] != label or (best["probability"] > 0.9) != (version == 1):
                    wrong.append(response.text)
                answered[version] += 1

    callers = [threading.Thread(target=call, args=(label,)) for label in LABELS]
    for caller in callers:
        caller.start()
    for version in (2, 1, 2, 1, 2):
        before = answered[version]
        swapped = site.admin("PUT", f"/models/colours?version={version}").json()
        assert (swapped["outcome"], swapped["drained"]) == ("swapped", True)
        while answered[version] < before + 10 and all(caller.is_alive() for caller in callers):
            stop.wait(0.01)
    stop.set()
    for caller in callers:
        caller.join()
    assert wrong == []
    assert min(answered.values()) >= 10


def test_keys_of_one_kind_do_not_open_the_other_and_are_read_again(site: Site) -> None:
    write_colour_package(site.repository, "colours", version=2)
    for headers, status in (({}, 401), ({"X-API-Key": "wrong"}, 401), (USE, 403)):
        assert site.admin("PUT", "/models/colours", headers).status_code == status
    assert httpx.get(f"{site.server.url}/models", headers=ADMIN).status_code == 403
    assert site.served() == {"colours": 1}
    site.keys.write_text("late:later-secret\n")
    threading.Event().wait(1.1)  # the file is looked at once a second
    assert site.admin("PUT", "/models/colours").status_code == 401
    assert site.admin("PUT", "/models/colours", {"Authorization": "Bearer later-secret"}).status_code == 200
    line = site.server.wait_for(r'.*"logger": "hiera.admin".*')
    assert '"key": "late"' in line
    assert '"request_id"' in line
    assert "secret" not in site.server.log


def test_a_secret_in_both_lists_is_a_wrong_setting(tmp_path: Path, colour_repository: Path) -> None:
    with pytest.raises(AssertionError, match=r"(?s)ended with 2.*share a secret"):
        RunningServer(tmp_path, colour_repository, {"api_keys": "a:same", "admin_keys": "b:same"})


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    running = Site(tmp_path, request.param, watch_seconds=0.2)
    yield running
    assert running.server.stop() == 0, running.server.log


def statuses_of_gone(site: Site, models: dict[str, int]) -> list[int]:
    """What each worker answers for the models of these tests that are not in `models`."""
    gone = {"colours", "added"} - models.keys()
    return [site.classify(model).status_code for model in gone for _ in range(2)]


def wait_until_served(site: Site, models: dict[str, int]) -> None:
    end = time.monotonic() + 60
    while site.served_by_each() != [models] * 2 or any(status != 404 for status in statuses_of_gone(site, models)):
        assert time.monotonic() < end, site.server.log
        time.sleep(0.1)


def test_a_watched_repository_is_followed(watched: Site, tmp_path: Path) -> None:
    repository = watched.repository
    write_colour_package(repository, "added")
    wait_until_served(watched, {"colours": 1, "added": 1})
    assert watched.classify("added").status_code == 200

    aside = write_colour_package(tmp_path / "aside", "colours", version=2)
    half = repository / "colours" / "2"
    half.mkdir()
    shutil.copy(aside / "model.json", half)
    watched.server.wait_for("version 2 is refused.*cannot be read")
    assert watched.served()["colours"] == 1
    assert watched.classify().json()["model"]["version"] == 1
    for file in aside.iterdir():
        shutil.copy(file, half)
    wait_until_served(watched, {"colours": 2, "added": 1})
    assert watched.server.log.count("version 2 is refused") <= 4  # once for each file that came later

    shutil.rmtree(repository / "added")
    wait_until_served(watched, {"colours": 2})
    shutil.rmtree(repository / "colours")
    watched.server.wait_for("nothing is unloaded")
    assert watched.served() == {"colours": 2}
    assert watched.classify().status_code == 200


def test_many_swaps_and_an_unload_leave_the_memory_as_it_was(tmp_path: Path) -> None:
    """By the kernel's account of the process: the weights are 48 MB, and what one swap kept would add up."""
    site = Site(tmp_path, 1, max_batch_rows=2)
    pid, room = site.server.process.pid, 40 << 20
    try:
        for version in (1, 2):
            write_colour_package(site.repository, "heavy", version=version, ballast_bytes=48 << 20)
        without = resident_bytes(pid)
        assert site.admin("PUT", "/models/heavy?version=1").status_code == 200
        loaded = resident_bytes(pid)
        for _ in range(3):
            for version in (2, 1):
                swapped = site.admin("PUT", f"/models/heavy?version={version}").json()
                assert (swapped["outcome"], swapped["drained"]) == ("swapped", True)
        wait_for_memory(pid, loaded + room)
        assert site.admin("DELETE", "/models/heavy").status_code == 200
        wait_for_memory(pid, without + room)
    finally:
        status = site.server.stop()
    assert status == 0, site.server.log


def wait_for_memory(pid: int, most: int) -> None:
    """A model that has been replaced goes with its threads, which may end a moment after the answer."""
    end = time.monotonic() + 10
    while resident_bytes(pid) >= most:
        assert time.monotonic() < end, f"{resident_bytes(pid):,} bytes, not less than {most:,}"
        time.sleep(0.05)
