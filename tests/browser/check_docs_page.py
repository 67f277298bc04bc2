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
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

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


def choose(page: webdriver.Chrome, file: Path) -> None:
    page.find_element(By.ID, "try-file").send_keys(str(file))


def classify(page: webdriver.Chrome, key: str = KEY) -> str:
    """Click, and wait for what is shown."""
    page.find_element(By.ID, "try-key").send_keys(key)
    page.find_element(By.CSS_SELECTOR, "#try button").click()
    shown = page.find_element(By.ID, "try-result")
    WebDriverWait(page, PATIENCE_S).until(lambda driver: shown.text not in ("", "…"))
    return shown.text


def whole_answer(page: webdriver.Chrome) -> Any:
    """The JSON below what is shown."""
    page.find_element(By.CSS_SELECTOR, "#try-raw summary").click()
    return json.loads(page.find_element(By.ID, "try-answer").text)


def answer(page: webdriver.Chrome, file: Path, key: str = KEY) -> Any:
    choose(page, file)
    classify(page, key)
    return whole_answer(page)


def test_the_page_is_drawn_and_its_policy_forbids_nothing_that_it_does(page: webdriver.Chrome) -> None:
    console(page)
    page.refresh()
    WebDriverWait(page, PATIENCE_S).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "#schemas details"))
    titles = [each.text for each in page.find_elements(By.CSS_SELECTOR, "#operations summary")]
    assert any(title.startswith("POST /classify/image") for title in titles)
    assert any(title.startswith("GET /health/ready") for title in titles)
    assert console(page) == []
    asked = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert {url.rpartition("/")[2] for url in asked} >= {"docs.css", "docs.js", "try.js", "openapi.json"}
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


def test_a_photo_is_shown_and_classified(page: webdriver.Chrome) -> None:
    choose(page, SAMPLE)
    picture = page.find_element(By.CSS_SELECTOR, "#try-view img")
    WebDriverWait(page, PATIENCE_S).until(lambda driver: picture.get_property("naturalWidth"))
    said = classify(page)
    result = whole_answer(page)
    assert result["model"]["name"] == "hiera_demo_objects"
    assert result["latency_ms"]["total"] > 0
    bars = page.find_elements(By.CSS_SELECTOR, "#try-result meter")
    assert [float(str(bar.get_property("value"))) for bar in bars] == [
        each["probability"] for each in result["predictions"]
    ]
    for text in ("hiera_demo_objects version 1", "small demo model", result["predictions"][0]["label"], "decode"):
        assert text in said
    assert console(page) == []


def test_a_video_goes_to_the_video_model_and_its_clip_can_be_looked_at(page: webdriver.Chrome, tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(video_of((200, 30, 30), (30, 30, 200), seconds_each=3.0, size=(160, 120)))
    result = answer(page, file)
    assert result["model"]["name"] == "hiera_demo_camera_motion"
    (clip,) = result["clips"]
    page.find_element(By.XPATH, f"//button[text()='{clip['start_s']:.2f} to {clip['end_s']:.2f} s']").click()
    video = page.find_element(By.CSS_SELECTOR, "#try-view video")
    WebDriverWait(page, PATIENCE_S).until(
        lambda driver: float(str(video.get_property("currentTime"))) > clip["start_s"]
    )
    assert console(page) == []


def test_models_that_are_ready_can_be_chosen(page: webdriver.Chrome, tmp_path: Path) -> None:
    names = ["the default", "hiera_demo_camera_motion (video)", "hiera_demo_objects (image)"]
    models = page.find_element(By.ID, "try-model")
    assert models.text == "the default"  # until a key says who asks
    page.find_element(By.ID, "try-key").send_keys(KEY, Keys.TAB)
    WebDriverWait(page, PATIENCE_S).until(lambda driver: models.text.splitlines() == names)
    Select(models).select_by_visible_text(names[1])
    file = tmp_path / "still.gif"  # a video for that model, a picture for the other
    Image.effect_noise((64, 64), 50).save(file)
    choose(page, file)
    assert "hiera_demo_camera_motion" in classify(page, key="")


def test_where_no_key_is_needed_the_models_are_there_at_once(browser: webdriver.Chrome, tmp_path: Path) -> None:
    server = RunningServer(tmp_path, REPOSITORY / "model_repo").wait_until_ready()
    try:
        browser.get(f"{server.url}/docs")
        models = browser.find_element(By.ID, "try-model")
        WebDriverWait(browser, PATIENCE_S).until(lambda driver: "hiera_demo_objects (image)" in models.text)
    finally:
        assert server.stop() == 0


def test_a_file_can_be_dropped(page: webdriver.Chrome) -> None:
    page.execute_script(
        """const dropped = new DataTransfer();
        dropped.items.add(new File([new Uint8Array([1, 2, 3])], "dropped.txt"));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: dropped, bubbles: true }));"""
    )
    said = classify(page)
    assert said.startswith("415 Unsupported Media Type, unsupported_media: ")
    assert not page.find_element(By.ID, "try-view").is_displayed()


def test_a_broken_file_is_explained(page: webdriver.Chrome, tmp_path: Path) -> None:
    broken = tmp_path / "half.png"
    Image.effect_noise((64, 64), 50).save(broken)
    broken.write_bytes(broken.read_bytes()[:900])
    problem = answer(page, broken)
    assert problem["status"] == 422
    assert "the upload may be incomplete" in page.find_element(By.ID, "try-result").text
    page.get(urljoin(page.current_url, problem["type"]))
    assert page.find_element(By.ID, problem["code"]).is_displayed()


def test_without_the_key_the_form_shows_the_refusal(page: webdriver.Chrome) -> None:
    assert answer(page, SAMPLE, key="")["status"] == 401
    page.refresh()
    assert answer(page, SAMPLE, key="another")["status"] == 401


def test_the_form_asks_for_a_file(page: webdriver.Chrome) -> None:
    assert classify(page) == "Choose a file first."
    assert not page.find_element(By.ID, "try-raw").is_displayed()
