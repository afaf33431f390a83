"""Traces: nothing is imported without an endpoint, and a caller's ``traceparent`` is read as W3C says."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime

import pytest
import redis

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.tracing import read_traceparent
from tests import taking
from tests.jobs.full_ledger import QUEUE, SPEC, TENANT

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
#: Starts tracing, as programs do, uses it, and tells what was imported of OpenTelemetry.
PROGRAM = """
import sys
from maskfleet.jobs.logs import configure_logs
from maskfleet.jobs.tracing import context_outside, current, span, start_tracing, stop_tracing

configure_logs("INFO", program="a-test")
start_tracing("a-test", "node-1")
with span("attempt", {"maskfleet.attempt": 1}, of="") as made, span("fetch"):
    current().note({"maskfleet.outcome": "done"})
    context_outside().run(lambda: span("S3 PutObject").end())
print(made.traceparent, any(name.split(".")[0] == "opentelemetry" for name in sys.modules))
stop_tracing()
"""


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**own, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_where_no_traces_are_wanted_opentelemetry_is_not_imported(variables: dict[str, str]) -> None:
    done = run(**variables)

    assert (done.stdout, done.stderr) == (" False\n", "")


def test_a_protocol_that_is_not_spoken_is_named() -> None:
    done = run(**ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")

    assert done.stdout == " False\n"
    assert "traces_not_sent" in done.stderr
    assert "set http/protobuf" in done.stderr


@pytest.mark.parametrize(
    "header",
    [
        TRACEPARENT,
        f" {TRACEPARENT} ",
        TRACEPARENT.replace("00-", "cc-", 1),
        TRACEPARENT.replace("00-", "cc-", 1) + "-what-comes-later",
    ],
)
def test_a_callers_traceparent_is_read(header: str) -> None:
    assert read_traceparent(header) == TRACEPARENT


@pytest.mark.parametrize(
    "header",
    [
        "",
        TRACEPARENT[:-1],
        TRACEPARENT.upper(),
        f"{TRACEPARENT}-more",
        TRACEPARENT.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        TRACEPARENT.replace("01", "0\n"),
        f"01{TRACEPARENT[2:]}-{'x' * 600}",
    ],
)
def test_what_is_no_traceparent_is_ignored(header: str) -> None:
    assert read_traceparent(header) == ""


def test_a_claim_says_since_when_the_job_waited(ledger: Ledger, redis_client: redis.Redis) -> None:
    new = NewJobs(tenant=TENANT, queue=QUEUE, specs_json=(SPEC % "a",), start_deadline_s=86_400)
    job = ledger.create(new, max_in_flight=9, idempotency_ttl_s=60).id
    first = taking.claim(ledger, job)
    assert first is not None
    ledger.release(first, delay_s=0, charged=True, outcome="store_unavailable")
    second = taking.claim(ledger, job)
    assert second is not None
    ledger.fail(second, "internal_error", "It failed.")
    redis_client.hset(f"mf:job:{job}", "created_ms", 1)  # long ago
    ledger.retry(job, TENANT, start_deadline_s=86_400, max_in_flight=9)
    third = taking.claim(ledger, job)

    assert third is not None
    assert first.waited_since_ms == first.created_ms
    assert second.waited_since_ms == _ms(ledger.attempts(job)[0].ended_at)
    assert _ms(ledger.attempts(job)[1].ended_at) <= third.waited_since_ms <= (third.claimed_ms or 0)


def _ms(time: datetime | None) -> int:
    assert time is not None
    return round(time.timestamp() * 1000)
