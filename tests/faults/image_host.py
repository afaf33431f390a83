"""A web host with one image that kills whichever process fetches it: a job that its worker does not survive."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import psutil


class ImageHost:
    """Listen on a free port inside ``with``.  suspects: the processes that may be killed."""

    def __init__(self, suspects: Callable[[], set[int]]) -> None:
        self.killed: list[int] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                port = self.client_address[1]
                for pid in suspects():
                    if _holds_port(pid, port):
                        os.kill(pid, signal.SIGKILL)
                        host.killed.append(pid)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/poison.png"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _holds_port(pid: int, port: int) -> bool:
    with suppress(psutil.Error):
        return any(link.laddr and link.laddr.port == port for link in psutil.Process(pid).net_connections("tcp4"))
    return False
