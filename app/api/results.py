"""From the service's classifications to what goes over the wire."""

from __future__ import annotations

from typing import Any

from app.api.schemas import ClassPrediction, Clip, ImageResult, LatencyMs, Model, VideoResult
from app.serving.results import Classification, ModelIdentity

# Probabilities come from float32; further digits are noise.
_PROBABILITY_DIGITS = 6
_MS_DIGITS = 3


def image_result(outcome: Classification, request_id: str, *, upload_s: float, total_s: float) -> ImageResult:
    """The answer for one image; `upload_s` and `total_s` are those of the whole request, in seconds."""
    return ImageResult(**_common(outcome, request_id, upload_s, total_s))


def video_result(outcome: Classification, request_id: str, *, upload_s: float, total_s: float) -> VideoResult:
    """The answer for one video, with its clips."""
    clips = tuple(
        Clip(
            start_s=round(clip.start_s, 3),
            end_s=round(clip.end_s, 3),
            class_id=clip.class_id,
            label=clip.label,
            probability=_probability(clip.probability),
        )
        for clip in outcome.clips
    )
    return VideoResult(**_common(outcome, request_id, upload_s, total_s), clips=clips)


def model_of(identity: ModelIdentity) -> Model:
    """Who answers; the loud flags are absent when they are false."""
    return Model(
        name=identity.name,
        version=identity.version,
        engine=identity.engine,
        precision=identity.precision,
        demo=identity.demo or None,
        random_weights=identity.random_weights or None,
        noop=identity.noop or None,
    )


def _common(outcome: Classification, request_id: str, upload_s: float, total_s: float) -> dict[str, Any]:
    latency = outcome.latency
    return {
        "request_id": request_id,
        "model": model_of(outcome.model),
        "predictions": tuple(
            ClassPrediction(class_id=each.class_id, label=each.label, probability=_probability(each.probability))
            for each in outcome.predictions
        ),
        "latency_ms": LatencyMs(
            upload=_ms(upload_s),
            decode=_ms(latency.decode_s),
            queue=_ms(latency.queue_s),
            inference=_ms(latency.inference_s),
            postprocess=_ms(latency.postprocess_s),
            total=_ms(total_s),
        ),
        "batch_rows": outcome.batch_rows,
        "features": None if outcome.features is None else tuple(outcome.features.tolist()),
    }


def _probability(value: float) -> float:
    return min(1.0, max(0.0, round(value, _PROBABILITY_DIGITS)))


def _ms(seconds: float) -> float:
    return round(1000 * seconds, _MS_DIGITS)
