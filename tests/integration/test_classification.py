"""Classification over HTTP against a real server process: every way in, and what comes out."""

from __future__ import annotations

import base64

import httpx
import pytest
from colours import BLUE, GREEN, RED, image_of, video_of


def top(result: dict[str, object]) -> str:
    predictions = result["predictions"]
    assert isinstance(predictions, list)
    return str(predictions[0]["label"])


def test_an_image_in_a_part_named_file_gets_the_contract_s_result(client: httpx.Client) -> None:
    response = client.post("/classify/image", files={"file": ("any name.txt", image_of(GREEN))})
    result = response.json()
    assert response.status_code == 200
    assert list(result) == ["request_id", "model", "predictions", "latency_ms", "batch_rows"]
    assert result["model"] == {"name": "colours", "version": 1, "engine": "onnxruntime", "precision": "fp32"}
    assert top(result) == "green"
    assert [each["class_id"] for each in result["predictions"]] == [1, 0, 2]
    assert sum(each["probability"] for each in result["predictions"]) == pytest.approx(1, abs=1e-4)
    assert list(result["latency_ms"]) == ["upload", "decode", "queue", "inference", "postprocess", "total"]
    assert all(value >= 0 for value in result["latency_ms"].values())
    assert result["batch_rows"] == 1


def test_the_timings_and_the_id_go_out_as_headers_too(client: httpx.Client) -> None:
    response = client.post("/classify/image", files={"file": image_of()}, headers={"X-Request-ID": "mine-1"})
    assert response.headers["x-request-id"] == response.json()["request_id"] == "mine-1"
    names = [part.partition(";")[0] for part in response.headers["server-timing"].split(", ")]
    assert names == ["upload", "decode", "queue", "inference", "postprocess", "total"]


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/octet-stream", None])
def test_an_image_is_taken_as_the_raw_body(client: httpx.Client, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = client.post("/classify/image", content=image_of(BLUE), headers=headers)
    assert top(response.json()) == "blue"


def test_a_raw_body_may_come_in_chunks_without_a_length(client: httpx.Client) -> None:
    data = image_of(RED, (640, 480), "PNG")
    chunks = (data[start : start + 100] for start in range(0, len(data), 100))
    response = client.post("/classify/image", content=chunks, headers={"content-type": "image/png"})
    assert response.request.headers["transfer-encoding"] == "chunked"
    assert top(response.json()) == "red"


def test_images_come_as_base64_in_json(client: httpx.Client) -> None:
    images = [{"b64": base64.b64encode(image_of(colour)).decode()} for colour in (RED, GREEN, BLUE)]
    assert top(client.post("/classify/image", json={"images": images[:1]}).json()) == "red"
    several = client.post("/classify/image", json={"images": images}).json()
    assert [top(result) for result in several["results"]] == ["red", "green", "blue"]


def test_of_several_images_each_has_its_own_outcome_in_the_order_sent(client: httpx.Client) -> None:
    bodies = [image_of(RED), b"this is no image", image_of(BLUE), image_of(GREEN)[:200], b""]
    response = client.post("/classify/image", files=[("file", body) for body in bodies])
    results = response.json()["results"]
    assert response.status_code == 200
    assert [top(results[0]), top(results[2])] == ["red", "blue"]
    assert [results[1]["status"], results[3]["status"], results[4]["status"]] == [415, 422, 400]
    assert {each["request_id"] for each in results} == {response.json()["request_id"]}


def test_top_k_bounds_the_predictions_and_more_than_there_are_means_all(client: httpx.Client) -> None:
    for asked, given in ((1, 1), (2, 2), (1000, 3)):
        response = client.post("/classify/image", params={"top_k": asked}, files={"file": image_of()})
        assert len(response.json()["predictions"]) == given


def test_a_video_names_each_clip_s_span_and_class(client: httpx.Client) -> None:
    data = video_of(RED, GREEN, BLUE, seconds_each=2.0)
    response = client.post("/classify/video", params={"clips": 3, "crops": 3}, files={"file": data})
    result = response.json()
    assert response.status_code == 200
    assert result["model"]["name"] == "colours_video"
    assert [clip["label"] for clip in result["clips"]] == ["red", "green", "blue"]
    starts = [clip["start_s"] for clip in result["clips"]]
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert result["clips"][2]["end_s"] == pytest.approx(6.0, abs=0.1)


def test_a_video_is_taken_as_the_raw_body(client: httpx.Client) -> None:
    response = client.post("/classify/video", content=video_of(BLUE), headers={"content-type": "video/mp4"})
    assert top(response.json()) == "blue"
    assert len(response.json()["clips"]) == 1


def test_models_lists_what_is_loaded(client: httpx.Client) -> None:
    listing = client.get("/models").json()["models"]
    assert [entry["name"] for entry in listing] == ["colours", "colours_video"]
    entry = listing[0]
    assert (entry["state"], entry["task"], entry["classes"], entry["licence"]) == ("ready", "image", 3, "none")
    assert entry["default"] is True
    assert entry["engine"]["name"] == "onnxruntime"
    assert [cost["rows"] for cost in entry["batch_curve"]][:2] == [1, 2]
    detail = client.get("/models/colours").json()
    assert detail["labels"] == ["red", "green", "blue"]
    assert {key: value for key, value in detail.items() if key != "labels"} == entry


def test_the_server_says_where_to_look(client: httpx.Client) -> None:
    assert client.get("/").json()["docs"] == "/docs"
    browser = client.get("/", headers={"accept": "text/html"})
    assert (browser.status_code, browser.headers["location"]) == (307, "/docs")


def test_no_answer_names_the_software_and_its_version(client: httpx.Client) -> None:
    assert "server" not in client.get("/models").headers
