"""The egress guard, against forbidden addresses and misbehaving servers, all of them real sockets."""

from __future__ import annotations

import gzip
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

from maskfleet.jobs.addresses import AddressRefused, AddressRules, Endpoint, address_rules, check_url, is_public
from maskfleet.jobs.errors import InvalidImage, SourceUnavailable
from maskfleet.jobs.schema.spec import ImageSource
from maskfleet.jobs.settings import ApiSettings, WorkerSettings
from maskfleet.jobs.storage import Store
from maskfleet.worker.egress import EgressSession, egress_session
from maskfleet.worker.sources import fetch_image

NAME = "images.example.com"

#: Refused by their form alone, before any name is resolved.  {port} is an allowed port that something listens on.
BY_FORM = [
    # IPv4 in every notation that the C library accepts.
    "https://127.0.0.1:{port}/",
    "https://127.1:{port}/",
    "https://127.0.1:{port}/",
    "https://2130706433:{port}/",
    "https://0x7f000001:{port}/",
    "https://0x7F.1:{port}/",
    "https://0x7f.0x0.0x0.0x1:{port}/",
    "https://017700000001:{port}/",
    "https://0177.0.0.1:{port}/",
    "https://0177.0.0.0x1:{port}/",
    "https://0:{port}/",
    "https://0.0.0.0:{port}/",
    "https://127.0.0.1.:{port}/",
    "https://255.255.255.255:{port}/",
    # Private, shared, link-local and metadata.
    "https://10.0.0.1:{port}/",
    "https://172.16.0.1:{port}/",
    "https://192.168.1.1:{port}/",
    "https://100.64.0.1:{port}/",
    "https://169.254.169.254:{port}/latest/meta-data/",
    "https://2852039166:{port}/latest/meta-data/",
    "https://0xa9fea9fe:{port}/",
    "https://0251.0376.0251.0376:{port}/",
    "https://169.254.43518:{port}/",
    "https://169.254.170.2:{port}/v2/credentials",
    "https://100.100.100.200:{port}/latest/meta-data/",
    "https://192.0.0.192:{port}/opc/v2/",
    "https://168.63.129.16:{port}/",
    # Documentation, benchmarking, multicast, reserved, and 6to4 relays.
    "https://192.0.2.1:{port}/",
    "https://198.18.0.1:{port}/",
    "https://198.51.100.1:{port}/",
    "https://203.0.113.1:{port}/",
    "https://224.0.0.1:{port}/",
    "https://240.0.0.1:{port}/",
    "https://192.88.99.1:{port}/",
    # IPv6: its own special blocks, and those that embed an IPv4 address.
    "https://[::1]:{port}/",
    "https://[0:0:0:0:0:0:0:1]:{port}/",
    "https://[::]:{port}/",
    "https://[::127.0.0.1]:{port}/",
    "https://[::ffff:127.0.0.1]:{port}/",
    "https://[::ffff:7f00:1]:{port}/",
    "https://[::ffff:169.254.169.254]:{port}/",
    "https://[::ffff:0:127.0.0.1]:{port}/",
    "https://[64:ff9b::127.0.0.1]:{port}/",
    "https://[64:ff9b::a9fe:a9fe]:{port}/",
    "https://[64:ff9b:1::7f00:1]:{port}/",
    "https://[2002:7f00:1::]:{port}/",
    "https://[2002:a9fe:a9fe::1]:{port}/",
    "https://[2001:0:4136:e378:8000:63bf:80ff:fffe]:{port}/",
    "https://[fe80::1]:{port}/",
    "https://[fe80::1%25eth0]:{port}/",
    "https://[fe80::1%lo]:{port}/",
    "https://[::1%lo]:{port}/",
    "https://[fec0::1]:{port}/",
    "https://[fc00::1]:{port}/",
    "https://[fd00:ec2::254]:{port}/latest/meta-data/",
    "https://[2001:db8::1]:{port}/",
    "https://[2001:2::1]:{port}/",
    "https://[3fff::1]:{port}/",
    "https://[ff02::1]:{port}/",
    "https://[100::1]:{port}/",
    "https://[v1.fe80]:{port}/",
    # Internal names.
    "https://localhost:{port}/",
    "https://LOCALHOST.:{port}/",
    "https://images.localhost:{port}/",
    "https://metadata:{port}/",
    "https://metadata.google.internal:{port}/computeMetadata/v1/",
    "https://instance-data.ec2.internal:{port}/",
    "https://redis:{port}/",
    "https://printer.local:{port}/",
    "https://api.default.svc.cluster.local:{port}/",
    # Characters that normalise to others.
    "https://１２７.０.０.１:{port}/",
    "https://①②⑦.⓪.⓪.①:{port}/",
    "https://127。0。0。1:{port}/",
    "https://127．0．0．1:{port}/",
    "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/",
    "https://127.0.0.%31:{port}/",
    "https://%31%32%37.0.0.1:{port}/",
    "https://127.0.0.1\u200b.example.com:{port}/",
    # Parsers that disagree on where the host ends.
    "https://me:secret@127.0.0.1:{port}/",
    "https://images.example.com@127.0.0.1:{port}/",
    "https://127.0.0.1:{port}@images.example.com/",
    "https://@images.example.com:{port}/",
    "https://images.example.com\\@127.0.0.1:{port}/",
    "https:\\\\127.0.0.1:{port}/",
    "https://127.0.0.1:{port}\\.images.example.com/",
    "https://images.example.com:{port}\r\nHost: 127.0.0.1/",
    "https://images.example.com:{port}/\r\nX-Injected: 1",
    "https://images.example.com:{port}/a b",
    "https://images.example.com\t:{port}/",
    "https://images.example.com\x00.127.0.0.1:{port}/",
    " https://127.0.0.1:{port}/",
    "https://127.0.0.1:{port}#@images.example.com/",
    "https://127.0.0.1:{port}?@images.example.com/",
    "https:///127.0.0.1:{port}/",
    "https://:{port}/",
    "https://images..example.com:{port}/",
    "https://-images.example.com:{port}/",
    "https://1.2.3.4.5:{port}/",
    "https://images.example.com.0x:{port}/",
    "https://[127.0.0.1]:{port}/",
    "https://[::1:{port}/",
    "https://" + "a" * 64 + ".example.com:{port}/",
    "https://" + "a." * 130 + "example.com:{port}/",
    # Other schemes and ports.
    "http://images.example.com:{port}/",
    "http://127.0.0.1:{port}/",
    "https://images.example.com:22/",
    "https://images.example.com:6379/",
    "https://images.example.com:0/",
    "https://images.example.com:99999/",
    "https://images.example.com:+443/",
    "https://images.example.com:４４３/",
    "ftp://127.0.0.1:{port}/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/_INFO",
    "dict://127.0.0.1:{port}/",
    "data:image/png;base64,AAAA",
    "javascript:alert(1)",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}/",
    "",
]
#: A public name, and addresses it resolves to: refused after the lookup.
BY_ADDRESS = [
    ["127.0.0.1"],
    ["169.254.169.254"],
    ["10.1.2.3"],
    ["::1"],
    ["fe80::1%lo"],
    ["fd00:ec2::254"],
    ["::ffff:127.0.0.1"],
    ["64:ff9b::7f00:1"],
    ["2002:7f00:1::"],
    ["2001::7f00:1"],
    ["93.184.215.14", "127.0.0.1"],
    ["127.0.0.1", "93.184.215.14"],
    ["2606:2800:220:1::1", "93.184.215.14", "::1"],
]


class Sentinel:
    """Listen on every loopback address, and count connections."""

    def __init__(self) -> None:
        self.connections = 0
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port = self._sockets[0].getsockname()[1]
        if socket.has_ipv6:
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        for listening in self._sockets:
            threading.Thread(target=self._count, args=(listening,), daemon=True).start()

    def _count(self, listening: socket.socket) -> None:
        while True:
            try:
                listening.accept()[0].close()
            except OSError:
                return
            self.connections += 1

    def close(self) -> None:
        for listening in self._sockets:
            listening.shutdown(socket.SHUT_RDWR)
            listening.close()


@pytest.fixture(scope="module")
def sentinel() -> Iterator[Sentinel]:
    with closing(Sentinel()) as listening:
        yield listening


class Resolver:
    """Resolve names as scripted, in order, the last one repeatedly.  Addresses are resolved as usual."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked = 0

    def __call__(self, host: str, port: int, **named: Any) -> list[tuple[Any, ...]]:
        if not host.endswith(".com"):
            return list(socket.getaddrinfo(host, port, **named, flags=socket.AI_NUMERICHOST))
        addresses = self._answers[min(self.asked, len(self._answers) - 1)]
        self.asked += 1
        return [entry for address in addresses for entry in socket.getaddrinfo(address, port, **named)]


@pytest.mark.parametrize("form", BY_FORM)
def test_a_hostile_form_is_refused_and_nothing_is_looked_up_or_reached(form: str, sentinel: Sentinel) -> None:
    url, resolver = form.replace("{port}", str(sentinel.port)), Resolver(["127.0.0.1"])
    ports = (443, sentinel.port)

    with pytest.raises(AddressRefused):
        check_url(url, address_rules(allow_private=False, ports=ports))
    with pytest.raises(AddressRefused):
        egress_session(allow_private=False, ports=ports, resolve=resolver).get(url, timeout=5)

    assert (sentinel.connections, resolver.asked) == (0, 0)


@pytest.mark.parametrize("addresses", BY_ADDRESS, ids=" ".join)
def test_a_name_is_refused_when_any_of_its_addresses_is_private(addresses: list[str], sentinel: Sentinel) -> None:
    url, resolver = f"https://{NAME}:{sentinel.port}/", Resolver(addresses)

    check_url(url, address_rules(allow_private=False, ports=(sentinel.port,)))
    with pytest.raises(AddressRefused) as refused:
        egress_session(allow_private=False, ports=(sentinel.port,), resolve=resolver).get(url, timeout=5)

    assert refused.value.code == "url_not_allowed"
    assert (sentinel.connections, resolver.asked) == (0, 1)


def test_the_corpus_is_large() -> None:
    assert len(set(BY_FORM)) + len(BY_ADDRESS) >= 60


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "93.184.215.14", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450::1", "64:ff9b::101:101"],
)
def test_addresses_of_the_public_network_are_admitted(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example.com/bee.jpg",
        "https://images.example.com:8443/bee.jpg?size=1#top",
        "https://IMAGES.example.com./bee.jpg",
        "https://1.1.1.1/",
        "https://[2606:4700:4700::1111]/",
        "https://bücher.example/biene.jpg",
        "https://my_bucket.s3-eu-west-1.example.com/a%20b@c.jpg",
        "https://3com.example.com/",
    ],
)
def test_usual_addresses_are_admitted(url: str) -> None:
    check_url(url, address_rules(allow_private=False))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "https://[::1]/", "http://localhost:8000/", "http://redis/"])
def test_a_closed_network_admits_its_own_addresses(url: str) -> None:
    check_url(url, address_rules(allow_private=True))


# The service's own servers are never reached, and only some private networks may be.


def test_a_network_that_is_allowed_is_reached_and_no_other(sentinel: Sentinel) -> None:
    """127.0.0.2 stands for an allowed network, 127.0.0.1 for another one."""
    networks = (ip_network("127.0.0.2/32"),)
    with serving(says(b"bee"), host="127.0.0.2") as port:
        session = egress_session(allow_private=False, networks=networks, resolve=Resolver(["127.0.0.2"], ["127.0.0.1"]))
        assert session.get(f"http://{NAME}:{port}/", timeout=5).content == b"bee"
    refused = [
        *(f"http://{NAME}:{sentinel.port}/", f"http://127.0.0.1:{sentinel.port}/", f"https://[::1]:{sentinel.port}/"),
        *("http://1.1.1.1/", "https://1.1.1.1:444/", "http://169.254.169.254/"),
    ]

    for url in refused:
        with pytest.raises(AddressRefused):
            session.get(url, timeout=5)

    assert sentinel.connections == 0
    check_url("https://1.1.1.1/", address_rules(allow_private=False, networks=networks))
    check_url("http://[::ffff:127.0.0.2]:8000/", address_rules(allow_private=False, networks=networks))


OWN_FORMS = [
    *("http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://LOCALHOST:{port}/", "http://0.0.0.0:{port}/"),
    *("http://127.0.0.2:{port}/", "http://127.1:{port}/", "http://2130706433:{port}/", "http://[::1]:{port}/"),
    *("http://[::]:{port}/", "http://[::ffff:127.0.0.1]:{port}/", "http://[64:ff9b::7f00:1]:{port}/"),
    *("http://{name}:{port}/", "https://127.0.0.1:{port}/"),
]


@pytest.mark.parametrize("form", OWN_FORMS)
@pytest.mark.parametrize("own", ["127.0.0.1", "localhost", "0.0.0.0", NAME])  # noqa: S104  it is a name for this machine
def test_the_services_own_servers_are_not_reached_whatever_else_is(sentinel: Sentinel, form: str, own: str) -> None:
    denied = [Endpoint(own, range(sentinel.port, sentinel.port + 1))]
    session = egress_session(
        allow_private=True, networks=[ip_network("127.0.0.0/8")], denied=denied, resolve=_here_for_that_name
    )

    with pytest.raises(AddressRefused, match="one of this service's own"):
        session.get(form.replace("{port}", str(sentinel.port)).replace("{name}", NAME), timeout=5)

    assert sentinel.connections == 0


def test_every_sentinel_that_is_named_is_one_of_the_services_own_servers() -> None:
    settings = WorkerSettings(
        redis_url="sentinel://worker:password@one:26379,two:26380,three/mymaster/0", s3_endpoint="", egress_deny="redis"
    )

    assert settings.own_endpoints == (
        Endpoint("redis", None),
        Endpoint("one", range(26379, 26380)),
        Endpoint("two", range(26380, 26381)),
        Endpoint("three", range(26379, 26380)),
    )


def test_this_machines_own_address_is_recognised(sentinel: Sentinel) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; the system chooses the interface
        address = probe.getsockname()[0]
    session = egress_session(
        allow_private=True, denied=[Endpoint("127.0.0.1", range(sentinel.port, sentinel.port + 1))]
    )

    with pytest.raises(AddressRefused):
        session.get(f"http://{address}:{sentinel.port}/", timeout=5)


def test_other_ports_of_their_machine_are_reached_unless_all_are_denied(sentinel: Sentinel) -> None:
    with serving(says(b"bee")) as port:
        beside = egress_session(
            allow_private=True, denied=[Endpoint("127.0.0.1", range(sentinel.port, sentinel.port + 1))]
        )
        assert beside.get(f"http://127.0.0.1:{port}/", timeout=5).content == b"bee"
        with pytest.raises(AddressRefused):
            egress_session(allow_private=True, denied=[Endpoint("127.0.0.1", None)]).get(
                f"http://127.0.0.1:{port}/", timeout=5
            )


def test_a_server_that_is_not_found_now_refuses_nothing() -> None:
    def resolve(host: str, port: int, **named: Any) -> list[tuple[Any, ...]]:  # Any: as socket.getaddrinfo
        if host == "gone.example":
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return socket.getaddrinfo("127.0.0.1", port, **named)

    with serving(says(b"bee")) as port:
        session = egress_session(allow_private=True, denied=[Endpoint("gone.example", None)], resolve=resolve)
        assert session.get(f"http://{NAME}:{port}/", timeout=5).content == b"bee"


def test_the_settings_name_redis_s3_health_checks_the_api_and_what_is_denied() -> None:
    shared: dict[str, Any] = {  # Any: settings' own types
        "redis_url": "rediss://worker:a-word@redis.corp:6390/0",
        "s3_endpoint": "https://s3.corp",
        "egress_deny": "filer.corp, 10.0.0.7:9333,[fd00::1]:80",
    }

    of_all = WorkerSettings(**shared).own_endpoints
    of_worker = WorkerSettings(**shared, health_port=8080).own_endpoints
    of_api = ApiSettings(**shared, bind="0.0.0.0:8000").own_endpoints

    assert of_all == (
        Endpoint("filer.corp", None),
        Endpoint("10.0.0.7", range(9333, 9334)),
        Endpoint("fd00::1", range(80, 81)),
        Endpoint("redis.corp", range(6390, 6391)),
        Endpoint("s3.corp", range(443, 444)),
    )
    assert of_worker[-1] == Endpoint("127.0.0.1", range(8080, 8144))
    assert of_api[-1] == Endpoint("0.0.0.0", range(8000, 8001))  # noqa: S104  as it may be set
    assert WorkerSettings(redis_url="unix:///run/redis.sock").own_endpoints == ()


def _here_for_that_name(host: str, port: int | None, **named: Any) -> list[tuple[Any, ...]]:  # Any: as getaddrinfo
    return socket.getaddrinfo("127.0.0.1" if host == NAME else host, port, **named)


@pytest.mark.parametrize(
    "url", ["http://me:secret@127.0.0.1/", "ftp://127.0.0.1/", "file:///etc/passwd", "http://a\\b/"]
)
def test_a_closed_network_still_refuses_nonsense(url: str) -> None:
    with pytest.raises(AddressRefused) as refused:
        egress_session(allow_private=True).get(url, timeout=5)

    assert refused.value.code == "invalid_url"


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[int]:
    """Run a server on loopback; yield its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                answer(self)
            except OSError:  # the other side hung up
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def says(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    """The certificate bundle that the clients in these tests trust."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def tls_of(authority: trustme.CA, name: str, sni: list[str | None]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    context.sni_callback = lambda _socket, asked, _context: sni.append(asked)
    return context


def test_https_keeps_the_name_in_host_and_sni_and_checks_its_certificate(authority: trustme.CA, bundle: str) -> None:
    hosts: list[str] = []
    sni: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        hosts.append(handler.headers["Host"])
        says(b"bee")(handler)

    with serving(answer, tls_of(authority, NAME, sni)) as port:
        session = egress_session(allow_private=True, resolve=Resolver(["127.0.0.1"]))
        session.verify = bundle
        body = session.get(f"https://{NAME}:{port}/", timeout=10).content

    assert (body, hosts, sni) == (b"bee", [f"{NAME}:{port}"], [NAME])


def test_a_certificate_of_another_name_is_refused(authority: trustme.CA, bundle: str) -> None:
    with serving(says(b"bee"), tls_of(authority, "other.example.com", [])) as port:
        session = egress_session(allow_private=True, resolve=Resolver(["127.0.0.1"]))
        session.verify = bundle
        with pytest.raises(requests.exceptions.SSLError):
            session.get(f"https://{NAME}:{port}/", timeout=10)


def test_a_certificate_of_nobody_who_is_trusted_is_refused(authority: trustme.CA) -> None:
    with serving(says(b"bee"), tls_of(authority, NAME, [])) as port:
        session = egress_session(allow_private=True, resolve=Resolver(["127.0.0.1"]))
        with pytest.raises(requests.exceptions.SSLError):
            session.get(f"https://{NAME}:{port}/", timeout=10)


def test_a_name_that_is_rebound_leads_where_it_was_checked_and_then_nowhere(sentinel: Sentinel) -> None:
    """127.0.0.2 stands for the public network, 127.0.0.1 for the internal one."""
    only_2 = AddressRules(frozenset({"http"}), None, local_names=False, admits=lambda ip: str(ip) == "127.0.0.2")
    resolver = Resolver(["127.0.0.2"], ["127.0.0.1"])
    session = EgressSession(only_2, resolver)

    with serving(says(b"bee", Connection="close"), host="127.0.0.2") as port:
        first = session.get(f"http://{NAME}:{port}/", timeout=5)
    assert (first.content, resolver.asked) == (b"bee", 1)
    with pytest.raises(AddressRefused):
        session.get(f"http://{NAME}:{sentinel.port}/", timeout=5)

    assert (sentinel.connections, resolver.asked) == (0, 2)


def test_the_next_address_is_taken_when_the_first_is_silent() -> None:
    with serving(says(b"bee"), host="127.0.0.2") as port:
        session = egress_session(allow_private=True, resolve=Resolver(["127.0.0.3", "127.0.0.2"]))

        assert session.get(f"http://{NAME}:{port}/", timeout=5).content == b"bee"


def test_no_proxy_of_the_environment_is_used(sentinel: Sentinel, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{sentinel.port}")

    with serving(says(b"bee")) as port:
        assert egress_session(allow_private=True).get(f"http://127.0.0.1:{port}/", timeout=5).content == b"bee"

    assert sentinel.connections == 0


def test_cookies_of_one_answer_do_not_go_with_the_next_request() -> None:
    seen: list[str | None] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["Cookie"])
        says(b"", Set_Cookie="job=1; Path=/")(handler)

    with serving(answer) as port:
        session = egress_session(allow_private=True)
        for _ in range(2):
            session.get(f"http://127.0.0.1:{port}/", timeout=5)

    assert seen == [None, None]


def trickle(handler: BaseHTTPRequestHandler, start: bytes, one: bytes) -> None:
    handler.wfile.write(start)
    while True:
        handler.wfile.write(one)
        time.sleep(0.05)  # here the server is slow


@pytest.mark.parametrize(
    ("start", "one"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "chunks", "header", "continue"],
)
@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_a_trickle_ends_at_the_deadline(
    start: bytes, one: bytes, secure: bool, authority: trustme.CA, bundle: str
) -> None:
    tls = tls_of(authority, NAME, []) if secure else None
    with serving(lambda handler: trickle(handler, start, one), tls) as port:
        session = egress_session(allow_private=True, resolve=Resolver(["127.0.0.1"]))
        session.verify = bundle
        began = time.monotonic()
        with pytest.raises(requests.RequestException):
            session.get(f"{'https' if secure else 'http'}://{NAME}:{port}/", timeout=0.5)

    assert 0.4 < time.monotonic() - began < 2


def test_a_name_server_that_is_silent_ends_at_the_deadline() -> None:
    silence = threading.Event()

    def resolve(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        silence.wait(30)
        return []

    began = time.monotonic()
    with pytest.raises(requests.exceptions.ConnectTimeout):
        egress_session(allow_private=True, resolve=resolve).get(f"http://{NAME}/", timeout=0.3)

    assert time.monotonic() - began < 2
    silence.set()


def test_a_header_without_end_is_refused() -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(90):
            handler.wfile.write(b"X-%d: " % number + b"x" * 60_000 + b"\r\n")
        handler.wfile.write(b"Content-Length: 0\r\n\r\n")

    with serving(answer) as port, pytest.raises(requests.RequestException, match="headers are too long"):
        egress_session(allow_private=True).get(f"http://127.0.0.1:{port}/", timeout=5)


def fetch(url: str, session: requests.Session, store: Store, **fields: Any) -> bytes:
    return fetch_image(ImageSource.model_construct(url=url), "ant", store, session, WorkerSettings(**fields)).data


def test_a_redirect_is_checked_at_each_hop(sentinel: Sentinel, store: Store) -> None:
    only_2 = AddressRules(
        frozenset({"http"}), None, local_names=True, admits=lambda ip: str(ip) in ("127.0.0.2", "127.0.0.3")
    )

    def answer(handler: BaseHTTPRequestHandler) -> None:
        moved = {
            "/relative": "/two",
            "/two": f"http://127.0.0.3:{handler.server.server_port}/bee",  # type: ignore[attr-defined]  # http.server's
            "/inside": f"http://127.0.0.1:{sentinel.port}/",
            "/chain": "/inside",
            "/name": f"http://{NAME}:{sentinel.port}/",
            "/decimal": f"//2130706433:{sentinel.port}/",
            "/file": "file:///etc/passwd",
            "/user": f"http://a:b@127.0.0.2:{sentinel.port}/",
            "/loop": "/loop",
        }.get(handler.path)
        says(b"bee", 302 if moved else 200, **({"Location": moved} if moved else {}))(handler)

    with serving(answer, host="0.0.0.0") as port:  # noqa: S104  the name of all of loopback
        session = EgressSession(only_2, Resolver(["127.0.0.1"]))
        host = f"http://127.0.0.2:{port}"
        assert fetch(f"{host}/relative", session, store) == b"bee"
        for path, code in {
            "/inside": "url_not_allowed",
            "/chain": "url_not_allowed",
            "/name": "url_not_allowed",
            "/decimal": "url_not_allowed",
            "/file": "invalid_url",
            "/user": "invalid_url",
            "/loop": "url_redirects",
        }.items():
            with pytest.raises(InvalidImage) as refused:
                fetch(host + path, session, store)
            assert (path, refused.value.code) == (path, code)

    assert sentinel.connections == 0


def test_the_body_of_a_redirect_is_not_read(store: Store) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/bee":
            says(b"bee")(handler)
        else:
            handler.send_response(302)
            handler.send_header("Location", "/bee")
            handler.end_headers()
            trickle(handler, b"", b"x")

    with serving(answer) as port:
        url = f"http://127.0.0.1:{port}/"
        assert fetch(url, egress_session(allow_private=True), store, fetch_timeout_s=5) == b"bee"


def test_an_answer_that_grows_when_it_is_unpacked_is_cut_off_at_the_limit(store: Store) -> None:
    packed = gzip.compress(bytes(256 * 2**20))
    asked: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.headers["Accept-Encoding"])
        says(packed, Content_Encoding="gzip")(handler)

    with serving(answer) as port:
        url = f"http://127.0.0.1:{port}/"
        tracemalloc.start()
        with pytest.raises(InvalidImage) as refused:
            fetch(url, egress_session(allow_private=True), store, max_image_bytes=4 * 2**20)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert (refused.value.code, asked) == ("image_file_too_large", ["identity"])
    assert peak < 24 * 2**20


def test_an_endless_answer_is_cut_off_at_the_limit(store: Store) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(2**16))

    with serving(answer) as port, pytest.raises(InvalidImage) as refused:
        fetch(f"http://127.0.0.1:{port}/", egress_session(allow_private=True), store, max_image_bytes=2**20)

    assert refused.value.code == "image_file_too_large"


def test_a_slow_host_is_the_sources_fault_and_tried_again(store: Store) -> None:
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    with serving(lambda handler: trickle(handler, start, b"x")) as port, pytest.raises(SourceUnavailable):
        fetch(f"http://127.0.0.1:{port}/", egress_session(allow_private=True), store, fetch_timeout_s=0.5)
