"""A loaded model as the service sees it: what it is, wants decoded and costs, and the door to its engines."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from app.engines.base import EngineInfo
from app.media.spec import DecodeJob, ImageSpec, MediaSpec, VideoSpec
from app.repository.manifest import Manifest, Preprocessing, Sampling
from app.serving.backlog import Lane
from app.serving.curve import BatchCurve, CostModel
from app.serving.dispatcher import Dispatcher
from app.serving.results import ModelIdentity


@dataclass(frozen=True)
class EngineTrial:
    """One candidate of `engine=auto`: its seconds for one row, None when refused or not raced; `detail` says why."""

    engine: str
    seconds: float | None
    detail: str


@dataclass(frozen=True)
class EngineChoice:
    """Which engine serves a model, why, and what the other candidates did."""

    engine: str
    reason: str
    trials: tuple[EngineTrial, ...] = ()


class LoadedModel:
    """A model that is ready to answer. Requests hold it (`retain`, `release`) so that it is unloaded after the last
    one.

    Attributes:
        manifest, labels: the package's.
        engine: what computes; `choice` says why it does.
        cost: seconds by batch size, followed while serving.
        dispatcher: where decoded rows go.
        instances: engines that take batches side by side.
        feature_dim: width of the features that they give beside probabilities; 0 without any.
        row_shape, row_nbytes: of one row, uint8.
        predict_s: seconds until so many rows are done by all engine instances together.
        lane: what admission counts its work under.
    """

    def __init__(
        self,
        manifest: Manifest,
        labels: tuple[str, ...],
        *,
        engine: EngineInfo,
        choice: EngineChoice,
        cost: CostModel,
        dispatcher: Dispatcher,
        instances: int = 1,
        feature_dim: int = 0,
        exact_images: bool = False,
    ) -> None:
        self.manifest = manifest
        self.labels = labels
        self.engine = engine
        self.choice = choice
        self.cost = cost
        self.dispatcher = dispatcher
        self.instances = instances
        self.feature_dim = feature_dim
        self.identity = ModelIdentity(
            name=manifest.name,
            version=manifest.version,
            engine=engine.name,
            precision=engine.precision,
            demo=manifest.demo,
            random_weights=manifest.random_weights,
            noop=engine.name == "noop",
        )
        self.row_shape = manifest.row_shape
        self.row_nbytes = int(np.prod(manifest.row_shape))
        # Not a method of this object: a cycle would be left to the garbage collector after an unload.
        self.predict_s = _predictor(cost.predict_s, instances)
        self.lane = Lane(
            manifest.name,
            engine.device,
            self.predict_s,
            measured_s=_predictor(cost.curve.predict_s, instances),
            batch_s=lambda: cost.batch_s(cost.curve.deep_rows),
        )
        self._spec = media_spec(manifest.preprocessing, manifest.sampling, exact_images=exact_images)
        self._single = DecodeJob(self._spec)
        self._users = 0
        self._idle = threading.Condition()

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def curve(self) -> BatchCurve:
        return self.cost.curve

    def job(self, clips: int = 1, crops: int = 1) -> DecodeJob:
        """What the media workers are asked for: the manifest's geometry and sampling."""
        return self._single if clips == crops == 1 else DecodeJob(self._spec, clips, crops)

    def retain(self) -> None:
        """A request begins to use the model."""
        with self._idle:
            self._users += 1

    def release(self) -> None:
        """A request is done with the model."""
        with self._idle:
            self._users -= 1
            if self._users == 0:
                self._idle.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Block until no request uses the model; False when `timeout_s` passed first."""
        with self._idle:
            return self._idle.wait_for(lambda: self._users == 0, timeout_s)


def _predictor(predict_s: Callable[[int], float], instances: int) -> Callable[[int], float]:
    return lambda rows: predict_s(-(-rows // instances))  # side by side, but none takes less than a whole row


def media_spec(geometry: Preprocessing, sampling: Sampling | None, *, exact_images: bool = False) -> MediaSpec:
    """What a manifest says of files, in the words of those who decode them."""
    if sampling is None:
        return ImageSpec(
            geometry.resize_short_side, geometry.height, geometry.width, geometry.interpolation, exact=exact_images
        )
    return VideoSpec(
        frames=sampling.frames,
        stride=sampling.stride,
        target_fps=sampling.target_fps,
        mode=sampling.mode,
        resize_short_side=geometry.resize_short_side,
        height=geometry.height,
        width=geometry.width,
        interpolation=geometry.interpolation,
    )
