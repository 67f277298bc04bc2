"""Rows of an Open Inference Protocol request are run together, its files each for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from inference_calls import MODEL

from app.api.open_inference import run_model
from app.errors import BrokenMedia, DeadlineExceeded, HieraError, MalformedRequest
from app.media.shared import SharedBytes, UploadedRows
from app.serving.results import Latency, Outputs
from app.serving.service import Service
from app.serving.ticket import Ticket


class Steered:
    """A service that gives the first byte of each file or row as its probability; what is called `bad` fails."""

    def __init__(self, bad: dict[bytes, HieraError] | None = None) -> None:
        self._bad = bad or {}
        self.calls: list[tuple[str, bool]] = []
        self.at_once = self.most_at_once = 0

    async def run_file(self, ticket: Ticket, body: SharedBytes, *, with_features: bool) -> Outputs:
        self.calls.append(("file", with_features))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if (error := self._bad.get(bytes(body.small))) is not None:
            raise error
        return outputs(body.small[0])

    async def run_rows(self, ticket: Ticket, rows: UploadedRows, *, with_features: bool) -> Outputs:
        self.calls.append(("rows", with_features))
        return outputs(*rows.rows[:, 0, 0, 0].tolist())


def outputs(*marks: int) -> Outputs:
    return Outputs(MODEL.identity, np.array(marks, np.float32)[:, None], None, Latency(0, 0, 0, 0), 1)


def run(service: Steered, given: Any, *, with_features: bool = False) -> list[Any]:
    """The marks of each answer."""
    answers = asyncio.run(run_model(cast(Service, service), cast(Ticket, None), given, with_features=with_features))
    return [answer.probabilities.ravel().tolist() for answer in answers]


def files(*contents: bytes) -> list[SharedBytes]:
    return [SharedBytes.of(content) for content in contents]


def test_rows_are_run_together() -> None:
    rows = UploadedRows((3, 1, 1, 1))
    rows.write(bytes([7, 8, 9]))
    service = Steered()
    assert run(service, rows, with_features=True) == [[7, 8, 9]]
    assert service.calls == [("rows", True)]
    rows.close()


def test_files_are_run_side_by_side_and_answered_in_their_order() -> None:
    service = Steered()
    assert run(service, files(b"\3", b"\1", b"\2")) == [[3], [1], [2]]
    assert service.calls == [("file", False)] * 3
    assert service.most_at_once == 3


@pytest.mark.parametrize("error", [BrokenMedia, DeadlineExceeded])
def test_one_file_that_fails_fails_the_request_once_the_others_are_done(error: Callable[[str], HieraError]) -> None:
    service = Steered({b"bad": error("the first"), b"worse": error("the second")})
    with pytest.raises(HieraError, match="the first"):
        run(service, files(b"\1", b"bad", b"worse", b"\2"))
    assert (len(service.calls), service.at_once) == (4, 0)


def test_an_empty_file_fails_the_request_before_anything_is_run() -> None:
    service = Steered()
    with pytest.raises(MalformedRequest, match="a file is empty"):
        run(service, files(b"\1", b"", b"\2"))
    assert service.calls == []


def test_work_that_is_cancelled_leaves_no_file_behind() -> None:
    class Stuck(Steered):
        async def run_file(self, ticket: Ticket, body: SharedBytes, *, with_features: bool) -> Outputs:
            self.at_once += 1
            try:
                await asyncio.sleep(30)
            finally:
                self.at_once -= 1
            raise AssertionError

    service = Stuck()

    async def scenario() -> None:
        work = run_model(cast(Service, service), cast(Ticket, None), files(b"\1", b"\2"), with_features=False)
        task = asyncio.create_task(work)
        while service.at_once < 2:
            await asyncio.sleep(0)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scenario())
    assert service.at_once == 0
