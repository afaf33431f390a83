"""The connections of one process: how many there may be, and which one makes room for another.

Imported by gunicorn's master before gevent replaces the standard library's modules in its workers, so it imports none
that opens connections.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
from collections import Counter
from dataclasses import dataclass

#: How long a client that was refused should stay away.
RETRY_AFTER_S = 5


@dataclass(eq=False, slots=True)
class Connection:
    """A connection that was let in."""

    sock: socket.socket
    network: str

    def end(self) -> None:
        """Wake whoever reads from it, who then finds that it has ended."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


class Refused(Exception):
    """A connection is not let in.  response: what to tell the client."""

    def __init__(self, status: str, code: str, detail: str) -> None:
        super().__init__(code)
        number, _, title = status.partition(" ")
        problem = {
            "type": f"urn:maskfleet:problem:{code}",
            "title": title,
            "status": int(number),
            "detail": detail,
            "code": code,
        }
        body = json.dumps(problem)
        self.response = (
            f"HTTP/1.1 {status}\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
            f"Retry-After: {RETRY_AFTER_S}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n{body}"
        ).encode()


class Connections:
    """Lets connections in, up to a limit for all and a limit for each address.

    A connection waits while no request is served on it: it is idle, or the head of its next request is incomplete.
    When all places are taken, the one that has waited longest makes room.  So clients that hold connections open, or
    never finish a head, shut out nobody.
    """

    def __init__(self, most: int, most_per_address: int) -> None:
        """most_per_address: 0 for no limit; one that applies to an IPv6 /64 as a whole."""
        self._most, self._most_per_address = most, most_per_address
        # In the order in which they began to wait.  A dict is used as an ordered set.
        self._waiting: dict[Connection, None] = {}
        self._serving: set[Connection] = set()
        self._of_network: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._serving)

    def enter(self, sock: socket.socket, address: object) -> Connection:
        """Let a connection in; it waits for its first request.  Raises Refused."""
        host = address[0] if isinstance(address, tuple) else ""
        network = client_network(str(host))
        if network and 0 < self._most_per_address <= self._of_network[network]:
            raise Refused(
                "429 Too Many Requests",
                "too_many_connections",
                f"Your address has {self._most_per_address} connections open here. Close some, or reuse them.",
            )
        if len(self) >= self._most:
            if not self._waiting:
                raise Refused(
                    "503 Service Unavailable", "too_many_connections", "All connections are in use. Try again later."
                )
            longest = next(iter(self._waiting))
            self.leave(longest)
            longest.end()
        connection = Connection(sock, network)
        self._waiting[connection] = None
        if network:
            self._of_network[network] += 1
        return connection

    def serve(self, connection: Connection) -> bool:
        """Note that a request has come; return False for a connection that had to make room before."""
        if connection not in self._waiting:
            return False
        del self._waiting[connection]
        self._serving.add(connection)
        return True

    def wait(self, connection: Connection) -> None:
        """Note that a connection waits again, after its request."""
        if connection in self._serving:
            self._serving.remove(connection)
            self._waiting[connection] = None

    def leave(self, connection: Connection) -> None:
        """Forget a connection.  May be called twice."""
        if connection in self._waiting:
            del self._waiting[connection]
        elif connection in self._serving:
            self._serving.remove(connection)
        else:
            return
        if connection.network:
            self._of_network[connection.network] -= 1
            if not self._of_network[connection.network]:
                del self._of_network[connection.network]

    def end_waiting(self) -> None:
        """End all connections on which no request is being served."""
        for connection in list(self._waiting):
            connection.end()


def client_network(address: str) -> str:
    """Return the address to count; for IPv6 its /64, since one caller has all of it.  Empty for a UNIX socket."""
    try:
        whole = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(whole, ipaddress.IPv6Address):
        if whole.ipv4_mapped is not None:
            return str(whole.ipv4_mapped)
        return str(ipaddress.ip_network((whole, 64), strict=False))
    return str(whole)
