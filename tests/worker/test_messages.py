"""Foreign messages on the queue of a real node: each is refused, and the node carries on."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.messages import BELL, TASK_NAME, Publisher, celery_app
from maskfleet.jobs.queue import queue_name
from maskfleet.jobs.schema.spec import Priority
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store
from tests.faults.laboratory import STAND_IN
from tests.waiting import wait_until
from tests.worker.test_worker_process import SPEC, health_port, node, publish, the_worker

__all__ = ["health_port", "node"]

QUEUE = queue_name("sam-demo", Priority.NORMAL)
JOB_ID = f"job_{'1' * 32}"


class Bomb:
    """What a pickle could do: unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, (str(self.path), "w")


def test_a_node_refuses_what_is_no_job_of_ours_and_goes_on(
    node: subprocess.Popen[bytes],
    redis_client: redis.Redis,
    redis_url: str,
    ledger: Ledger,
    store: Store,
    worker_registry: WorkerRegistry,
    repository: Path,
    tmp_path: Path,
) -> None:
    child = the_worker(worker_registry)
    app = celery_app(SharedSettings(redis_url=redis_url))

    def send(name: str, *args: object, **options: object) -> None:
        app.send_task(name, args=args, queue=QUEUE, **options)

    # Other task names, and Celery's own tasks, which would run ours with their arguments.
    send("os.system", "true")
    send("celery.map", {"task": TASK_NAME}, [JOB_ID])
    send("celery.chain", JOB_ID)
    # Our task name, with something other than a job's id.
    texts = ("", "job_", JOB_ID + "\n", "../" + JOB_ID, JOB_ID.upper(), "x" * 9999)
    for argument in (*texts, None, 7, [JOB_ID], {"id": JOB_ID}):
        send(TASK_NAME, argument)
    send(TASK_NAME)
    send(TASK_NAME, JOB_ID, JOB_ID)
    send(TASK_NAME, JOB_ID, kwargs={"job_id": JOB_ID})
    # Our task name and a job's id, in a format that may run code.
    app.conf.accept_content = ["pickle"]
    send(TASK_NAME, Bomb(tmp_path / "unpacked"), serializer="pickle")
    # A message without a task, and one without a body.
    with app.connection_for_write() as connection:
        producer = connection.Producer()
        producer.publish({"hello": "there"}, routing_key=QUEUE)
        producer.publish("", routing_key=QUEUE, content_type="text/plain", content_encoding="utf-8")

    photo = (repository / "examples" / "coins.png").read_bytes()
    job_id = publish(ledger, store, redis_url, photo)

    wait_until(lambda: ledger.status(job_id) is Status.SUCCEEDED, 60)
    log = (tmp_path / "node.log").read_text()
    assert log.count('"message_refused"') == len(texts)
    assert log.count('"entry_refused"') == 3 + 4 + 3 + 1 + 2
    assert not (tmp_path / "unpacked").exists()
    assert node.poll() is None
    assert psutil.Process(child.pid).is_running()
    # None of them is redelivered.
    wait_until(lambda: redis_client.llen(QUEUE) == redis_client.hlen("unacked") == 0)


@pytest.fixture
def stand_in(redis_client: redis.Redis, shared_fields: dict[str, str], tmp_path: Path) -> Iterator[psutil.Process]:
    """A node without a model, on an empty queue."""
    own = {
        "MASKFLEET_MODEL": f"./{STAND_IN}",
        "MASKFLEET_NODE": "node-1",
        "MASKFLEET_CANARY_S": "0.5",
        "MASKFLEET_DRAIN_GRACE_S": "0.5",
    }
    settings = {f"MASKFLEET_{name.upper()}": value for name, value in shared_fields.items()}
    with (tmp_path / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.stand_in"], env=os.environ | settings | own, stdout=log, stderr=log
        )
        yield psutil.Process(process.pid)
        process.kill()
        process.wait()


def part_of(message: Any, *way: str, is_now: object) -> str:
    """Return the message with one part changed."""
    changed = copy.deepcopy(message)
    where = changed
    for name in way[:-1]:
        where = where[name]
    where[way[-1]] = is_now
    return json.dumps(changed)


def without(message: Any, *way: str) -> str:
    changed = copy.deepcopy(message)
    where = changed
    for name in way[:-1]:
        where = where[name]
    del where[way[-1]]
    return json.dumps(changed)


def calling(message: Any, call: str | bytes) -> str:
    """Return the message with another body."""
    encoded = call.encode() if isinstance(call, str) else call
    return part_of(message, "body", is_now=base64.b64encode(encoded).decode())


#: Foreign entries, derived from one of ours.
NO_ENTRIES: dict[str, Callable[[Any], str | bytes]] = {
    "nothing": lambda _: "",
    "no JSON": lambda _: "{",
    "half a message": lambda message: json.dumps(message)[:-9],
    "no text": lambda _: b"\xff\x00\xfe",
    "a number": lambda _: "7",
    "a number too long to read": lambda _: "7" * 5000,
    "null": lambda _: "null",
    "a list": lambda _: "[]",
    "an empty object": lambda _: "{}",
    "lists in lists": lambda _: "[" * 100_000,
    "a time that is none": lambda _: '{"__type__": "datetime", "__value__": "soon"}',
    **{f"no {name}": lambda message, name=name: without(message, name) for name in ("body", "headers", "properties")},  # type: ignore[misc]
    "a list of headers": lambda message: part_of(message, "headers", is_now=[1]),
    "a list of properties": lambda message: part_of(message, "properties", is_now=[1]),
    "headers in base64": lambda message: part_of(message, "headers", is_now="e30="),
    "no content type": lambda message: without(message, "content-type"),
    "a pickle": lambda message: part_of(message, "content-type", is_now="application/x-python-serialize"),
    "an unknown coding": lambda message: part_of(message, "content-encoding", is_now="klingon"),
    "a task that is a list": lambda message: part_of(message, "headers", "task", is_now=[TASK_NAME]),
    "no id": lambda message: without(message, "headers", "id"),
    "a time to wait for": lambda message: part_of(message, "headers", "eta", is_now="2999-01-01T00:00:00+00:00"),
    "no time": lambda message: part_of(message, "headers", "expires", is_now={"__type__": "datetime"}),
    "a time limit of its own": lambda message: part_of(message, "headers", "timelimit", is_now=[0.01, None]),
    "no delivery tag": lambda message: without(message, "properties", "delivery_tag"),
    "a tag that is an object": lambda message: part_of(message, "properties", "delivery_tag", is_now={}),
    "no delivery": lambda message: part_of(message, "properties", "delivery_info", is_now=None),
    "no routing key": lambda message: without(message, "properties", "delivery_info", "routing_key"),
    "no base64": lambda message: part_of(message, "body", is_now="*"),
    "half of base64": lambda message: part_of(message, "body", is_now=message["body"][:-3]),
    "another coding than base64": lambda message: part_of(message, "properties", "body_encoding", is_now="rot13"),
    "base64 of no text": lambda message: calling(message, b"\xff\xfe"),
    "base64 of no JSON": lambda message: calling(message, "{"),
    "base64 of a number": lambda message: calling(message, "7"),
    "a call of too little": lambda message: calling(message, "[[]]"),
    "other tasks afterwards": lambda message: calling(
        message, json.dumps([[JOB_ID], {}, {"callbacks": [{"task": TASK_NAME, "args": [JOB_ID]}]}])
    ),
}
#: Unknown headers are dropped and the message taken; this one would crash a node that read it.
ADDED = {"__type__": "datetime", "__value__": "soon"}


def test_a_node_drops_what_is_no_message_at_all_and_does_the_next_job(
    stand_in: psutil.Process,
    redis_client: redis.Redis,
    redis_url: str,
    ledger: Ledger,
    store: Store,
    worker_registry: WorkerRegistry,
    repository: Path,
    tmp_path: Path,
) -> None:
    child = the_worker(worker_registry)
    queue = queue_name(STAND_IN, Priority.NORMAL)
    upload = store.put_upload("ant", (repository / "examples" / "coins.png").read_bytes(), "image/png")
    publisher = Publisher(SharedSettings(redis_url=redis_url))
    # One of ours, to modify.
    publisher.publish(JOB_ID, "elsewhere")
    ours = json.loads(redis_client.rpop("elsewhere"))  # type: ignore[arg-type]  # redis-py: or a promise of it

    def has_done_a_job() -> bool:
        job = NewJobs(tenant="ant", queue=queue, specs_json=(SPEC % upload,), start_deadline_s=60)
        job_id = ledger.create(job, max_in_flight=9, idempotency_ttl_s=60).id
        publisher.publish(BELL, queue)
        wait_until(lambda: ledger.status(job_id) is Status.SUCCEEDED, 60)
        return True

    for make in NO_ENTRIES.values():
        redis_client.lpush(queue, make(ours))
    assert has_done_a_job()

    refused = [json.loads(line) for line in (tmp_path / "node.log").read_text().splitlines() if "entry_refused" in line]
    entries = [made.encode() if isinstance(made := make(ours), str) else made for make in NO_ENTRIES.values()]
    assert [line["sha256"] for line in refused] == [hashlib.sha256(entry).hexdigest() for entry in entries]
    assert [line["bytes"] for line in refused] == [len(entry) for entry in entries]
    assert max(len(json.dumps(line)) for line in refused) < 400

    # Further unknown headers are not an error; nor is a message that arrives twice.
    redis_client.lpush(queue, *[part_of(ours, "headers", "later", is_now=ADDED)] * 2)
    assert has_done_a_job()
    # Three bells for one job, which whichever came first after it was recorded has done.
    wait_until(lambda: (tmp_path / "node.log").read_text().count('"bell_dropped"') == 2)
    log = (tmp_path / "node.log").read_text()
    assert log.count('"entry_refused"') == len(NO_ENTRIES)
    assert "Traceback" not in log
    assert stand_in.is_running()
    assert stand_in.status() != psutil.STATUS_ZOMBIE
    assert [worker.pid for worker in worker_registry.workers()] == [child.pid]
    wait_until(lambda: redis_client.llen(queue) == redis_client.hlen("unacked") == 0)
