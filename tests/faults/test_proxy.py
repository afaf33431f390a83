"""The proxy treats real connections as its modes say."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from socket import create_connection, socket

import pytest

from tests.faults.proxy import Fault, Mode, Proxy


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with suppress(ConnectionError):
            while data := self.request.recv(1000):
                self.request.sendall(data)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy in front of an echo server."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with Proxy(server.server_address[1]) as proxy:
            yield proxy
        server.shutdown()


@pytest.fixture
def caller(proxy: Proxy) -> Iterator[socket]:
    with closing(create_connection(("127.0.0.1", proxy.port), timeout=5)) as caller:
        assert ask(caller, b"hello") == b"hello"
        yield caller


def ask(caller: socket, words: bytes) -> bytes:
    caller.sendall(words)
    return caller.recv(1000)


def test_it_delays(proxy: Proxy, caller: socket) -> None:
    proxy.set(Fault(Mode.DELAY, delay_s=0.1))
    began = time.monotonic()

    assert ask(caller, b"x") == b"x"

    assert time.monotonic() - began >= 0.2  # once on each way


def test_it_makes_each_request_late_once_and_counts_those_that_wait(proxy: Proxy, caller: socket) -> None:
    proxy.set(Fault(Mode.LATENCY, delay_s=0.1))
    began, before = time.monotonic(), proxy.requests

    assert ask(caller, b"x") == b"x"

    assert time.monotonic() - began >= 0.1
    assert (proxy.requests - before, proxy.under_way, proxy.most_under_way) == (1, 0, 1)
    assert proxy.heal() == 1  # not the response as well


def test_it_resets_old_connections_and_new_ones(proxy: Proxy, caller: socket) -> None:
    proxy.set(Fault(Mode.RESET))

    with pytest.raises(ConnectionError):
        ask(caller, b"x")
    with suppress(ConnectionError), closing(create_connection(("127.0.0.1", proxy.port), timeout=5)) as another:
        assert ask(another, b"x") == b""


def test_it_cuts_an_answer_short(proxy: Proxy, caller: socket) -> None:
    proxy.set(Fault(Mode.TRUNCATE, after_bytes=8))

    caller.sendall(b"0123456789")

    assert caller.recv(1000) == b"012"  # the five of the greeting went before


def test_what_a_blackhole_held_passes_when_it_is_gone(proxy: Proxy, caller: socket) -> None:
    proxy.set(Fault(Mode.BLACKHOLE))
    caller.settimeout(0.2)
    with pytest.raises(TimeoutError):
        ask(caller, b"x")
    caller.settimeout(5)

    proxy.heal()

    assert caller.recv(1000) == b"x"


def test_it_answers_by_itself(proxy: Proxy) -> None:
    proxy.set(Fault(Mode.ANSWER, answer=b"no"))

    with closing(create_connection(("127.0.0.1", proxy.port), timeout=5)) as caller:
        assert ask(caller, b"x") == b"no"


def test_it_stops_a_caller_before_the_words_that_it_watches_for_are_passed(proxy: Proxy, caller: socket) -> None:
    reached = threading.Event()
    proxy.watch(b"publish", reached.set)

    assert ask(caller, b"record") == b"record"
    with pytest.raises(ConnectionError):
        ask(caller, b"publish")

    assert reached.is_set()
