"""The same jobs and faults on plain Celery, configured as its documentation advises for work that must not be lost.

Late acknowledgement, rejection when a worker is lost, retries with back-off, one message at a time; a visibility
timeout of half a minute, so that it recovers within the run (Celery's default is an hour).  The task waits like
the laboratory's stand-in, writes its result to S3 and notifies the receiver.  No ledger, no fence, no bells.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import redis
import requests
from celery import Celery

from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store
from tests.faults.faults import ENDURING, Held, Scene
from tests.faults.figures import felled, told_twice
from tests.faults.history import Broke, Notified
from tests.faults.laboratory import Laboratory
from tests.faults.run import Plan, await_end, send_under_fire
from tests.waiting import wait_until

VISIBILITY_TIMEOUT_S = 30
#: As many nodes as our own fleet has: one, and these.
STAND_INS = 3
NODES = ("node-1", *(f"node-stand-in-{number}" for number in range(1, STAND_INS + 1)))
#: A separate queue for jobs that a fault waits for, so that they need not wait behind all others.
URGENT = "urgent"
SHORT, LONG, LONGER = 2, 65, 256
BATCH_S = 0.02
RETRIES = 6
#: If nothing has ended for this long, nothing will: redelivery and the longest back-off are well past.
QUIET_S = 120.0


def make_app(redis_url: str) -> Celery:
    app = Celery("plain", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
        },
    )
    retries: dict[str, Any] = {"autoretry_for": (Exception,), "retry_backoff": 1, "max_retries": RETRIES}
    app.task(name="plain.segment", **retries)(segment)
    return app


def segment(job: str, batches: int, hook: str) -> None:
    """Do a job: take a while, write the result, notify the receiver."""
    with (Path(os.environ["PLAIN_FOLDER"]) / job).open("a") as executions:
        executions.write(f"{os.environ['MASKFLEET_NODE']} {os.getpid()}\n")
    for _ in range(batches):
        time.sleep(BATCH_S)
    _store().put(_result_key(job), b"{}", "application/json")
    body = {"data": {"id": job, "status": "succeeded"}}
    requests.post(hook, json=body, headers={"webhook-id": job}, timeout=1).raise_for_status()


def _result_key(job: str) -> str:
    return f"results/{job}/manifest.json"


@cache
def _store() -> Store:
    return Store(SharedSettings())


@dataclass(frozen=True, slots=True)
class PlainFigures:
    """never_ended: accepted by the broker, never reported.  told_twice: the receiver answered two ends with 2xx.

    of_these_given_up: executed until no retry was left.  of_these_nowhere: not given up, and no message names them.
    """

    jobs: int
    never_ended: int
    of_these_given_up: int
    of_these_nowhere: int
    told_twice: int
    executed_more_than_once: int
    sends_that_failed: int
    faults: dict[str, int]
    felled: int


class PlainCallers:
    """Publish jobs and watch for their ends."""

    def __init__(self, lab: Laboratory, seed: int) -> None:
        self._lab = lab
        self._random = random.Random(seed)
        self._app = make_app(f"redis://127.0.0.1:{lab.redis_ways['api'].port}/0")
        self._lock = threading.Lock()
        self.accepted: list[str] = []
        self.failed = 0

    def send(self, batches: int, queue: str = "celery") -> str:
        """Publish a job until the broker takes it; each try is a new job, so that a lost reply duplicates nothing."""
        while True:
            job = uuid.uuid4().hex
            try:
                self._app.send_task(
                    "plain.segment", args=[job, batches, self._lab.receiver.url], task_id=job, queue=queue
                )
            except Exception:  # noqa: BLE001 — whatever the broker's client raises, a caller tries again
                with self._lock:
                    self.failed += 1
                time.sleep(0.3)
            else:
                with self._lock:
                    self.accepted.append(job)
                return job

    def hold(self, kind: str) -> Held | None:
        job = self.send(LONGER if kind == ENDURING else LONG, queue=URGENT)
        place = self._lab.folder / "plain" / job
        with suppress(AssertionError):
            wait_until(lambda: place.exists() and place.read_text(), 15, every_s=0.01)
            name, pid = place.read_text().splitlines()[-1].split()
            return Held(self._lab.programs[name], int(pid), job, lambda: self._lab.store.head(_result_key(job)) is None)
        return None

    def send_all(self, jobs: int, seconds: float, over: threading.Event) -> None:
        began = time.monotonic()
        with ThreadPoolExecutor(6) as senders:
            for number in count():
                if number >= jobs and over.is_set():
                    break
                time.sleep(max(0.0, began + seconds * number / jobs - time.monotonic()))
                senders.submit(self.send, LONG if self._random.random() < 0.03 else SHORT)

    def told(self) -> set[str]:
        """Return the jobs whose end was reported."""
        sights = (sight for sight in self._lab.history.read() if isinstance(sight, Notified))
        return {sight.job for sight in sights if 200 <= sight.answered < 300}


def run_plain(folder: Path, plan: Plan, say: Callable[[str], None] = lambda _: None) -> PlainFigures:
    """Run the plan on plain Celery."""
    with Laboratory(folder, stand_ins=STAND_INS, programs=False) as lab:
        (folder / "plain").mkdir()
        for name in NODES:
            command = (sys.executable, "-m", "tests.faults.plain_celery")
            lab.add(name, command, MASKFLEET_NODE=name, PLAIN_FOLDER=str(folder / "plain"))
        callers = PlainCallers(lab, plan.seed)
        first = callers.send(SHORT)
        wait_until(lambda: first in callers.told(), 60, every_s=0.1)
        scene = Scene(lab, random.Random(plan.seed), callers.hold, plan.frozen_s)
        send_under_fire(callers.send_all, scene, plan, say)
        left = -1
        while left != (left := len(set(callers.accepted) - callers.told())) and left:
            await_end(lambda: len(set(callers.accepted) - callers.told()), QUIET_S, say)
        unended = set(callers.accepted) - callers.told()
        given_up = {job for job in unended if _executions(folder / "plain" / job) > RETRIES}
        history = lab.history.read()
        faults = [sight for sight in history if isinstance(sight, Broke) and sight.acted]
        return PlainFigures(
            jobs=len(callers.accepted),
            never_ended=len(unended),
            of_these_given_up=len(given_up),
            of_these_nowhere=len(unended - given_up - _messages(lab.redis, unended)),
            told_twice=told_twice(sight for sight in history if isinstance(sight, Notified)),
            executed_more_than_once=sum(_executions(folder / "plain" / job) > 1 for job in callers.accepted),
            sends_that_failed=callers.failed,
            faults=dict(sorted(Counter(fault.name for fault in faults).items())),
            felled=felled(faults),
        )


def _executions(place: Path) -> int:
    return len(place.read_text().splitlines()) if place.exists() else 0


def _messages(client: redis.Redis, jobs: set[str]) -> set[str]:
    """Return the jobs still named by a message, in the queue or taken and not acknowledged."""
    raw = "".join([*client.lrange("celery", 0, -1), *client.lrange(URGENT, 0, -1), *client.hvals("unacked")])
    return {job for job in jobs if job in raw}


if __name__ == "__main__":
    app = make_app(SharedSettings().redis_url.get_secret_value())
    name = os.environ["MASKFLEET_NODE"]
    app.worker_main(
        ["worker", "--concurrency", "1", "--hostname", name, "--queues", f"celery,{URGENT}", "--loglevel", "WARNING"]
    )
