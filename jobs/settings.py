"""The settings of each program: one frozen class for each, read once at program start.

What several programs must agree on is declared once, in ``SharedSettings``; set it to the same value for all of them.

Every setting is an environment variable ``MASKFLEET_`` + the field's name in capitals.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from maskfleet.jobs.addresses import PUBLIC_PORTS, AddressRefused, AddressRules, Endpoint, address_rules, check_url
from maskfleet.jobs.buckets import AllowedBucket
from maskfleet.jobs.fleet import DEFAULT_MAX_WORKERS, OUTPUTS, FleetRules
from maskfleet.jobs.schema.spec import MAX_BATCH_IMAGES, Priority, Webhook
from maskfleet.jobs.schema.wire import HttpUrl
from maskfleet.jobs.webhook_secrets import master_bytes

#: The model used when none is set; the guide "Mask Generation" uses the same.
DEFAULT_MODEL = "facebook/sam-vit-base"

#: About 150,000 records of usual size.
DEFAULT_MAX_RECORD_BYTES = 256 * 2**20

#: The base URL of links when none is set: where ``maskfleet api`` listens by default.
LOCAL_API_URL = "http://127.0.0.1:8000"

#: The device of a worker that has no model.
NO_DEVICE = "none"
#: Workers on one machine: more than it has devices, times those that share each.
MAX_NODES = 64

Names = Annotated[tuple[str, ...], NoDecode]
#: The exact form in which browsers send an origin.
Origins = Annotated[tuple[Annotated[str, Field(pattern=r"^https?://[a-z0-9.:\[\]-]+$")], ...], NoDecode]
#: A host name, an address without brackets, or a network; neither a scheme nor a port.
Host = Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9.-]+|[0-9A-Fa-f:.]+(/[0-9]{1,3})?)$")]
#: A host name, an IPv4 address or an IPv6 address in brackets, then perhaps a port.
DENIED = r"^([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:[1-9][0-9]{0,4})?$"
RateLimit = Annotated[str, Field(pattern=r"^([1-9][0-9]*/(second|minute|hour|day))?$")]


def _split(value: object) -> object:
    """Read ``a,b`` as a tuple; environment variables are strings."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _split_pairs(value: object) -> object:
    """Read ``a:1,b:2`` as a mapping."""
    if isinstance(value, str):
        return dict(part.strip().rpartition(":")[::2] for part in value.split(",") if part.strip())
    return value


def _split_endpoints(value: object) -> object:
    """Read ``a:https://…,b:https://…`` as a mapping; write a comma in a URL as %2C."""
    if isinstance(value, str):
        return dict(part.strip().partition(":")[::2] for part in value.split(",") if part.strip())
    return value


def _split_buckets(value: object) -> object:
    """Read ``a:photos/a,shared`` as entries."""
    parts = _split(value)
    if isinstance(parts, tuple | list):
        return tuple(AllowedBucket.parse(part) if isinstance(part, str) else part for part in parts)
    return parts


class SharedSettings(BaseSettings):
    """Settings shared by all programs: where Redis and S3 are, how long data is kept, and what they must agree on."""

    model_config = SettingsConfigDict(env_prefix="MASKFLEET_", frozen=True, extra="ignore", hide_input_in_errors=True)

    #: ``rediss://`` for TLS; the server's certificate is checked.  ``sentinel://user:password@host:26379,host2:26379/name/0``
    #: for the primary of that name, as Sentinels know it.
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    #: The Sentinels' own password, if they have one.
    redis_sentinel_password: SecretStr = SecretStr("")
    #: A file with the certificate authorities to trust.  Empty: the system's.
    redis_ca: str = ""
    #: Empty: Amazon S3.
    s3_endpoint: str = ""
    #: The URL at which clients reach the same S3; presigned links use it.  Empty: s3_endpoint.
    s3_public_endpoint: str = ""
    s3_region: str = "us-east-1"
    #: Empty: the credentials that boto3 finds by itself.
    s3_access_key: SecretStr = SecretStr("")
    s3_secret_key: SecretStr = SecretStr("")
    bucket: str = "maskfleet"
    #: Presigned links work for this long.
    link_ttl_s: int = Field(3600, ge=1, le=7 * 24 * 3600)
    #: What a worker loads: a hub id, or a folder with a SAM checkpoint.
    model: str = DEFAULT_MODEL
    #: Records of ended jobs expire after this time; the sweep then deletes their objects, if no bucket rule has.
    retention_s: int = Field(7 * 24 * 3600, ge=60)
    #: Tenants' shares of the workers where they differ from 1, as in ``apiary:3,bakery:0.5``.
    tenant_weights: Annotated[dict[str, Annotated[float, Field(gt=0, le=1000)]], NoDecode] = Field(default_factory=dict)
    log_level: str = "INFO"
    #: Whether images and webhooks may use plain http, any port and any address: for closed networks and the demo.
    egress_allow_private: bool = False
    #: Private networks in which they may use plain http and any port, as in ``10.1.0.0/16,192.168.7.9``.
    egress_allow_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    #: Servers that they never reach, as ``host:port``, or ``host`` for all of its ports, besides Redis and S3.  Of a
    #: Redis behind Sentinels only these are known from its URL.
    egress_deny: Annotated[tuple[Annotated[str, Field(pattern=DENIED)], ...], NoDecode] = ()
    #: Otherwise they may use only https, on these ports.
    egress_ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], NoDecode] = PUBLIC_PORTS
    #: The largest image file that is accepted or fetched.
    max_image_bytes: int = Field(64 * 2**20, ge=1)
    #: The largest image that is decoded, by the size in its header.
    max_image_pixels: int = Field(100_000_000, ge=1)
    #: Attempts before a job fails with ``attempts_exhausted``; workers and the courier count them.
    max_attempts: int = Field(3, ge=1)
    #: What jobs may name in an ``s3_uri``, as in ``apiary:photos/apiary,shared-photos``; see ``jobs.buckets``.  The API
    #: and the workers reject all else.
    allowed_buckets: Annotated[tuple[AllowedBucket, ...], NoDecode] = ()
    #: The URL at which clients reach the API; links in responses and webhooks start with it.  Empty: the request's own
    #: in responses, LOCAL_API_URL in webhooks.
    public_url: str = ""

    _split_shared = field_validator("egress_ports", "egress_allow_networks", "egress_deny", mode="before")(_split)
    _split_buckets = field_validator("allowed_buckets", mode="before")(_split_buckets)
    _split_weights = field_validator("tenant_weights", mode="before")(_split_pairs)

    @model_validator(mode="after")
    def _authorities_are_for_tls(self) -> Self:
        if self.redis_ca and not self.redis_url.get_secret_value().startswith("rediss://"):
            raise ValueError(
                "redis_ca is set, but redis_url does not begin with rediss://: nothing would be encrypted."
            )
        return self

    @field_validator("model")
    @classmethod
    def _model_has_queues_of_its_own(cls, model: str) -> str:
        return _no_reserved_name(model)

    @model_validator(mode="after")
    def _own_bucket_is_not_named(self) -> Self:
        if any(one.bucket == self.bucket for one in self.allowed_buckets):
            raise ValueError(
                f"allowed_buckets names {self.bucket!r}, the service's own bucket, which holds all tenants' images and "
                "results. Put the images that jobs may name into another one."
            )
        return self

    @property
    def own_endpoints(self) -> tuple[Endpoint, ...]:
        """The service's own servers, which no image's URL and no webhook may lead to."""
        named = [urlsplit(f"//{entry}") for entry in self.egress_deny]
        denied = [Endpoint(one.hostname or "", range(one.port, one.port + 1) if one.port else None) for one in named]
        s3 = Endpoint.of_url(self.s3_endpoint, 443 if self.s3_endpoint.startswith("https://") else 80)
        return (*denied, *_redis_endpoints(self.redis_url.get_secret_value()), *([s3] if s3 else []))

    @property
    def address_rules(self) -> AddressRules:
        """Where images and webhooks may lead."""
        return address_rules(
            allow_private=self.egress_allow_private,
            ports=self.egress_ports,
            networks=self.egress_allow_networks,
            denied=self.own_endpoints,
        )

    @property
    def model_name(self) -> str:
        """The model's name in the API: its hub id, or its folder's name."""
        return model_name(self.model)


class SigningSettings(SharedSettings):
    """Settings of the programs that know the tenants' webhook secrets: the API shows them, the courier signs."""

    #: ``whsec_…``; each tenant's secret is derived from the first, and while it is being replaced also from the others.
    #: Give it to nobody: who knows it knows every tenant's.
    webhook_master_secrets: Annotated[tuple[SecretStr, ...], NoDecode] = ()

    _split_masters = field_validator("webhook_master_secrets", mode="before")(_split)

    @field_validator("webhook_master_secrets")
    @classmethod
    def _masters_are_secrets(cls, masters: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for master in masters:
            master_bytes(master.get_secret_value())
        return masters

    @property
    def masters(self) -> tuple[str, ...]:
        """The master secrets in plain text."""
        return tuple(master.get_secret_value() for master in self.webhook_master_secrets)


class ApiSettings(SigningSettings):
    """Settings of the API."""

    #: ``tenant:key`` pairs.  A key may be given as ``sha256:<hex>``.
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    #: Models that jobs may use, in addition to ``model``.
    models: Names = ()
    #: Tenants' default endpoints, for jobs that name no webhook, as in ``apiary:https://example.com/hook``.
    webhook_endpoints: Annotated[dict[str, HttpUrl], NoDecode] = Field(default_factory=dict, repr=False)
    #: The most jobs of one tenant that may be queued or running at once.
    max_jobs_in_flight: int = Field(10_000, ge=1)
    #: The same for individual tenants, as in ``apiary:100,bakery:50000``.
    tenant_jobs_in_flight: Annotated[dict[str, Annotated[int, Field(ge=1)]], NoDecode] = Field(default_factory=dict)
    #: The most bytes that the records of one tenant may take in Redis: of jobs that have not ended, and of those that
    #: ended less than retention_s ago.
    max_record_bytes: int = Field(DEFAULT_MAX_RECORD_BYTES, ge=1)
    #: The same for individual tenants, as in ``apiary:1073741824``.
    tenant_record_bytes: Annotated[dict[str, Annotated[int, Field(ge=1)]], NoDecode] = Field(default_factory=dict)
    #: The most bytes of images that one tenant may have stored within ``upload_window_s``: sent with jobs, or by upload
    #: links, which count when they are made.
    max_upload_bytes: int = Field(2**40, ge=1)
    #: The same for individual tenants, as in ``apiary:5000000000``.
    tenant_upload_bytes: Annotated[dict[str, Annotated[int, Field(ge=1)]], NoDecode] = Field(default_factory=dict)
    #: As long as the bucket's rule for ``uploads/`` keeps them; then what is counted is what is stored.
    upload_window_s: int = Field(9 * 24 * 3600, ge=3600)
    #: The most images in one batch.
    max_batch_images: int = Field(MAX_BATCH_IMAGES, ge=1, le=MAX_BATCH_IMAGES)
    #: Batches from a prefix or a manifest that one tenant may have open at once.
    max_open_batches: int = Field(20, ge=1)
    #: A job on an image that a node has in memory is first offered to that node alone, for this time; 0 for never.
    image_node_wait_ms: int = Field(40, ge=0, le=1000)
    #: A job is rejected while the jobs queued before it would take longer than this; 0 for never.
    max_backlog_s: float = Field(0, ge=0)
    #: Within how many seconds jobs should start, by class, as in ``interactive:5,bulk:3600``; for the desired number of
    #: workers.
    target_wait_s: Annotated[dict[Priority, Annotated[float, Field(ge=0)]], NoDecode] = Field(default_factory=dict)
    #: How long a job takes, as long as none of its model was measured.
    expected_job_s: float = Field(5.0, gt=0)
    #: The fewest and the most workers that are desired for a model.
    min_workers: int = Field(0, ge=0)
    max_workers: int = Field(DEFAULT_MAX_WORKERS, ge=0)
    #: The same for individual models, as in ``facebook/sam-vit-huge:8,sam-demo:2``.
    model_min_workers: Annotated[dict[str, Annotated[int, Field(ge=0)]], NoDecode] = Field(default_factory=dict)
    model_max_workers: Annotated[dict[str, Annotated[int, Field(ge=0)]], NoDecode] = Field(default_factory=dict)
    #: The rate limit per key, as in ``600/minute``; empty for none.
    rate_limit: RateLimit = "6000/minute"
    #: The rate limit per client address, for requests without a known key.
    anonymous_rate_limit: RateLimit = "60/minute"
    #: Proxies before the API that set X-Forwarded-For and X-Forwarded-Proto, which callers could otherwise forge.
    trusted_proxies: int = Field(0, ge=0)
    #: Host names, addresses and networks that a Host header may name; ``*`` for any.  Empty: loopback, and the host of
    #: public_url or, without one, of bind.  Health checks are answered under any.
    trusted_hosts: Annotated[tuple[Host, ...], NoDecode] = ()
    #: Origins whose pages may call the API from a browser, as in ``https://masks.example.com``; empty for none.
    cors_origins: Origins = ()
    max_body_bytes: int = Field(96 * 2**20, ge=1)
    upload_ttl_s: int = Field(900, ge=1)
    #: The longest ``Prefer: wait`` that is honoured.
    max_wait_s: int = Field(60, ge=0)
    #: The longest that an event stream stays open; clients reconnect by themselves.
    max_stream_s: int = Field(600, ge=1)
    #: How often an idle stream sends a comment, so that no proxy considers it dead.
    heartbeat_s: float = Field(10.0, gt=0)
    idempotency_ttl_s: int = Field(24 * 3600, ge=60)
    #: How many replicas of Redis must have a job before it is accepted.
    redis_wait_replicas: int = Field(0, ge=0)
    #: Whether the job must be on the disk of Redis' primary as well; needs Redis 7.2 or newer, or Valkey.
    redis_wait_aof: bool = False
    #: How long each of the two is waited for; then the request is answered with 503 ``record_not_confirmed``.
    redis_wait_s: float = Field(1.0, gt=0, le=4)
    #: Host and port.  Not two settings: Kubernetes sets MASKFLEET_PORT by itself for a service of that name.
    bind: str = "127.0.0.1:8000"
    #: Host and port at which ``/metrics`` needs no key, for a network that callers cannot reach; empty for nowhere.
    metrics_bind: str = ""
    #: Where the processes keep their request metrics; empty: in memory, or in the system's temporary folder.
    metrics_dir: str = ""
    #: Responses of ``/ready`` and ``/metrics`` are this old at most; asking more often costs nothing more.
    health_cache_s: float = Field(1.0, ge=0)
    processes: int = Field(2, ge=1)
    #: No longer used: requests cost no threads.
    threads: int | None = None
    #: Connections of each process; fewer if it may not open as many files.
    max_connections: int = Field(8192, ge=16)
    #: The same from one address (for IPv6, its /64); 0 for no limit, as with trusted_proxies, where all come from one.
    max_connections_per_address: int = Field(1024, ge=0)
    #: Event streams and waits that each process holds, in all and for one tenant.
    max_held: int = Field(4096, ge=1)
    max_held_per_tenant: int = Field(512, ge=1)
    #: A request's head must arrive within this time; so long a new connection may also stay silent.
    head_timeout_s: float = Field(10.0, gt=0)
    #: A request's body may keep the service waiting for this long, and a second more for every body_min_rate bytes.
    body_timeout_s: float = Field(30.0, gt=0)
    body_min_rate: int = Field(64 * 2**10, ge=1)
    #: Connections are kept open between requests for this long.  A load balancer keeps them for a minute; the server
    #: must not be the first to close them.
    keepalive_s: int = Field(75, ge=0)
    #: Bytes of request bodies that each process reads and parses at once, in all; one tenant may have half.  Each takes
    #: about three bytes of memory.
    max_bytes_under_way: int = Field(256 * 2**20, ge=1)

    _split_names = field_validator("api_keys", "models", "cors_origins", "trusted_hosts", mode="before")(_split)
    _split_pairs = field_validator(
        "tenant_jobs_in_flight",
        "tenant_record_bytes",
        "tenant_upload_bytes",
        "target_wait_s",
        "model_min_workers",
        "model_max_workers",
        mode="before",
    )(_split_pairs)
    _split_endpoints = field_validator("webhook_endpoints", mode="before")(_split_endpoints)

    @field_validator("models")
    @classmethod
    def _models_have_queues_of_their_own(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_no_reserved_name, models))

    @model_validator(mode="after")
    def _one_body_fits(self) -> Self:
        if self.max_bytes_under_way < self.max_body_bytes:
            raise ValueError(
                f"max_bytes_under_way ({self.max_bytes_under_way:,}) must be at least max_body_bytes "
                f"({self.max_body_bytes:,})."
            )
        return self

    @model_validator(mode="after")
    def _endpoints_are_gone_to(self) -> Self:
        for tenant, url in self.webhook_endpoints.items():
            try:
                check_url(url, self.address_rules)
            except AddressRefused as error:
                raise ValueError(
                    f"webhook_endpoints: the URL for tenant {tenant!r} is not allowed: {error.detail}"
                ) from error
        return self

    @property
    def own_endpoints(self) -> tuple[Endpoint, ...]:
        """As for all programs, and the API itself."""
        itself = None if self.bind.startswith("unix:") else Endpoint.of_url(f"//{self.bind}", 80)
        return (*super().own_endpoints, *([itself] if itself else []))

    def default_webhook(self, tenant: str) -> Webhook | None:
        """Return the webhook for a tenant's jobs that name none; None without a default endpoint."""
        url = self.webhook_endpoints.get(tenant)
        return Webhook(url=url) if url else None

    def jobs_in_flight(self, tenant: str) -> int:
        """Return how many jobs of a tenant may be queued or running at once."""
        return self.tenant_jobs_in_flight.get(tenant, self.max_jobs_in_flight)

    def record_bytes(self, tenant: str) -> int:
        """Return how many bytes the records of a tenant may take in Redis."""
        return self.tenant_record_bytes.get(tenant, self.max_record_bytes)

    def upload_bytes(self, tenant: str) -> int:
        """Return how many bytes of images a tenant may have stored."""
        return self.tenant_upload_bytes.get(tenant, self.max_upload_bytes)

    @property
    def fleet_rules(self) -> FleetRules:
        """What decides how many workers a model should have, besides its jobs."""
        return FleetRules(
            target_wait_s=self.target_wait_s,
            expected_job_s=self.expected_job_s,
            min_workers=self.min_workers,
            max_workers=self.max_workers,
            model_min_workers=self.model_min_workers,
            model_max_workers=self.model_max_workers,
        )

    @property
    def model_names(self) -> tuple[str, ...]:
        """Models that jobs may use, the default first."""
        return tuple(dict.fromkeys((self.model_name, *(model_name(model) for model in self.models))))


class _HealthSettings(SharedSettings):
    """Settings of a program that serves nothing but its health."""

    #: Where ``/live`` and ``/ready`` are served; port 0 for nowhere.
    health_host: str = "127.0.0.1"
    health_port: int = Field(0, ge=0, le=65535)


class WorkerSettings(_HealthSettings):
    """Settings of a worker: one process, on one device that it may share with others."""

    #: The commit, tag or branch of a hub id in ``model``; a commit always means the same weights.  Empty: the latest.
    model_revision: str = ""
    #: ``cpu``, ``cuda``, or ``none`` for a worker without a model; CUDA_VISIBLE_DEVICES selects the GPU, before torch
    #: is imported.
    device: str = "cpu"
    #: Whether a worker with a model also takes jobs that need none, such as exports.
    serve_outputs: bool = True
    node: str = Field(default_factory=socket.gethostname)
    #: So many workers share each device: one's downloads, decoding, outputs and uploads run beside another's inference.
    slots_per_device: int = Field(1, ge=1, le=MAX_NODES)
    #: A job whose lease runs out is given to another worker.
    lease_s: float = Field(30.0, gt=0)
    beat_s: float = Field(3.0, gt=0)
    #: An attempt that does not stop when told to is killed, with its process, after this time.
    stop_grace_s: float = Field(20.0, gt=0)
    #: A worker told to shut down finishes its job within this time, or hands it back.
    drain_grace_s: float = Field(25.0, ge=0)
    #: A worker that received nothing for this long sends itself a message.
    canary_s: float = Field(10.0, gt=0)
    #: A worker that no message reached for this long is not ready.
    ready_within_s: float = Field(60.0, gt=0)
    #: Until this long after a job's first claim, attempts that fail because S3 or Redis is down do not count.
    outage_patience_s: float = Field(900.0, ge=0)
    #: A node that met so many faults of its own in a row takes no more jobs until its self-test passes; 0 for never.
    node_faults: int = Field(3, ge=0)
    #: How long it waits before the first self-test; twice as long before each further one, up to 300 s.
    probe_s: float = Field(5.0, gt=0)
    #: A URL of a host that is always up: a worker that cannot reach it takes no jobs until it can.  Empty: not tested.
    egress_probe_url: str = ""
    #: How often a worker tests its model on the golden picture, between two jobs; 0: only when it has loaded it.
    model_test_s: float = Field(3600.0, ge=0)
    #: The golden masks of ``model``.  Empty: ``golden.json`` in its folder, if there is one.
    golden_file: str = ""
    #: How long Celery waits for a child process to load its model before it starts another.
    load_timeout_s: float = Field(600.0, gt=0)
    fetch_timeout_s: float = Field(60.0, gt=0)
    #: Objects of a result that go up to the store side by side; the client has 32 connections.
    uploads_at_once: int = Field(16, ge=1, le=32)
    #: The encoder's precision.  Half precision is faster on a GPU, and its masks differ slightly.
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    #: Whether the encoder is compiled when the model is loaded; ``encoder_graphs`` also records it as CUDA graphs.
    compile: Literal["off", "encoder", "encoder_graphs"] = "off"
    torch_threads: int = Field(0, ge=0, description="0: let torch choose.")
    #: Main memory for the embeddings of images that jobs may name again; 0 for none.
    embedding_cache_bytes: int = Field(512 * 2**20, ge=0)
    #: Whether embeddings are kept in the object store as well, for other workers and after a restart.
    embedding_store: bool = True

    @property
    def has_model(self) -> bool:
        """Whether the worker loads a model; one without takes the jobs that need none."""
        return self.device != NO_DEVICE

    @property
    def serves(self) -> str:
        """What the worker is counted by: its model, or what stands for one."""
        return self.model_name if self.has_model else OUTPUTS

    @model_validator(mode="after")
    def _probe_is_allowed(self) -> Self:
        if self.egress_probe_url:
            try:
                check_url(self.egress_probe_url, self.address_rules)
            except AddressRefused as error:
                raise ValueError(f"egress_probe_url is not a URL that workers may reach: {error.detail}") from error
        return self

    @property
    def own_endpoints(self) -> tuple[Endpoint, ...]:
        """As for all programs, and the health checks of this machine's nodes, which use consecutive ports."""
        health = Endpoint(self.health_host, range(self.health_port, self.health_port + MAX_NODES))
        return (*super().own_endpoints, *([health] if self.health_port else []))


class CourierSettings(SigningSettings, _HealthSettings):
    """Settings of the courier."""

    #: Secrets that several tenants' receivers still share, from before each had its own: every webhook carries their
    #: signatures, too.  A receiver that verifies with one believes whoever else knows it.
    webhook_shared_secrets: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    #: Delays before each attempt, plus up to a fifth; after the last failure the delivery is given up.  The schedule of
    #: Standard Webhooks: 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h and 24 h, three days in all.
    webhook_schedule_s: Annotated[tuple[Annotated[float, Field(ge=0)], ...], NoDecode, Field(min_length=1)] = (
        *(0, 5, 5 * 60, 30 * 60),
        *(hours * 3600 for hours in (2, 5, 10, 14, 20, 24)),
    )
    #: The time limit of one attempt, from resolving the host to the last byte of its response.  A host that hung lately
    #: has a third of it for the first two attempts of a webhook.
    webhook_timeout_s: float = Field(15.0, gt=0)
    #: Webhooks that one courier sends at once, shared out among the tenants.
    webhook_senders: int = Field(32, ge=1)
    #: Webhooks of one tenant that all couriers together send to one host at once.
    webhook_per_host: int = Field(8, ge=1)
    #: A host that failed this often in a row is paused; 0 for never.  One that fails a third of the time is not.
    webhook_breaker_failures: int = Field(10, ge=0)
    #: How long it is paused at first; twice as long after each failed probe, up to 32 times.
    webhook_breaker_s: float = Field(10.0, gt=0)
    #: Jobs of one batch from a prefix or a manifest that are queued or running at once; as they end, more are created.
    batch_window: int = Field(500, ge=1, le=10_000)
    #: How long the records of such a batch's jobs are kept once they were collected, if that is less than retention_s.
    batch_record_s: float = Field(3600.0, ge=1)
    #: How often leases, deadlines and bells are checked.
    tick_s: float = Field(1.0, gt=0)
    #: How often one of the couriers compares sets, lists and counts in Redis with the records; 0 for never.
    reconcile_s: float = Field(60.0, ge=0)
    #: How often one of the couriers looks for objects that no record names; 0 for never.
    sweep_s: float = Field(3600.0, ge=0)
    #: How long objects outlive what named them: an attempt that lost its lease, a record that expired.
    sweep_grace_s: float = Field(24 * 3600, ge=0)

    _split_names = field_validator("webhook_shared_secrets", "webhook_schedule_s", mode="before")(_split)

    @model_validator(mode="after")
    def _masters_are_not_shared(self) -> Self:
        if set(self.masters) & {secret.get_secret_value() for secret in self.webhook_shared_secrets}:
            raise ValueError(
                "A secret is in both webhook_master_secrets and webhook_shared_secrets: whoever shares it could derive "
                "every tenant's. Make a new master secret."
            )
        return self


def _redis_endpoints(url: str) -> tuple[Endpoint, ...]:
    """Return the servers that a Redis URL names: one, several Sentinels, or none for a UNIX socket."""
    if url.startswith("sentinel://"):
        hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
        found = [Endpoint.of_url(f"//{host}", 26379) for host in hosts]
    else:
        found = [Endpoint.of_url(url, 6379)]
    return tuple(one for one in found if one is not None)


def _no_reserved_name(model: str) -> str:
    if model_name(model).lower() == OUTPUTS:
        raise ValueError(
            f"A model cannot be called {OUTPUTS!r}: so are the queues of jobs that need none. Rename its folder."
        )
    return model


def model_name(model: str) -> str:
    """Return a model's name in the API: a hub id unchanged, a folder (an absolute path, or ./…) by its last part."""
    return model.rstrip("/").rpartition("/")[2] if model.startswith(("/", ".")) else model
