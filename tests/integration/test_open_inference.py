"""The Open Inference Protocol over HTTP against a real server process: what clients of Triton and KServe do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from colours import BLUE, GREEN, RED, image_of, video_of
from inference_http import (
    HEADER,
    Call,
    check_same,
    expected,
    files_call,
    json_call,
    metrics,
    noise,
    post,
    problem,
    rows_call,
    tensors,
    wait_until,
)
from raw_http import connect, post_head
from running_server import RunningServer

PROBABILITIES, FEATURES = {"name": "probabilities"}, {"name": "features"}
MAX_QUEUE_ROWS = 40


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, feature_repository: Path) -> Iterator[RunningServer]:
    """A ready server of one process."""
    settings = {"max_queue_rows": MAX_QUEUE_ROWS, "max_files_per_request": 4, "default_image_model": "colours"}
    server = RunningServer(tmp_path_factory.mktemp("server"), feature_repository, settings)
    yield server.wait_until_ready()
    assert server.stop() == 0, server.log
    assert "Traceback" not in server.log


@pytest.fixture
def http(running: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=60) as client:
        yield client


def test_the_server_says_who_it_is_and_how_it_is(http: httpx.Client) -> None:
    metadata = http.get("/v2").json()
    assert metadata["name"] == "hiera-serve"
    assert {"binary_tensor_data", "classification"} <= set(metadata["extensions"])
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/colours/ready"):
        assert http.get(path).status_code == http.head(path).status_code == 200


def test_a_model_says_what_it_takes_and_gives(http: httpx.Client) -> None:
    for path in ("/v2/models/colours_video", "/v2/models/colours_video/versions/1"):
        metadata = http.get(path).json()
        assert (metadata["name"], metadata["versions"]) == ("colours_video", ["1"])
        assert metadata["inputs"] == [{"name": "rows", "datatype": "UINT8", "shape": [-1, 4, 8, 8, 3]}]
        assert metadata["outputs"] == [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "features", "datatype": "FP32", "shape": [-1, 3]},
        ]
    assert http.get("/v2/models/colours/versions/1/ready").status_code == 200


def test_a_model_without_features_gives_none(http: httpx.Client, feature_repository: Path) -> None:
    outputs = http.get("/v2/models/plain").json()["outputs"]
    assert outputs == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]
    check_same(tensors(post(http, "plain", rows_call(noise(2)))), expected(feature_repository, "plain", noise(2)))
    refused = problem(post(http, "plain", rows_call(noise(2), [FEATURES])), 422, "invalid_parameter")
    assert "gives no output 'features'" in refused


def test_classify_adds_the_same_features_when_asked(http: httpx.Client) -> None:
    photo, clip = image_of(GREEN), video_of(GREEN)
    for route, model, file in (("image", "colours", photo), ("video", "colours_video", clip)):
        asked = {"model": model, "features": "true"}
        result = http.post(f"/classify/{route}", params=asked, content=file).json()
        ran = tensors(post(http, model, files_call([file], [FEATURES])))["features"]
        np.testing.assert_array_equal(np.float32(result["features"]), ran[0])
        assert len(result["features"]) == http.get(f"/models/{model}").json()["feature_dim"] == 3
    several = http.post("/classify/image", params={"features": "true"}, files=[("file", photo), ("file", b"x")]).json()
    assert [each.get("features") is not None for each in several["results"]] == [True, False]
    refused = http.post("/classify/image?model=plain&features=true", content=photo).json()
    assert (refused["status"], refused["code"]) == (422, "invalid_parameter")
    assert "plain gives no features" in refused["detail"]


@pytest.mark.parametrize("model", ["nothing", "colours/versions/2", "colours/versions/01", "nothing/versions/1"])
def test_another_model_or_version_is_unknown(http: httpx.Client, model: str) -> None:
    answers = [http.get(f"/v2/models/{model}"), http.get(f"/v2/models/{model}/ready")]
    for answer in [*answers, post(http, model, rows_call(noise(1)))]:
        problem(answer, 404, "unknown_model")


def test_another_address_or_method_is_refused_in_the_protocol_s_words_too(http: httpx.Client) -> None:
    problem(http.get("/v2/nothing"), 404, "not_found")
    problem(http.get("/v2/models/colours/infer"), 405, "method_not_allowed")
    refused = problem(http.post("/v2/models/colours/infer?timeout_ms=5"), 422, "invalid_parameter")
    assert "takes no query" in refused


@pytest.mark.parametrize("model", ["colours", "colours_video", "colours/versions/1"])
def test_rows_get_what_the_graph_gives_for_them(http: httpx.Client, feature_repository: Path, model: str) -> None:
    rows = noise(3, "video" if "video" in model else "image")
    wanted = expected(feature_repository, model.partition("/")[0], rows)
    response = post(http, model, rows_call(rows, id="42"))
    check_same(tensors(response), wanted)
    assert response.headers["content-type"] == "application/octet-stream"
    document = json.loads(response.content[: int(response.headers[HEADER])])
    assert (document["model_name"], document["model_version"]) == (model.partition("/")[0], "1")
    assert document["id"] == "42"
    for flat in (True, False):
        in_json = post(http, model, json_call(rows, flat=flat))
        check_same(tensors(in_json), wanted)
        assert in_json.headers["content-type"] == "application/json"
        assert HEADER not in in_json.headers


def test_outputs_come_as_they_were_asked_for(http: httpx.Client, feature_repository: Path) -> None:
    rows = noise(4)
    wanted = expected(feature_repository, "colours", rows)
    in_json = FEATURES | {"parameters": {"binary_data": False}}
    response = post(http, "colours", rows_call(rows, [in_json, PROBABILITIES]))
    check_same(tensors(response), {"features": wanted["features"], "probabilities": wanted["probabilities"]})
    assert len(response.content) - int(response.headers[HEADER]) == 4 * 3 * 4
    alone = post(http, "colours", rows_call(rows, [FEATURES]))
    check_same(tensors(alone), {"features": wanted["features"]})


def test_classes_are_named(http: httpx.Client) -> None:
    rows = np.stack([np.full((8, 8, 3), colour, np.uint8) for colour in (GREEN, BLUE)])
    top = PROBABILITIES | {"parameters": {"classification": 2}}
    for call in (rows_call(rows, [top]), json_call(rows, outputs=[top])):
        names = tensors(post(http, "colours", call))["probabilities"]
        assert names.shape == (2, 2)
        found = [text.split(":") for text in names[:, 0]]
        assert [(index, label) for _, index, label in found] == [("1", "green"), ("2", "blue")]
        assert all(0.5 < float(value) <= 1 and len(value) == 8 for value, _, _ in found)


def test_many_rows_are_one_request(http: httpx.Client, feature_repository: Path) -> None:
    rows = noise(MAX_QUEUE_ROWS)
    check_same(tensors(post(http, "colours", rows_call(rows))), expected(feature_repository, "colours", rows))


def test_more_rows_than_the_queue_ever_holds_are_too_many_rather_than_too_many_now(http: httpx.Client) -> None:
    problem(post(http, "colours", rows_call(noise(MAX_QUEUE_ROWS + 1))), 413, "limit_exceeded")


def test_files_get_what_they_get_when_they_are_classified(http: httpx.Client) -> None:
    pictures = [image_of(RED), image_of(BLUE, (320, 200), "PNG"), image_of((90, 120, 100), (48, 64), "WEBP")]
    for task, model, files in (
        ("image", "colours", pictures),
        ("video", "colours_video", [video_of(GREEN, BLUE)]),
    ):
        given = tensors(post(http, model, files_call(files)))
        assert given["features"].shape == (len(files), 3)
        for file, probabilities in zip(files, given["probabilities"], strict=True):
            answer = http.post(f"/classify/{task}", params={"model": model}, content=file).json()
            classified = {each["class_id"]: each["probability"] for each in answer["predictions"]}
            # They are rounded to six digits, and the order of sums may be another one in a batch of another size.
            assert [classified[index] for index in range(3)] == pytest.approx(probabilities.tolist(), abs=1e-6)


def test_one_bad_file_fails_the_request(http: httpx.Client) -> None:
    problem(post(http, "colours", files_call([image_of(), b"no picture"])), 415, "unsupported_media")
    problem(post(http, "colours", files_call([image_of(), b""])), 400, "malformed_request")
    problem(post(http, "colours", files_call([image_of()] * 5)), 413, "limit_exceeded")
    problem(post(http, "colours_video", files_call([video_of()] * 2)), 413, "limit_exceeded")
    assert post(http, "colours", files_call([image_of()] * 4)).status_code == 200


def test_a_time_limit_of_the_caller_counts(http: httpx.Client) -> None:
    for call in (rows_call(noise(1), parameters={"timeout": 1}), files_call([image_of()], parameters={"timeout": 1})):
        problem(post(http, "colours", call), 504, "deadline_exceeded")
    assert post(http, "colours", rows_call(noise(1), parameters={"timeout": 60_000_000})).status_code == 200


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (Call(b"", {}), 400),
        (Call(b"{}", {}), 400),
        (Call(b"{}", {HEADER: "x"}), 400),
        (Call(b"{}", {HEADER: "3"}), 400),
        (Call(b"{}", {HEADER: "1"}), 400),
        (Call(b" " * 2**17, {HEADER: str(2**16 + 1)}), 413),
        (Call(b" " * (2**20 + 1), {}), 413),
        (Call(rows_call(noise(2)).content[:-1], rows_call(noise(2)).headers), 400),
        (Call(rows_call(noise(2)).content + b"x", rows_call(noise(2)).headers), 400),
        (rows_call(noise(2).astype(np.float32)), 400),
        (rows_call(noise(1, "video")), 422),
        (Call(json_call(noise(1)).content.replace(b"[1, 8", b"[" + b"9" * 4300 + b", 8"), {}), 400),
    ],
    ids=["nothing", "no inputs", "no number", "beyond", "half", "long head", "long JSON", "cut off", "goes on", "float",
         "video", "enormous"],
)  # fmt: skip
def test_a_request_of_another_form_is_refused_and_the_next_one_is_answered(
    http: httpx.Client, call: Call, status: int
) -> None:
    code = {400: "malformed_request", 413: "limit_exceeded", 422: "invalid_parameter"}[status]
    problem(post(http, "colours", call), status, code)
    assert post(http, "colours", rows_call(noise(1))).status_code == 200


def test_a_body_may_come_in_chunks_without_a_length(http: httpx.Client, feature_repository: Path) -> None:
    call = rows_call(noise(3))
    chunks = (call.content[start : start + 50] for start in range(0, len(call.content), 50))
    response = http.post("/v2/models/colours/infer", content=chunks, headers=call.headers)
    assert response.request.headers["transfer-encoding"] == "chunked"
    check_same(tensors(response), expected(feature_repository, "colours", noise(3)))
    call = files_call([image_of(RED), image_of(GREEN)])
    chunks = (call.content[start : start + 7] for start in range(0, len(call.content), 7))
    response = http.post("/v2/models/colours/infer", content=chunks, headers=call.headers)
    assert tensors(response)["probabilities"].argmax(1).tolist() == [0, 1]


def test_a_compressed_body_is_not_read(http: httpx.Client) -> None:
    packed = Call(gzip.compress(json_call(noise(1)).content), {})
    problem(post(http, "colours", packed, **{"Content-Encoding": "gzip"}), 415, "unsupported_media")


def test_requests_are_counted_like_those_of_the_other_routes(running: RunningServer, http: httpx.Client) -> None:
    before = metrics(running.url)
    answer = post(http, "colours", rows_call(noise(5)))
    names = [part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert names == ["upload", "decode", "queue", "inference", "postprocess", "total"]
    assert post(http, "colours_video", files_call([video_of(RED)])).status_code == 200
    assert post(http, "colours", files_call([b"no picture"])).status_code == 415
    after = metrics(running.url)
    for series, rise in {
        'hiera_requests_total{code="200",model="colours",task="image"}': 1,
        'hiera_requests_total{code="200",model="colours_video",task="video"}': 1,
        'hiera_requests_total{code="415",model="colours",task="image"}': 1,
        'hiera_rows_total{model="colours"}': 5,
        'hiera_rows_total{model="colours_video"}': 1,
        'hiera_stage_duration_seconds_count{model="colours",stage="upload"}': 2,
        'hiera_stage_duration_seconds_count{model="colours",stage="inference"}': 1,
        'hiera_stage_duration_seconds_count{model="colours",stage="postprocess"}': 1,
        'hiera_stage_duration_seconds_count{model="colours_video",stage="decode"}': 1,
    }.items():
        assert after[series] - before[series] == rise, series


def test_a_caller_that_leaves_in_the_middle_of_its_rows_holds_nothing(running: RunningServer) -> None:
    left = 'hiera_requests_total{code="499",model="colours",task="image"}'
    cancelled = 'hiera_cancelled_total{model="colours",stage="upload"}'
    before = metrics(running.url)
    call = rows_call(noise(8))
    headers = [f"{name}: {value}" for name, value in call.headers.items() if name == HEADER]
    head = post_head("/v2/models/colours/infer", "", f"Content-Length: {len(call.content)}", *headers)
    with connect(running.port) as connection:
        connection.sendall(head + call.content[:-500])
        wait_until(lambda: metrics(running.url)["hiera_in_flight_rows"] == 8)
        assert metrics(running.url)["hiera_in_flight_bytes"] == 8 * 8 * 8 * 3 + len(call.content)
    wait_until(lambda: metrics(running.url)["hiera_in_flight_rows"] == 0)
    after = metrics(running.url)
    assert after["hiera_in_flight_bytes"] == 0
    assert (after[left] - before[left], after[cancelled] - before[cancelled]) == (1, 1)
