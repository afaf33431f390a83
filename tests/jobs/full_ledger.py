"""A ledger with something of everything: jobs in each state, batches, webhooks, keys.

    python -m tests.jobs.full_ledger > tests/jobs/ledgers/<version>.json

stores what the scripts of this version write, for the test that the next version can continue with it.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import redis

from maskfleet.jobs.ledger.api_keys import KeyStore, Scope
from maskfleet.jobs.ledger.batches import Batches, Page
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.deliveries import Breaker, Deliveries, Delivery
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import BatchStep, NewBatch, NewJobs, Origin
from maskfleet.jobs.ledger.workers import WorkerRegistry, WorkerSeen
from maskfleet.jobs.schema.batch import StoredBatchFile
from maskfleet.jobs.schema.delivery import DeliveryAttempt, DeliveryAttemptOutcome, DeliveryState
from maskfleet.jobs.schema.record import JobRecord, Metrics, ProgressView, ResultSummary
from maskfleet.jobs.schema.spec import EventName, ImageSource, Webhook
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Stage
from maskfleet.stack.servers import start_redis
from tests import taking
from tests.taking import take_due

ORIGIN = Origin("order-7", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
TENANT, NODE, QUEUE = "ant", "node-1", "sam.m.normal"
IMAGE = "upl_00000000000000000000000000000000"
SPEC = (
    '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"},'
    '"model":"m","metadata":{"name":"%s"}}'
)
RESULT = ResultSummary(prefix="p/", manifest_key="p/manifest.json", masks=3, best_score=0.9, metrics=Metrics())
DAY_S = 24 * 3600
MANY = 1000


class FullLedger:
    """Fill an empty Redis.  Each job's metadata names what is special about it."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._ledger = Ledger(client, DAY_S)
        self._deliveries = Deliveries(client, Breaker(failures=1, first_s=100), DAY_S)

    def fill(self) -> None:
        self._expire("expired")  # first: it reaps, and would requeue the lost one
        self._jobs()
        self._batch("open", 3)
        self._batch("complete", 1)
        self._expanded_batches()
        released = self._claim(self._create("released"))
        self._ledger.release(released, delay_s=0, charged=True, outcome="store_unavailable", avoid_s=30)
        self._send_webhooks()
        KeyStore(self._client).create(TENANT, [Scope.READ], lifetime_s=90 * DAY_S)
        WorkerRegistry(self._client).announce(WorkerSeen(NODE, "m", "cpu", 12, 3, version="0.1.0"))

    def _jobs(self) -> None:
        ledger = self._ledger
        self._create("queued")
        self._create("published", host="published", key="order-42")
        running = self._claim(self._create("running", host="running"))
        ledger.beat(running, ProgressView(stage=Stage.DECODING, done=1, total=4, masks=2), lease_s=600)
        self._claim(self._create("lost"), lease_s=0)
        ledger.cancel(self._claim(self._create("to be canceled")).id, TENANT)
        ledger.cancel(self._create("canceled"), TENANT)
        ledger.succeed(self._claim(self._create("succeeded", host="untold")), RESULT)
        ledger.fail(self._claim(self._create("failed", host="failing")), "image_corrupt", "It is damaged.")
        retried, deleting = self._create("retried"), self._create("being deleted")
        for job_id in (retried, deleting):
            ledger.fail(self._claim(job_id), "image_corrupt", "It is damaged.")
        ledger.retry(retried, TENANT, start_deadline_s=DAY_S, max_in_flight=MANY)
        ledger.begin_deletion(deleting, TENANT)

    def _batch(self, name: str, jobs: int) -> None:
        specs = tuple(SPEC % f"{name}, {number}" for number in range(jobs))
        batch = NewBatch("https://batch.example.com/hook", {"name": name})
        new = NewJobs(TENANT, QUEUE, specs, DAY_S, None, f"album {name}", "digest", batch, origin=ORIGIN)
        first, *others = self._ledger.create(new, max_in_flight=MANY, idempotency_ttl_s=DAY_S).job_ids
        self._ledger.succeed(self._claim(first), RESULT)
        if others:
            self._claim(others[0])

    def _expanded_batches(self) -> None:
        """One that is being expanded, and one whose source failed, that was canceled and is being deleted."""
        batches = Batches(self._client)
        source, plan = '{"prefix":"s3://photos/tiles/"}', '{"spec":"{}"}'
        expanding, ended = (
            self._ledger.create(
                NewJobs(
                    TENANT, QUEUE, (), DAY_S, batch=NewBatch("https://batch.example.com/hook", {}, source, plan, 9)
                ),
                max_in_flight=MANY,
                idempotency_ttl_s=DAY_S,
            ).id
            for _ in range(2)
        )
        rejected = '{"number":3,"status":"rejected","code":"invalid_spec","detail":"Line 3: It is not valid JSON."}'
        step = BatchStep(expanding, "", "tiles/2.png", (1, 2), 3, (rejected,))
        first, _ = self._ledger.create(
            NewJobs(TENANT, QUEUE, (SPEC % "tile 1", SPEC % "tile 2"), DAY_S, step=step),
            max_in_flight=MANY,
            idempotency_ttl_s=0,
        ).job_ids
        self._ledger.succeed(self._claim(first), RESULT)
        batches.note_found(expanding, 9)
        page = Page(f"batches/{TENANT}/{expanding}/pages/1", 1, 1, 0)
        assert batches.collect(expanding, 0, 1, page, (), kept_s=DAY_S)
        failed = BatchStep(
            ended, "", "", (), 0, ends=True, error_code="manifest_changed", error_detail="It was replaced."
        )
        self._ledger.create(NewJobs(TENANT, QUEUE, (), DAY_S, step=failed), max_in_flight=MANY, idempotency_ttl_s=0)
        batches.cancel(ended, TENANT)
        file = StoredBatchFile(name="coco.json", size=1, content_type="application/json", key="k")
        assert batches.finish(ended, 0, (file,), DAY_S)
        batches.begin_deletion(ended, TENANT)

    def _send_webhooks(self) -> None:
        """Bring each webhook to the state its host is named for; in two rounds, since a host gets one at a time."""
        self._ledger.cancel(self._create("told nobody", host="gone"), TENANT)
        for due in take_due(self._deliveries, MANY):
            host = due.url.removeprefix("https://").partition(".")[0]
            if host in ("failing", "running", "gone"):
                self._deliveries.keep_body(due, json.dumps({"told": due.id}))
            if host == "failing":
                self._deliveries.postponed(
                    due, 1, _attempt(due, 500, DeliveryAttemptOutcome.FAILED, detail="It is sent again.")
                )
            elif host == "running":
                self._deliveries.ended(
                    due, DeliveryState.DELIVERED, _attempt(due, 200, DeliveryAttemptOutcome.DELIVERED)
                )
            elif host == "gone":
                self._deliveries.ended(due, DeliveryState.REFUSED, _attempt(due, 410, DeliveryAttemptOutcome.REFUSED))
            else:
                self._deliveries.postponed(due, 0)
        pinged = self._deliveries.ping(TENANT, "https://pinged.example.com/hook", '{"type":"webhook.ping"}')
        [ping] = (due for due in take_due(self._deliveries, MANY) if due.id == pinged)
        attempt = _attempt(
            *(ping, None, DeliveryAttemptOutcome.FAILED),
            **{"error": "ConnectTimeout", "headers": {"webhook-id": ping.id}, "duration_s": 15.0},
        )
        self._deliveries.postponed(ping, 0, attempt)
        self._deliveries.redeliver_range(TENANT, datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
        # None of the tenant's hosts answers now; this one shows whether they are back.
        probing = self._deliveries.ping(TENANT, "https://probed.example.com/hook", '{"type":"webhook.ping"}')
        assert [due.id for due in take_due(self._deliveries, MANY)] == [probing]

    def _expire(self, name: str) -> None:
        self._create(name, start_deadline_s=0)
        assert self._ledger.reap(max_attempts=3).expired == 1

    def _create(self, name: str, *, host: str = "", key: str = "", start_deadline_s: int = DAY_S) -> str:
        webhook = Webhook(url=f"https://{host}.example.com/hook", events=tuple(EventName)) if host else None
        job = NewJobs(
            TENANT,
            QUEUE,
            (SPEC % name,),
            start_deadline_s,
            webhook,
            key,
            "digest" if key else "",
            bucket="b",
            origin=ORIGIN,
            images=(IMAGE,),
            sources=(ImageSource(upload_id=IMAGE, file_name="bee.jpg"),),
        )
        return self._ledger.create(job, max_in_flight=MANY, idempotency_ttl_s=DAY_S).id

    def _claim(self, job_id: str, lease_s: float = 600) -> JobRecord:
        record = taking.claim(self._ledger, job_id, NODE, lease_s=lease_s)
        assert record is not None
        return record


def _attempt(due: Delivery, status: int | None, outcome: DeliveryAttemptOutcome, **fields: Any) -> DeliveryAttempt:
    # Any: DeliveryAttempt's own
    at = datetime.fromtimestamp(due.now_s, UTC)
    made = {"number": due.attempts_total, "at": at, "duration_s": 0.1, "outcome": outcome, "status": status}
    return DeliveryAttempt(**(made | fields))


def dump(client: redis.Redis) -> dict[str, Any]:  # Any: JSON
    """Dump all keys of a ledger, with their types and remaining time to live."""
    seconds, microseconds = client.time()
    keys = {}
    for key in sorted(cast("list[str]", client.keys("mf:*"))):
        kind, left_ms = cast(str, client.type(key)), cast(int, client.pttl(key))
        value: object = client.get(key) if kind == "string" else None
        if kind == "hash":
            value = client.hgetall(key)
        elif kind == "list":
            value = client.lrange(key, 0, -1)
        elif kind == "set":
            value = sorted(cast("set[str]", client.smembers(key)))
        elif kind == "zset":
            value = dict(cast("list[tuple[str, float]]", client.zrange(key, 0, -1, withscores=True)))
        keys[key] = {"type": kind, "value": value, **({"left_ms": left_ms} if left_ms > 0 else {})}
    return {"now_ms": seconds * 1000 + microseconds // 1000, "keys": keys}


def restore(client: redis.Redis, text: str) -> None:
    """Restore a ledger's keys from a dump, with all times shifted to be as far from now as they were then."""
    seconds, microseconds = client.time()
    shift_ms = seconds * 1000 + microseconds // 1000 - int(json.loads(text)["now_ms"])
    moved = re.sub(r"(?<![0-9a-f])1[0-9]{12}(?![0-9a-f])", lambda found: str(int(found[0]) + shift_ms), text)
    for key, kept in json.loads(moved)["keys"].items():
        value = kept["value"]
        match kept["type"]:
            case "string":
                client.set(key, value)
            case "hash":
                client.hset(key, mapping=value)
            case "list":
                client.rpush(key, *value)
            case "set":
                client.sadd(key, *value)
            case "zset":
                client.zadd(key, value)
        if "left_ms" in kept:
            client.pexpire(key, kept["left_ms"])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = start_redis(Path(folder) / "data", log=Path(folder) / "redis.log")
        client = connect(SharedSettings(redis_url=server.url))
        FullLedger(client).fill()
        sys.stdout.write(json.dumps(dump(client), indent=1) + "\n")
        client.close()
        server.stop()


if __name__ == "__main__":
    main()
