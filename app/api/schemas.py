"""What goes over the wire: pydantic models that write the JSON of every answer and document it in OpenAPI."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Problem(_Wire):
    """An error, as RFC 9457 writes it (`application/problem+json`)."""

    type: str
    """A reference to the description of this kind of problem."""
    title: str
    status: int = Field(ge=400, le=599)
    detail: str
    """What went wrong this time, and what to do about it."""
    code: str
    """A stable word for programs."""
    request_id: str


class Model(_Wire):
    """Who answered. `demo`, `random_weights` and `noop` appear only when they are true."""

    name: str
    version: int
    engine: str
    precision: str
    demo: Literal[True] | None = None
    """A small model that shows that the server works; its accuracy is modest."""
    random_weights: Literal[True] | None = None
    """Never trained: the predictions mean nothing."""
    noop: Literal[True] | None = None
    """The model is not run at all (HIERA_ENGINE=noop): the predictions mean nothing."""


class ClassPrediction(_Wire):
    class_id: int
    label: str
    probability: float = Field(ge=0, le=1)


class Clip(_Wire):
    """One temporal view of a video, and its most probable class."""

    start_s: float
    end_s: float
    class_id: int
    label: str
    probability: float = Field(ge=0, le=1)


class LatencyMs(_Wire):
    """Where the time went, in milliseconds. `decode` holds the wait for a media worker, `queue` that for the engine."""

    upload: float
    decode: float
    queue: float
    inference: float
    postprocess: float
    total: float


class ImageResult(_Wire):
    """The answer for one image."""

    request_id: str
    model: Model
    predictions: tuple[ClassPrediction, ...]
    """The most probable classes first."""
    latency_ms: LatencyMs
    batch_rows: int
    """Rows of the batch that this image was classified in."""
    features: tuple[float, ...] | None = None
    """What the classifier read of it, float32; with `features=true` only. Of a video the mean over its views."""


class VideoResult(ImageResult):
    """The answer for one video: the probabilities of all views, averaged."""

    clips: tuple[Clip, ...]
    """The spans that were looked at, in seconds of the file, each with its own top class."""


class ImageResults(_Wire):
    """The answer for several images: a result or a problem for each, in the order sent."""

    request_id: str
    results: tuple[ImageResult | Problem, ...]


class EngineTrial(_Wire):
    """A candidate of `engine=auto`: the time of a batch of one row if it agreed with the reference, else why not."""

    engine: str
    milliseconds: float | None
    detail: str


class Engine(_Wire):
    """What computes, and why it was chosen."""

    name: str
    precision: str
    device: str
    detail: str
    """Threads, versions and the like."""
    chosen: str
    """Why this engine serves."""
    trials: tuple[EngineTrial, ...]


class BatchCost(_Wire):
    """The measured time of a batch."""

    rows: int
    milliseconds: float


class Accuracy(_Wire):
    """A measured or published accuracy."""

    dataset: str
    top1: float
    """Per cent."""
    how: str


class ModelEntry(_Wire):
    """One package of the repository. What is not known, because it is still loading or has failed, is null."""

    name: str
    version: int
    state: Literal["loading", "ready", "failed", "unloading"]
    reason: str | None
    """Why it failed, why its engine is being rebuilt, or why a newer version was refused."""
    default: bool
    """Whether it answers requests of its task that name no model."""
    task: Literal["image", "video"] | None
    description: str | None
    variant: str | None
    demo: bool | None
    """A small model that shows that the server works; its accuracy is modest."""
    random_weights: bool | None
    """Never trained: the predictions mean nothing."""
    noop: bool
    """The model is not run at all (HIERA_ENGINE=noop): the predictions mean nothing."""
    classes: int | None
    feature_dim: int | None
    """Width of the features; 0 where the engine gives none, null unless ready."""
    input_shape: tuple[int, ...] | None
    """Of one row: height, width, 3; for video with the frames in front."""
    parameters: int | None
    precision: str | None
    """What the engine computes in."""
    engine: Engine | None
    batch_curve: tuple[BatchCost, ...]
    useful_batch_rows: int | None
    """The smallest batch within 5% of the best throughput."""
    instances: int | None
    """Engines that take batches side by side; `batch_curve` is that of one while all run."""
    queue_rows: int
    """Rows that wait for the engine now."""
    weights: str | None
    """Where the weights came from."""
    licence: str | None
    commercial_use: bool | None
    accuracy: tuple[Accuracy, ...]


class ModelDetail(ModelEntry):
    """One package, with its classes by name."""

    labels: tuple[str, ...] | None
    """In the order of class_id; null unless ready."""


class Models(_Wire):
    """Every package that was found, by name."""

    models: tuple[ModelEntry, ...]


class VersionFolder(_Wire):
    """A version of a model in the repository."""

    version: int
    fingerprint: str | None
    """SHA-256 of its manifest, which holds the hashes of all its files; null when it cannot be read."""
    serves: bool


class ModelStanding(_Wire):
    """A model, on disk and in service."""

    name: str
    version: int | None
    """The one that the server has; null when it has none."""
    state: Literal["loading", "ready", "failed", "unloading"] | None
    reason: str | None
    """Why it failed, why its engine is being rebuilt, or why another version was refused."""
    fingerprint: str | None
    """Of the package that serves."""
    on_disk: tuple[VersionFolder, ...]
    pending: Literal["load", "swap", "unload"] | None
    """What a reload would do about it."""


class ModelStandings(_Wire):
    """Every model, on disk or in service, by name."""

    models: tuple[ModelStanding, ...]


class ModelChange(_Wire):
    """What became of a model."""

    name: str
    outcome: Literal["loaded", "swapped", "unloaded", "unchanged", "refused"]
    """unchanged: this very package serves already. refused: what served before serves on."""
    version: int | None
    """The one that serves now; null when none does."""
    replaced: int | None
    """The version that served before."""
    golden: str | None
    """What the golden check said of the new version."""
    reason: str | None
    """Why it was refused."""
    ready_seconds: float
    """Until requests went to the new version, or for an unload were refused."""
    drain_seconds: float
    """From there until what was replaced had answered its last request and its engine had ended."""
    drained: bool
    """Whether it had, within HIERA_MODEL_DRAIN_SECONDS."""


class ModelChanges(_Wire):
    """What a reload has changed; nothing, where all was as on disk."""

    changes: tuple[ModelChange, ...]


class Health(_Wire):
    """An answer that says yes; the no is a problem with the reason."""

    status: Literal["live", "ready"]


class Signpost(_Wire):
    """Where to look."""

    service: str
    docs: str
    openapi: str
    models: str
    ready: str
    metrics: str
    classify: tuple[str, ...]


class Images(_Wire):
    """A JSON request: images in base64."""

    class Image(_Wire):
        b64: str = Field(json_schema_extra={"contentEncoding": "base64"})
        """The bytes of an image file, in standard base64 with padding (RFC 4648, section 4)."""

    images: list[Image] = Field(min_length=1)
