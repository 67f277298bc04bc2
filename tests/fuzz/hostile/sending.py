"""Sends cases over sockets of their own, several at a time, and hears what comes back until the server hangs up."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from dataclasses import dataclass

from cases import Case, Manner

# Whatever is sent, the server has said what it has to say, and hung up, by then: its own bounds are far shorter.
BOUND_S = 40.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Exchange:
    """What came of a case. `hung`: the server neither answered nor hung up within the bound."""

    received: bytes
    seconds: float
    hung: bool


async def send(port: int, case: Case) -> Exchange:
    """One connection: the case's bytes out, everything that comes back in.

    Raises:
        OSError: the server takes no connection.
    """
    began = time.monotonic()
    received = bytearray()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    hung = False
    try:
        async with asyncio.timeout(BOUND_S):
            async with asyncio.TaskGroup() as both:
                both.create_task(_write(writer, case))
                if case.manner not in (Manner.LEFT, Manner.RESET):
                    both.create_task(_read(reader, received))
    except TimeoutError:
        hung = True
    finally:
        if case.manner is Manner.RESET:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return Exchange(bytes(received), time.monotonic() - began, hung)


async def _write(writer: asyncio.StreamWriter, case: Case) -> None:
    """Early answers end in a closed connection, so that not being able to go on is no news."""
    with contextlib.suppress(OSError):
        match case.manner:
            case Manner.WHOLE:
                writer.write(case.data)
            case Manner.HALF_CLOSED:
                writer.write(case.data)
                writer.write_eof()
            case Manner.LEFT | Manner.RESET:
                writer.write(case.data[: case.cuts[0]])
                await writer.drain()
                await asyncio.sleep(0.01 * (case.number % 4))  # in different stages of the server's work
            case Manner.PIECES:
                for start, end in zip((0, *case.cuts), (*case.cuts, len(case.data)), strict=True):
                    writer.write(case.data[start:end])
                    await writer.drain()
                    await asyncio.sleep(0.001)
        await writer.drain()


async def _read(reader: asyncio.StreamReader, received: bytearray) -> None:
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(1 << 16):
            received += chunk
