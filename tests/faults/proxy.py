"""A TCP proxy that can be told, while it runs, to delay, reset, cut short, swallow or answer what passes."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Self

#: Close with a reset (RST) instead of a goodbye (FIN).
_LINGER_NOT = struct.pack("ii", 1, 0)


#: A server's response to the head of a request whose body it wants, too.
_GO_ON = b"HTTP/1.1 100 "


class Mode(Enum):
    """What happens to the bytes."""

    PASS = auto()
    #: Each chunk is late, either way.
    DELAY = auto()
    #: Each request is late, once, whatever its size and that of its response, as with a server that is far away.
    LATENCY = auto()
    #: Connections are reset, old ones and new ones.
    RESET = auto()
    #: After so many bytes of answers a connection is closed.
    TRUNCATE = auto()
    #: Nothing passes and nothing is refused, as with an unplugged cable; what was held back passes afterwards.
    BLACKHOLE = auto()
    #: The proxy itself responds to each connection, with the same bytes, and closes it.
    ANSWER = auto()


@dataclass(frozen=True, slots=True)
class Fault:
    """A mode with its parameter."""

    mode: Mode = Mode.PASS
    delay_s: float = 0.0
    after_bytes: int = 0
    answer: bytes = b""


@dataclass(frozen=True, slots=True)
class Watch:
    """What to do when a client's bytes contain the needle: call ``reached``, then reset the connection."""

    needle: bytes
    reached: Callable[[], None]


class Proxy:
    """Listen on a free loopback port and forward to another one, inside ``with``."""

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._fault = Fault()
        self._met = 0
        self._watch: Watch | None = None
        #: Requests that have no response yet, the most there were at once, and how many in all.  A request is all that
        #: a client sends before the next response, as in HTTP without pipelining.
        self.under_way = self.most_under_way = self.requests = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = listening.getsockname()[1]
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=listening))
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy {self.port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            self._server.close()
            self._fault = Fault()
            self._changed.set()
            for writer in list(self._writers):
                _reset(writer)
            if serving := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(serving, timeout=5)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def forward_to(self, port: int) -> None:
        """Forward new connections to another server; those that are open stay where they are."""
        self._upstream_port = port

    def set(self, fault: Fault) -> int:
        """Change what happens to all traffic from now on, on old and new connections.

        Return how often the previous fault acted: connections that it broke or answered, chunks that it delayed.
        """

        async def change() -> int:
            met, self._met = self._met, 0
            self._fault = fault
            self._changed.set()
            self._changed = asyncio.Event()
            if fault.mode is Mode.RESET:
                for writer in list(self._writers):
                    _reset(writer)
                    self._met += 1
            return met

        return asyncio.run_coroutine_threadsafe(change(), self._loop).result(10)

    def heal(self) -> int:
        """Let everything pass again; return how often the fault acted."""
        return self.set(Fault())

    def watch(self, needle: bytes, reached: Callable[[], None]) -> None:
        """Call ``reached`` at the moment a client sends the needle; then reset the connection, once."""
        self._watch = Watch(needle, reached)

    def unwatch(self) -> None:
        self._watch = None

    def saw_request(self, head: bytes) -> None:
        """Note the first bytes of a request: nothing here, for who counts them by their kind to override."""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        self._writers.add(writer)
        try:
            if self._fault.mode is Mode.RESET:
                self._met += 1
                return
            if self._fault.mode is Mode.ANSWER:
                self._met += 1
                await self._answer(reader, writer)
                return
            answers, upstream = await asyncio.open_connection("127.0.0.1", self._upstream_port)
            self._writers.add(upstream)
            turn = _Turn(self)
            ways = (
                self._pipe(reader, upstream, turn, from_caller=True),
                self._pipe(answers, writer, turn, from_caller=False),
            )
            try:
                await asyncio.gather(*ways)
            finally:
                turn.end()
        except (OSError, _Broken):
            pass
        finally:
            for end in (writer, upstream):
                if end is not None:
                    self._writers.discard(end)
                    _reset(end)

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turn: _Turn, *, from_caller: bool
    ) -> None:
        passed = 0
        while data := await reader.read(65536):
            begins = turn.ask() if from_caller else turn.respond(data)
            if from_caller and begins:
                self.saw_request(data)
            if from_caller and self._watch and self._watch.needle in data:
                watch, self._watch = self._watch, None
                await asyncio.to_thread(watch.reached)
                raise _Broken
            while self._fault.mode is Mode.BLACKHOLE:
                self._met += 1
                await self._changed.wait()
            fault = self._fault
            if fault.mode is Mode.DELAY or (fault.mode is Mode.LATENCY and from_caller and begins):
                self._met += 1
                await asyncio.sleep(fault.delay_s)
            if fault.mode is Mode.ANSWER and from_caller:
                self._met += 1
                raise _Broken  # an existing connection; the next one gets the response
            passed += len(data)
            cut = fault.mode is Mode.TRUNCATE and not from_caller and passed > fault.after_bytes
            writer.write(data[: max(0, len(data) - (passed - fault.after_bytes))] if cut else data)
            await writer.drain()
            if cut:
                self._met += 1
                raise _Broken
        with suppress(OSError):
            writer.write_eof()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(self._fault.answer)
        await writer.drain()
        writer.write_eof()
        with suppress(TimeoutError):
            # Drain whatever the client still sends, so that it reads the response and not a reset.
            await asyncio.wait_for(reader.read(-1), 2)


class _Turn:
    """Whose turn it is on one connection: whether a request waits for its response."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._asked = self._over = False

    def ask(self) -> bool:
        """Note bytes of a request; return whether they are its first."""
        if self._asked or self._over:
            return False
        self._asked = True
        self._proxy.requests += 1
        self._proxy.under_way += 1
        self._proxy.most_under_way = max(self._proxy.most_under_way, self._proxy.under_way)
        return True

    def respond(self, data: bytes = b"") -> bool:
        """Note bytes of a response; return whether a request waited for them."""
        if data.startswith(_GO_ON):
            return False
        waited, self._asked = self._asked, False
        self._proxy.under_way -= waited
        return waited

    def end(self) -> None:
        """Note that the connection is broken: what was asked gets no response."""
        self.respond()
        self._over = True


class _Broken(Exception):
    """The connection must be broken off."""


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    writer.transport.abort()
