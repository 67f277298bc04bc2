"""From the service's classifications to what goes over the wire: each number in its own place."""

from __future__ import annotations

import numpy as np

from app.api.results import image_result, video_result
from app.serving.results import Classification, ClipResult, Latency, ModelIdentity, Prediction

IDENTITY = ModelIdentity("m", 3, "openvino", "bf16", demo=False, random_weights=False, noop=False)
LATENCY = Latency(0.001, 0.002, 0.003, 0.0040006)


def test_each_number_of_an_image_is_in_its_own_place() -> None:
    predictions = (Prediction(7, "cat", 0.12345678), Prediction(8, "dog", 1.00001), Prediction(9, "cow", -1e-5))
    features = np.array([0.5, 2.0], np.float32)
    outcome = Classification(IDENTITY, predictions, LATENCY, 4, features=features)
    answer = image_result(outcome, "r", upload_s=0.01, total_s=0.5).model_dump(exclude_none=True)
    assert answer["request_id"] == "r"
    assert answer["model"] == {"name": "m", "version": 3, "engine": "openvino", "precision": "bf16"}
    assert [each["probability"] for each in answer["predictions"]] == [0.123457, 1.0, 0.0]
    assert answer["latency_ms"] == {
        "upload": 10.0,
        "decode": 1.0,
        "queue": 2.0,
        "inference": 3.0,
        "postprocess": 4.001,
        "total": 500.0,
    }
    assert (answer["batch_rows"], answer["features"]) == (4, (0.5, 2.0))


def test_each_number_of_a_clip_is_in_its_own_place() -> None:
    clips = (ClipResult(0.12345, 2.5, 7, "cat", 0.7654321),)
    outcome = Classification(IDENTITY, (Prediction(7, "cat", 0.5),), LATENCY, 1, clips=clips)
    answer = video_result(outcome, "r", upload_s=0.01, total_s=0.5).model_dump(exclude_none=True)
    (clip,) = answer["clips"]
    assert clip == {"start_s": 0.123, "end_s": 2.5, "class_id": 7, "label": "cat", "probability": 0.765432}
    assert "features" not in answer
