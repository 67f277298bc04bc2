"""What goes into the service and what comes out: frozen data that every face of it (HTTP, command line) shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Task = Literal["image", "video"]


@dataclass(frozen=True)
class ClassifyOptions:
    """What a caller may choose for one request.

    Attributes:
        model: a model's name; None takes the task's default.
        top_k: how many classes to name; more than the model has means all.
        timeout_ms: from the start of the upload to the answer; None takes the server's own bound.
        clips: temporal views of a video, spread evenly over it.
        crops: spatial views of each clip: 1 (centre) or 3.
        features: whether what the classifier read is wanted, too.
    """

    model: str | None = None
    top_k: int = 5
    timeout_ms: int | None = None
    clips: int = 1
    crops: int = 1
    features: bool = False


@dataclass(frozen=True)
class ModelIdentity:
    """Who answered. `noop` is loud on purpose: such an answer means nothing."""

    name: str
    version: int
    engine: str
    precision: str
    demo: bool
    random_weights: bool
    noop: bool


@dataclass(frozen=True)
class Prediction:
    class_id: int
    label: str
    probability: float


@dataclass(frozen=True)
class ClipResult:
    """The top class of one clip (its crops averaged) and the span of the file, in seconds, that the clip covers."""

    start_s: float
    end_s: float
    class_id: int
    label: str
    probability: float


@dataclass(frozen=True)
class Latency:
    """Where the time went, in seconds. `decode_s` holds the wait for a media worker, `queue_s` that for the engine."""

    decode_s: float
    queue_s: float
    inference_s: float
    postprocess_s: float


@dataclass(frozen=True)
class Outputs:
    """What the model itself gave, and how.

    Attributes:
        probabilities: float32 [n, classes].
        features: float32 [n, D], what the classifier read; None unless they were asked for.
        latency: `decode_s` is 0 for rows that came decoded.
        batch_rows: rows of the largest batch that one of these rode in.
    """

    model: ModelIdentity
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32] | None
    latency: Latency
    batch_rows: int


@dataclass(frozen=True)
class Classification:
    """The answer for one file.

    Attributes:
        predictions: the most probable classes first.
        batch_rows: rows of the largest batch that it rode in.
        clips: of a video, the spans that were looked at.
        features: float32 [D], averaged over the views of a video; None unless they were asked for.
    """

    model: ModelIdentity
    predictions: tuple[Prediction, ...]
    latency: Latency
    batch_rows: int
    clips: tuple[ClipResult, ...] = ()
    features: NDArray[np.float32] | None = None
