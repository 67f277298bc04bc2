import asyncio

import pytest
from http_double import OK, serving

from app.load.connection import LOST, Answer, connect
from app.load.request import raw_request
from app.load.target import Target

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nContent-Length: 7\r\n\r\n"


def exchange(*answers: list[bytes]) -> list[Answer]:
    """What one connection makes of these answers, each in its pieces."""
    left = list(answers)

    async def answer(_: bytes) -> list[bytes]:
        return left.pop(0)

    async def scenario() -> list[Answer]:
        async with serving(answer) as target:
            connection = await connect(target)
            request = raw_request(target, "/", b"body", content_type="text/plain")
            found = [await connection.exchange(request) for _ in answers]
            connection.abandon(LOST)
            return found

    return asyncio.run(scenario())


def test_an_answer_in_many_pieces_is_read_whole() -> None:
    pieces = [b"HTTP/1.1 20", b"1 Created\r\ncontent-le", b"ngth: 5\r\n", b"\r\nhe", b"llo"]
    (answer,) = exchange(pieces)
    assert (answer.status, answer.body) == (201, b"hello")


def test_a_chunked_answer_ends_with_its_last_chunk() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    (answer,) = exchange([head, b"5\r\nhello\r\n", b"0\r\n\r\n"])
    assert answer.body.startswith(b"5\r\nhello")


def test_one_connection_carries_one_request_after_the_other() -> None:
    answers = exchange([OK], [b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"], [OK])
    assert [answer.status for answer in answers] == [200, 503, 200]


def test_the_server_timing_header_is_kept_whatever_its_case() -> None:
    head = b"HTTP/1.1 200 OK\r\nSERVER-TIMING: decode;dur=1.5, inference;dur=2\r\nContent-Length: 0\r\n\r\n"
    assert exchange([head])[0].timing == b"decode;dur=1.5, inference;dur=2"


@pytest.mark.parametrize("status", [b"429 Too Many Requests", b"503 Service Unavailable"])
def test_a_refusal_may_say_when_to_come_again(status: bytes) -> None:
    head = b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n"
    told, untold = exchange([head + b"retry-after: 17\r\n\r\n"], [head + b"\r\n"])
    assert (told.retry_after_s, untold.retry_after_s) == (17, None)


def test_what_is_no_refusal_says_nothing_of_coming_again() -> None:
    (answer,) = exchange([b"HTTP/1.1 200 OK\r\nRetry-After: 17\r\nContent-Length: 0\r\n\r\n"])
    assert answer.retry_after_s is None


def test_a_connection_closed_in_the_middle_is_lost_and_not_hung() -> None:
    (answer,) = exchange([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b""])
    assert answer.status == LOST


@pytest.mark.parametrize("pieces", [[CONTINUE, OK], [CONTINUE + EARLY_HINTS + OK], [CONTINUE + OK[:20], OK[20:]]])
def test_interim_answers_are_not_the_answer(pieces: list[bytes]) -> None:
    assert [(answer.status, answer.body) for answer in exchange(pieces, [OK])] == [(200, b"ok")] * 2


def test_a_change_of_protocol_is_the_answer() -> None:
    (answer,) = exchange([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n", b""])
    assert answer.status == 101


def test_an_answer_that_is_not_http_breaks_its_connection_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    (answer,) = exchange([b"SSH-2.0-OpenSSH_9.6\r\n\r\n"])
    assert answer.status == LOST
    assert "data_received" not in caplog.text  # where asyncio logs an exception of a protocol


def test_a_connection_that_the_server_wants_closed_is_not_used_again() -> None:
    async def answer(_: bytes) -> list[bytes]:
        return [b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"]

    async def scenario() -> bool:
        async with serving(answer) as target:
            connection = await connect(target)
            await connection.exchange(raw_request(target, "/", b"", content_type="text/plain"))
            return connection.is_open

    assert not asyncio.run(scenario())


def test_a_refused_connection_raises() -> None:
    async def scenario() -> None:
        async with serving(lambda _: asyncio.sleep(0, [OK])) as target:
            gone = Target(target.host, target.port, target.address)
        await connect(gone)

    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        asyncio.run(scenario())
