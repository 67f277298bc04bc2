"""A model as requests see it: what it is called, what it wants decoded, what it predicts; and what holds it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, cast

import pytest
from serving_fakes import flat_curve, manifest_of

from app.engines.base import EngineInfo
from app.errors import DeadlineExceeded
from app.media.spec import DecodeJob, ImageSpec, VideoSpec
from app.repository.manifest import Manifest, Preprocessing, Sampling
from app.serving.curve import BatchCurve, CostModel
from app.serving.model import EngineChoice, LoadedModel, media_spec
from app.serving.results import ClassifyOptions
from app.serving.ticket import Ticket


def a_model(manifest: Manifest, curve: BatchCurve | None = None, **more: Any) -> LoadedModel:
    settings: dict[str, Any] = {
        "engine": EngineInfo("fake", "bf16", "cpu"),
        "choice": EngineChoice("fake", "for a test"),
        "cost": CostModel(curve or flat_curve(1)),
        "dispatcher": cast(Any, None),
    }
    return LoadedModel(manifest, ("a", "b"), **(settings | more))


def test_files_are_decoded_to_the_geometry_of_the_manifest() -> None:
    wide = Preprocessing(
        resize_short_side=256, height=192, width=224, interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1)
    )
    for exact in (False, True):
        expected = ImageSpec(256, height=192, width=224, interpolation="bilinear", exact=exact)
        assert media_spec(wide, None, exact_images=exact) == expected
    sampling = Sampling(frames=8, stride=3, target_fps=25.0, mode="uniform")
    bicubic = wide.model_copy(update={"interpolation": "bicubic"})
    assert media_spec(bicubic, sampling, exact_images=True) == VideoSpec(
        frames=8, stride=3, target_fps=25.0, mode="uniform", resize_short_side=256, height=192, width=224,
        interpolation="bicubic",
    )  # fmt: skip


def test_a_model_says_what_it_is_and_what_really_computes() -> None:
    manifest = manifest_of("shapes", version=7).model_copy(update={"demo": True})
    identity = a_model(manifest).identity
    assert (identity.name, identity.version, identity.engine, identity.precision) == ("shapes", 7, "fake", "bf16")
    assert (identity.demo, identity.random_weights, identity.noop) == (True, False, False)
    untrained = manifest.weights.model_copy(update={"random_seed": 3})
    identity = a_model(manifest.model_copy(update={"demo": False, "weights": untrained})).identity
    assert (identity.demo, identity.random_weights, identity.noop) == (False, True, False)
    assert a_model(manifest, engine=EngineInfo("noop", "fp32", "cpu")).identity.noop


def test_engines_side_by_side_share_rows_and_none_takes_less_than_a_whole_one() -> None:
    model = a_model(manifest_of(), BatchCurve((1, 2, 4), (0.01, 0.02, 0.04)), instances=3)
    for rows, each in ((0, 0), (1, 1), (3, 1), (4, 2), (7, 3)):
        assert model.predict_s(rows) == pytest.approx(0.01 * each)
    model.cost.follow(2.0)
    assert model.lane.predict_s(4) == pytest.approx(0.04)
    assert model.lane.measured_s(4) == pytest.approx(0.02)


def test_a_job_has_the_clips_and_crops_that_were_asked_for() -> None:
    model = a_model(manifest_of(task="video"))
    job = model.job(5, 3)
    assert (job.clips, job.crops) == (5, 3)
    assert model.job() == DecodeJob(job.spec)


def test_a_model_is_idle_when_nobody_uses_it() -> None:
    model = a_model(manifest_of())
    model.retain()
    model.retain()
    model.release()
    assert not model.wait_idle(0.0)
    model.release()
    assert model.wait_idle(0.0)


class Reserved:
    """A reservation that notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *values, **named: self.asked.append((name, values or named))


def test_a_ticket_asks_for_what_its_files_need_and_gives_everything_back_once() -> None:
    model, reserved, told = a_model(manifest_of(task="video")), Reserved(), []
    model.retain()
    deadline = time.monotonic() + 60
    options = replace(ClassifyOptions(), clips=5, crops=3)
    with Ticket(
        model, options, model.job(5, 3), deadline, cast(Any, reserved),
        lambda until: until - deadline + 0.25, lambda: told.append("released"),
    ) as ticket:  # fmt: skip
        ticket.grow(files=2, body_bytes=10)
        ticket.set_aside()
        ticket.hurry(deadline + 5)  # which it has not
        ticket.hurry(deadline - 1)
        ticket.resume()
        with pytest.raises(DeadlineExceeded):
            ticket.hurry(time.monotonic() - 1)
    ticket.release()
    assert reserved.asked[:4] == [
        ("grow", {"rows": 30, "nbytes": 30 * model.row_nbytes + 10}),
        ("set_aside", {}),
        ("hurry", (deadline - 1,)),
        ("resume", (pytest.approx(-0.75),)),
    ]
    assert [name for name, _ in reserved.asked[4:]] == ["hurry", "release"]
    assert told == ["released"]
    assert model.wait_idle(0.0)
