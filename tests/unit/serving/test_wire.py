"""What the engine host and its HTTP workers say survives the way, and what is not understood ends the conversation."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

import numpy as np
import pytest
from serving_fakes import PATIENCE_S

from app import errors
from app.serving import wire
from app.serving.channel import MAX_FRAME_BYTES, Channel
from app.serving.submission import Inference, Terms
from app.serving.wire import SubmitHeader


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize(
    "terms",
    [
        Terms(123456.789),
        Terms(0.1, with_features=True),
        Terms(0.1, averaged=True),
        Terms(0.1, "alice"),
        Terms(0.1, "Zoë's 写真"),
    ],
)
def test_a_submission_s_header_survives(terms: Terms, reused: bool) -> None:
    header = SubmitHeader(2**40, 7, 48, reused, terms)
    assert wire.decode_submit(wire.encode_submit(header)) == header


def test_a_submission_that_is_none_is_refused() -> None:
    with pytest.raises(struct.error):
        wire.decode_submit(b"short")
    sound = wire.encode_submit(SubmitHeader(1, 1, 1, False, Terms(1.0)))
    with pytest.raises(UnicodeDecodeError):
        wire.decode_submit(sound + b"\xff")


def test_an_answer_survives_to_the_bit() -> None:
    probabilities = np.random.default_rng(0).random((3, 5), np.float32)
    number, inference = wire.decode_answer(wire.encode_answer(9, Inference(probabilities, 0.25, 0.5, 8)))
    assert number == 9
    assert (inference.queue_s, inference.inference_s, inference.batch_rows) == (0.25, 0.5, 8)
    assert inference.probabilities.dtype == np.float32
    np.testing.assert_array_equal(inference.probabilities, probabilities)
    assert inference.features is None


@pytest.mark.parametrize("width", [1, 5, 1152])
def test_features_survive_to_the_bit_beside_the_probabilities(width: int) -> None:
    draw = np.random.default_rng(1)
    probabilities, features = draw.random((3, 5), np.float32), draw.random((3, width), np.float32)
    sent = Inference(probabilities, 0.25, 0.5, 8, features[::-1])  # in whatever order they lie in memory
    number, inference = wire.decode_answer(wire.encode_answer(2**40, sent))
    assert number == 2**40
    assert (inference.queue_s, inference.inference_s, inference.batch_rows) == (0.25, 0.5, 8)
    np.testing.assert_array_equal(inference.probabilities, probabilities)
    assert inference.features is not None
    assert inference.features.dtype == np.float32
    np.testing.assert_array_equal(inference.features, features[::-1])


@pytest.mark.parametrize(
    "error",
    [
        errors.Overloaded("full", retry_after_s=1.5),
        errors.Unavailable("draining", code="draining"),
        errors.DeadlineExceeded("late"),
        errors.EngineOutOfMemory("no room"),
        errors.UnknownModel("none of that name"),
    ],
)
def test_an_error_comes_out_as_the_same_domain_exception(error: errors.HieraError) -> None:
    arrived = wire.decode_error(wire.encode_error(error))
    assert (type(arrived), str(arrived), arrived.code) == (type(error), str(error), error.code)
    assert getattr(arrived, "retry_after_s", None) == getattr(error, "retry_after_s", None)


def test_an_error_that_this_side_does_not_know_is_an_engine_error() -> None:
    assert type(wire.decode_error(b'{"error": "SystemExit", "message": "boom", "code": "x"}')) is errors.EngineError


def text_of(descriptor: int) -> str:
    with os.fdopen(descriptor) as file:
        file.seek(0)
        return file.read()


def memory_of(text: str) -> int:
    descriptor = os.memfd_create("test")
    os.write(descriptor, text.encode())
    return descriptor


def test_frames_arrive_whole_and_in_order_each_with_its_own_descriptor() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        arrived: list[tuple[int, int, str]] = []
        all_there = asyncio.Event()

        def note(kind: int, payload: bytes, descriptor: int) -> None:
            arrived.append((kind, len(payload), text_of(descriptor) if descriptor >= 0 else ""))
            if len(arrived) == 300:
                all_there.set()

        receiver = Channel(theirs, note, lambda: None)
        sender = Channel(ours, lambda *frame: None, lambda: None)
        for number in range(300):  # more descriptors than a message takes, more bytes than the socket holds
            sender.send(number % 256, bytes(number * 20), memory_of(f"{number}") if number % 3 else -1)
        async with asyncio.timeout(PATIENCE_S):
            await all_there.wait()
        assert arrived == [(n % 256, n * 20, f"{n}" if n % 3 else "") for n in range(300)]
        sender.close()
        receiver.close()

    asyncio.run(scenario())


def test_a_peer_that_hangs_up_is_noticed_once() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        ended = asyncio.Event()
        channel = Channel(ours, lambda *frame: None, ended.set)
        theirs.close()
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
        before = memory_of("")
        channel.send(1, b"nobody listens", before)  # and the descriptor is not leaked
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(before)

    asyncio.run(scenario())


@pytest.mark.parametrize("sent", [struct.pack("<IBB", MAX_FRAME_BYTES + 1, 1, 0), struct.pack("<IBB", 0, 1, 1)])
def test_a_frame_that_is_too_long_or_lacks_its_descriptor_ends_the_channel(sent: bytes) -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        ended = asyncio.Event()
        Channel(ours, lambda *frame: None, ended.set)
        theirs.send(sent)
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
        theirs.close()

    asyncio.run(scenario())
