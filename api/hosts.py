"""The Host header: which names clients may use for this service.

Links in responses may be made from it, and a page of another origin can point a name of its own at this service (DNS
rebinding).  Only names that the operator expects are answered; health checks, which probes send to bare addresses, and
which hold no link, are answered under any.

Source: RFC 9110, section 7.2; RFC 9112, section 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Self
from urllib.parse import urlsplit

from flask import Flask, current_app, request

from maskfleet.api.operation import operation_of
from maskfleet.api.services import EXTENSION, Services, is_metrics_port
from maskfleet.jobs.errors import InvalidHost
from maskfleet.jobs.settings import ApiSettings

#: A name, an IPv4 address or an IPv6 address in brackets, then perhaps a port.
_HOST = re.compile(
    r"(?:([a-z0-9-]+(?:\.[a-z0-9-]+)*)\.?|\[([0-9a-f]*:[0-9a-f:.]+)\])(?::([1-9][0-9]{0,4}))?", re.IGNORECASE
)
_LOOPBACK = ("localhost", "127.0.0.0/8", "::1")
_ANY = "*"


@dataclass(frozen=True, slots=True)
class TrustedHosts:
    """Names, and networks of addresses, that a Host header may name; ports do not matter."""

    names: frozenset[str]
    networks: tuple[IPv4Network | IPv6Network, ...]
    any: bool

    @classmethod
    def from_settings(cls, settings: ApiSettings) -> Self:
        """Take those that are set; otherwise loopback, and the public URL's host or, without one, the bind address."""
        if settings.trusted_hosts:
            return cls.of(settings.trusted_hosts)
        public = urlsplit(settings.public_url).hostname or "" if settings.public_url else ""
        bound = settings.bind.rpartition(":")[0].strip("[]")
        usual = public if settings.public_url else "" if settings.bind.startswith("unix:") else bound
        return cls.of([*_LOOPBACK, *([usual] if usual else [])])

    @classmethod
    def of(cls, hosts: Iterable[str]) -> Self:
        names, networks = set(), []
        for host in hosts:
            try:
                networks.append(ip_network(host))
            except ValueError:
                names.add(host.lower().removesuffix("."))
        return cls(frozenset(names), tuple(networks), _ANY in names)

    def check(self, host: str) -> None:
        """Raise InvalidHost unless a Host header is well-formed and trusted: ``invalid_host``, ``host_not_allowed``."""
        found = _HOST.fullmatch(host)
        if not found or (found[3] and int(found[3]) > 65_535):
            raise InvalidHost("invalid_host", "The Host header is missing or malformed.")
        name = found[1] or found[2]
        try:
            address = ip_address(name)
        except ValueError:
            if found[2]:
                raise InvalidHost("invalid_host", "The Host header is malformed.") from None
            address = None
        known = name.lower() in self.names if address is None else any(address in net for net in self.networks)
        if not (self.any or known):
            raise InvalidHost(
                "host_not_allowed",
                f"This service does not answer under the host {name[:100]!r}. If it is right, the operator sets "
                "MASKFLEET_PUBLIC_URL, or adds it to MASKFLEET_TRUSTED_HOSTS.",
            )


def register_hosts(app: Flask) -> None:
    """Check the Host header of each request; must run after the request has its id, and before anything else."""
    services: Services = app.extensions[EXTENSION]
    trusted = TrustedHosts.from_settings(services.settings)

    @app.before_request
    def check_host() -> None:
        view = current_app.view_functions.get(request.endpoint or "")
        if is_metrics_port():  # it is in no public network, and scrapers use bare addresses
            return
        if view is None or not operation_of(view).any_host:
            trusted.check(request.headers.get("Host", ""))
