"""`/docs` in a real browser: drawn under its own content security policy, and its form classifies what one drops in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
from colours import video_of
from PIL import Image
from running_server import RunningServer
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "app" / "load" / "sample.jpg"
PATIENCE_S = 30.0
KEY = "a-key-of-this-test"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The models that ship, and a key for classifying."""
    folder = tmp_path_factory.mktemp("server")
    running = RunningServer(folder, REPOSITORY / "model_repo", {"api_keys": KEY})
    yield running.wait_until_ready()
    assert running.stop() == 0, running.log


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    profile = tmp_path_factory.mktemp("profile")
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, server: RunningServer) -> webdriver.Chrome:
    """The page, freshly loaded and drawn."""
    browser.get(f"{server.url}/docs")
    WebDriverWait(browser, PATIENCE_S).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, "#operations details")
    )
    return browser


def console(page: webdriver.Chrome) -> list[str]:
    """What the browser has complained of since the last look."""
    return [entry["message"] for entry in page.get_log("browser")]  # type: ignore[no-untyped-call]


def answer(page: webdriver.Chrome, file: Path | None, key: str = KEY) -> Any:
    """What the form shows after a click: parsed, or as text where it is no JSON."""
    if file is not None:
        page.find_element(By.ID, "try-file").send_keys(str(file))
    page.find_element(By.ID, "try-key").send_keys(key)
    page.find_element(By.CSS_SELECTOR, "#try button").click()
    shown = page.find_element(By.ID, "try-answer")
    WebDriverWait(page, PATIENCE_S).until(lambda driver: shown.text not in ("", "…"))
    return json.loads(shown.text) if shown.text.startswith("{") else shown.text


def test_the_page_is_drawn_and_its_policy_forbids_nothing_that_it_does(page: webdriver.Chrome) -> None:
    console(page)
    page.refresh()
    WebDriverWait(page, PATIENCE_S).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "#schemas details"))
    titles = [each.text for each in page.find_elements(By.CSS_SELECTOR, "#operations summary")]
    assert any(title.startswith("POST /classify/image") for title in titles)
    assert any(title.startswith("GET /health/ready") for title in titles)
    assert console(page) == []
    asked = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert {url.rpartition("/")[2] for url in asked} >= {"docs.css", "docs.js", "openapi.json"}
    assert all(url.startswith(page.current_url.rpartition("/")[0]) for url in asked)


def test_an_operation_opens_to_its_parameters_and_answers(page: webdriver.Chrome) -> None:
    operation = next(
        each
        for each in page.find_elements(By.CSS_SELECTOR, "#operations details")
        if each.text.startswith("POST /classify/image")
    )
    assert "top_k" not in operation.text
    operation.find_element(By.TAG_NAME, "summary").click()
    for said in ("top_k", "timeout_ms", "multipart/form-data", "429"):
        assert said in operation.text


def test_a_photo_is_classified(page: webdriver.Chrome) -> None:
    result = answer(page, SAMPLE)
    assert result["model"]["name"] == "hiera_demo_objects"
    assert len(result["predictions"]) == 5
    assert result["latency_ms"]["total"] > 0


def test_a_video_goes_to_the_video_model(page: webdriver.Chrome, tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(video_of((200, 30, 30), (30, 30, 200), size=(160, 120)))
    result = answer(page, file)
    assert result["model"]["name"] == "hiera_demo_camera_motion"
    assert result["predictions"]


def test_a_broken_file_is_explained(page: webdriver.Chrome, tmp_path: Path) -> None:
    broken = tmp_path / "half.png"
    Image.effect_noise((64, 64), 50).save(broken)
    broken.write_bytes(broken.read_bytes()[:900])
    problem = answer(page, broken)
    assert problem["status"] == 422
    page.get(urljoin(page.current_url, problem["type"]))
    assert page.find_element(By.ID, problem["code"]).is_displayed()


def test_without_the_key_the_form_shows_the_refusal(page: webdriver.Chrome) -> None:
    assert answer(page, SAMPLE, key="")["status"] == 401
    page.refresh()
    assert answer(page, SAMPLE, key="another")["status"] == 401


def test_the_form_asks_for_a_file(page: webdriver.Chrome) -> None:
    assert answer(page, None) == "Choose a file first."
