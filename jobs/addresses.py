"""Which caller-supplied addresses the service may connect to: for images, and for webhooks.

A URL is checked here without resolving its name, in the API and again before each request.  The addresses that the
name resolves to are checked by the same rules when the connection is made (`maskfleet.worker.egress`).

Sources: IANA's special-purpose address registries for IPv4 and IPv6; RFC 6052 for NAT64; RFC 6761 for names;
the WHATWG URL standard, section 3.5, for hosts that end in a number.
"""

from __future__ import annotations

import re
import socket
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

#: Ports on which https is served to the public.
PUBLIC_PORTS = (443, 8443)

#: Every IPv4 block that is not public, and 168.63.129.16, where Azure's hosts serve their virtual machines.
_NOT_PUBLIC_V4 = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
#: The allocated part of IPv6, and the blocks in it for protocols (such as Teredo), documentation and 6to4.
_PUBLIC_V6 = IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(IPv6Network(block) for block in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
#: IPv6 blocks whose addresses embed an IPv4 address in the last 32 bits: NAT64, and IPv4-mapped.
_STANDS_FOR_V4 = tuple(IPv6Network(block) for block in ("64:ff9b::/96", "::ffff:0:0/96"))
#: Last labels of host names that no public server has.
_LOCAL_NAMES = frozenset({"localhost", "localdomain", "local", "internal", "intranet", "lan", "home", "corp", "arpa"})

#: Characters that parsers drop, or read as others.
_UNSEEN = re.compile(r"[\x00-\x20\x7f\\]")
#: What stands between two dots of a name: RFC 1035, section 2.3.1, digits first (RFC 1123), and the underscore.
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
#: A last label that makes an IPv4 address of a host.  Source: the URL Standard, "ends in a number".
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


class AddressRefused(Exception):
    """An address that is not allowed.  code: ``invalid_url`` for a malformed URL, otherwise ``url_not_allowed``."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one of the service's own servers listens.  ports: None for any."""

    host: str
    ports: range | None

    @classmethod
    def of_url(cls, url: str, usual_port: int) -> Endpoint | None:
        """Return where a URL leads; None for one without a host, such as a UNIX socket's."""
        parts = urlsplit(url)
        port = parts.port or usual_port
        return cls(parts.hostname, range(port, port + 1)) if parts.hostname else None

    def listens_on(self, port: int) -> bool:
        return self.ports is None or port in self.ports


@dataclass(frozen=True, slots=True)
class AddressRules:
    """What is allowed.  ports: None for any.  local_names: whether names like ``localhost`` are allowed.

    networks: addresses at which any port and plain http are allowed as well.  denied: never allowed, whatever else is.
    """

    schemes: frozenset[str]
    ports: frozenset[int] | None
    local_names: bool
    admits: Callable[[IPAddress], bool]
    networks: tuple[IPNetwork, ...] = ()
    denied: tuple[Endpoint, ...] = ()

    def check(self, scheme: str, port: int, address: IPAddress) -> None:
        """Raise AddressRefused unless this connection is allowed.  It does not look up where ``denied`` is."""
        for own in self.denied_at(port):
            self.check_is_not(own, address)
        if any(plain_address(address) in network for network in self.networks):
            return
        self._check_public_service(scheme, port)
        if not self.admits(address):
            raise AddressRefused("url_not_allowed", "The address is not on the public internet.")

    def check_name(self, scheme: str, port: int, host: str) -> None:
        """Raise AddressRefused for a connection that is not allowed whatever the name resolves to."""
        if any(own.host.lower() == host for own in self.denied_at(port)):
            raise _our_own()
        if not self.networks:  # otherwise it may lead into one
            self._check_public_service(scheme, port)

    def denied_at(self, port: int) -> list[Endpoint]:
        """Return the denied endpoints that listen on a port."""
        return [own for own in self.denied if own.listens_on(port)]

    def check_is_not(self, own: Endpoint, address: IPAddress, found: Iterable[str] = ()) -> None:
        """Raise AddressRefused if an address is that of a denied endpoint.  found: what its name resolves to."""
        for text in (own.host, *found):
            try:
                here = ip_address(text)
            except ValueError:  # a name
                continue
            if plain_address(here) == plain_address(address) or (is_this_machine(here) and is_this_machine(address)):
                raise _our_own()

    def _check_public_service(self, scheme: str, port: int) -> None:
        if scheme not in self.schemes:
            raise AddressRefused("url_not_allowed", f"Only {', '.join(sorted(self.schemes))} URLs are allowed.")
        if self.ports is not None and port not in self.ports:
            allowed = ", ".join(str(one) for one in sorted(self.ports))
            raise AddressRefused("url_not_allowed", f"Port {port} is not allowed; use one of {allowed}.")


@dataclass(frozen=True, slots=True)
class Url:
    """The parts of a URL that say where to connect.  host: in lower case, without brackets or a trailing dot.

    literal: the address, if the host is written as one; None for a name.
    """

    scheme: str
    host: str
    port: int
    literal: IPAddress | None


def address_rules(
    *,
    allow_private: bool,
    ports: Iterable[int] = PUBLIC_PORTS,
    networks: Iterable[IPNetwork] = (),
    denied: Iterable[Endpoint] = (),
) -> AddressRules:
    """Return the rules for the public internet (https, some ports, no private address), or for a closed network.

    networks: private ones that are allowed besides.  denied: the service's own servers.
    """
    allowed, never = tuple(networks), tuple(denied)
    if allow_private:
        both = frozenset({"http", "https"})
        return AddressRules(both, None, local_names=True, admits=lambda _: True, networks=allowed, denied=never)
    https = frozenset({"https"})
    return AddressRules(https, frozenset(ports), bool(allowed), is_public, networks=allowed, denied=never)


def plain_address(address: IPAddress) -> IPAddress:
    """Return the IPv4 address that an IPv6 address stands for, if it stands for one."""
    if isinstance(address, IPv6Address) and any(address in block for block in _STANDS_FOR_V4):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_this_machine(address: IPAddress) -> bool:
    """Return whether an address leads to this machine: loopback, "any", or one of its interfaces'."""
    plain = plain_address(address)
    if plain.is_loopback or plain.is_unspecified:
        return True
    family = socket.AF_INET if isinstance(plain, IPv4Address) else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(plain), 0))  # only an address of its own can be bound
    except OSError:
        return False
    return True


def is_public(address: IPAddress) -> bool:
    """Return whether an address is on the public internet, and does not embed one that is not."""
    if isinstance(address, IPv4Address):
        return not any(address in block for block in _NOT_PUBLIC_V4)
    if address.scope_id is not None:
        return False
    if any(address in block for block in _STANDS_FOR_V4):
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _PUBLIC_V6 and not any(address in block for block in _NOT_PUBLIC_V6)


def check_url(url: str, rules: AddressRules) -> None:
    """Raise AddressRefused for a URL that the rules forbid, as far as can be seen without resolving its name."""
    parts = split_url(url)
    if parts.literal is not None:
        rules.check(parts.scheme, parts.port, parts.literal)
        return
    rules.check_name(parts.scheme, parts.port, parts.host)
    last = parts.host.rpartition(".")[2]
    if not rules.local_names and (last == parts.host or last in _LOCAL_NAMES):
        raise AddressRefused("url_not_allowed", "The host name is not on the public internet.")


def split_url(url: str) -> Url:
    """Parse an http or https URL.  Raises AddressRefused (``invalid_url``) for any unusual form."""
    if _UNSEEN.search(url):
        raise _invalid("it contains a space, a control character or a backslash")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise _invalid("it cannot be parsed") from error
    if parts.scheme not in ("http", "https"):
        raise _invalid("it does not start with http:// or https://")
    if "@" in parts.netloc:
        raise _invalid("it contains a user name or password")
    if "[" in parts.netloc and ":" not in host:
        raise _invalid("its host is not a valid IPv6 address")
    if port == 0:
        raise _invalid("its port is 0")
    name = _plain(host)
    return Url(parts.scheme, name, port or (443 if parts.scheme == "https" else 80), _literal(name))


def _plain(host: str) -> str:
    """Normalise a host for look-up: compatibility characters replaced (NFKC), no trailing dot."""
    plain = unicodedata.normalize("NFKC", host).replace("\u3002", ".").lower()
    return plain.removesuffix(".")


def _literal(host: str) -> IPAddress | None:
    if ":" in host:
        try:
            return IPv6Address(host)
        except AddressValueError as error:
            raise _invalid("its host is not a valid IPv6 address") from error
    labels = host.split(".")
    if len(host) > 253 or not all(_is_label(label) for label in labels):
        raise _invalid("its host is not a valid name")
    if not _NUMBER.fullmatch(labels[-1]):
        return None
    try:
        # The notations that the C library accepts, and so all resolvers built on it: 127.1, 0x7f000001, 017700000001.
        return IPv4Address(socket.inet_aton(host))
    except OSError as error:
        raise _invalid("its host is not a valid IPv4 address") from error


def _is_label(label: str) -> bool:
    """Return whether this may stand between two dots.  For non-ASCII names the resolver has the last word."""
    if label.isascii():
        return _LABEL.fullmatch(label) is not None
    return len(label) <= 63 and all(char.isalnum() or char == "-" or unicodedata.combining(char) for char in label)


def _our_own() -> AddressRefused:
    return AddressRefused("url_not_allowed", "The address is one of this service's own.")


def _invalid(why: str) -> AddressRefused:
    return AddressRefused(
        "invalid_url", f"Invalid URL: {why}. Use an http or https URL without a user name or password."
    )
