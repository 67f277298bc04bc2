"""The upload as a stage: what is noted of it, however it ends."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from asgi_double import Channel

from app.api.body import Body, UploadPace
from app.api.exchange import Exchange
from app.api.problems import UploadTooSlow
from app.api.upload_stage import UploadStage
from app.errors import DeadlineExceeded, LimitExceeded, Overloaded, RequestCancelled
from app.serving.ticket import Ticket
from app.telemetry.metrics import Metrics


class NotedTicket:
    """Notes what it is told; `refusal` is raised when it is taken up again."""

    def __init__(self, refusal: Exception | None = None) -> None:
        self.noted: list[str] = []
        self._refusal = refusal

    def set_aside(self) -> None:
        self.noted.append("set aside")

    def resume(self) -> None:
        self.noted.append("resumed")
        if self._refusal is not None:
            raise self._refusal


class Upload:
    """An upload of three bytes, which ends in `error` where there is one."""

    def __init__(self, error: BaseException | None = None, ticket: NotedTicket | None = None) -> None:
        self.ticket = ticket or NotedTicket()
        self.exchange = Exchange("r", "image")
        self.exchange.model = "m"
        self._metrics = Metrics()
        try:
            asyncio.run(self._run(error))
        except BaseException as raised:
            self.raised: BaseException | None = raised
        else:
            self.raised = None

    async def _run(self, error: BaseException | None) -> None:
        body = Body([], Channel([b"abc"]).receive, UploadPace(30, 30, 1))
        with UploadStage(cast(Ticket, self.ticket), body, self.exchange, self._metrics):
            await body.read(lambda chunk: None, max_bytes=9, deadline=float("inf"))
            await asyncio.sleep(0.01)
            if error is not None:
                raise error
        await asyncio.sleep(0.05)

    def count(self, name: str) -> float:
        labels = {"model": "m", "stage": "upload"}
        return self._metrics.registry.get_sample_value(name, labels) or 0.0


def test_an_upload_is_timed_from_the_start_of_its_request() -> None:
    upload = Upload()
    assert upload.raised is None
    assert upload.ticket.noted == ["resumed"]
    assert upload.exchange.body_bytes == 3
    assert upload.exchange.stages["upload"] >= 0.01
    assert upload.count("hiera_stage_duration_seconds_count") == 1
    assert upload.count("hiera_stage_duration_seconds_sum") == upload.exchange.stages["upload"]
    assert upload.count("hiera_cancelled_total") == 0


@pytest.mark.parametrize(
    ("error", "cancelled"),
    [
        (RequestCancelled("left"), 1),
        (DeadlineExceeded("late"), 1),
        (UploadTooSlow("slow"), 1),
        (asyncio.CancelledError(), 1),
        (LimitExceeded("large"), 0),
    ],
    ids=lambda given: type(given).__name__,
)
def test_one_that_does_not_come_to_its_end_is_no_upload(error: BaseException, cancelled: int) -> None:
    upload = Upload(error)
    assert isinstance(upload.raised, type(error))
    assert upload.ticket.noted == []
    assert upload.exchange.body_bytes == 3
    assert upload.count("hiera_cancelled_total") == cancelled
    assert upload.count("hiera_stage_duration_seconds_count") == 0


def test_a_ticket_is_not_set_aside_once_the_upload_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.api.upload_stage._SLOW_UPLOAD_S", 0.03)
    assert Upload().ticket.noted in (["resumed"], ["set aside", "resumed"])  # the latter on a machine that stalls


def test_what_can_no_longer_be_made_is_refused_at_the_end() -> None:
    upload = Upload(ticket=NotedTicket(Overloaded("too late now", retry_after_s=1)))
    assert isinstance(upload.raised, Overloaded)
    assert upload.count("hiera_stage_duration_seconds_count") == 0
