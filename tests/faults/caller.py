"""The callers: send jobs at a steady pace, resend until they are accepted, and watch them to their end."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any, cast

import requests

from maskfleet.jobs.errors import JobError, NotFound, QueueUnavailable
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.storage import Store, result_prefix
from tests.faults.faults import ENDURING, LASTING, Held
from tests.faults.follower import follow
from tests.faults.history import Accepted, BatchAccepted, BatchShown, CancelAsked, Reference, Refused, Shown, Stored
from tests.faults.laboratory import MODEL, STAND_IN, TENANT, TENANTS, Laboratory
from tests.faults.promises import DEVICE_LOST, ENDED, HUNG, POISONED, TOO_LONG
from tests.scenes import plain_scene
from tests.waiting import wait_until

#: What floods consist of, in batches of that many images.
BULK, FLOOD_IMAGES = "bulk box", 1000
#: The share of jobs that go to nodes with a real model.
REAL = 0.2
#: The share of each kind; the rest is "box".
SHARES = {
    "points": 0.2,
    "inline box": 0.1,
    "some points of a grid": 0.08,
    LASTING: 0.03,
    ENDURING: 0.0,
    BULK: 0.0,
    TOO_LONG: 0.005,
}
#: Kinds of which each run has one, after so large a part of its jobs; they are the stand-in's, which does as they ask.
ONCE = {POISONED: 0.25, HUNG: 0.4, DEVICE_LOST: 0.55}
#: A job that is sent for it has a node within this time, or its fault is left out.
HOLD_S = 15.0
#: So many of the jobs are sent twice at once under one key; so many canceled at once, and so many while they run.
TWINS, CANCELS, LATE_CANCELS = 0.05, 0.03, 0.03
#: So many of the sends are a batch, of so many images.
BATCHES, IMAGES = 0.04, (2, 5)
#: However short a run is, these of its sends are canceled late, and a batch.
EVERY_RUN = dict.fromkeys((2, 12), TWINS + CANCELS) | dict.fromkeys((4, 14), TWINS + CANCELS + LATE_CANCELS)
SENDERS, FOLLOWERS = 6, 2
#: So many of the jobs are another tenant's.
OF_SECOND = 0.1
SECOND_TENANT = next(tenant for tenant in TENANTS if tenant != TENANT)
AGAIN_S = 0.3
#: The pause between two looks at open jobs: without one, asking takes as much of the processor as the jobs do.
LOOK_S = 0.5
#: A job of any kind ends within this time while nothing is broken, even on a busy machine.
REFERENCE_S = 60.0


class Callers:
    """Send jobs and watch them.  Only the watcher records states, so that its records are in order."""

    def __init__(self, lab: Laboratory, seed: int, flood: int = 0) -> None:
        """flood: so many jobs come at once, early on, and wait behind all others."""
        self._lab = lab
        self._flood = flood
        self._random = random.Random(seed)
        self._real = REAL if lab.has_models else 0.0
        self._png = plain_scene(3, (160, 128)).png
        self._upload_ids = {tenant: lab.store.put_upload(tenant, self._png, "image/png") for tenant in TENANTS}
        self._tenants: dict[str, str] = {}  # job or batch → whose
        self._over = threading.Event()
        self._news = threading.Condition()
        self._open: dict[str, str] = {}  # job → kind
        self._ended: list[str] = []
        self._followed: set[str] = set()
        self._batches: set[str] = set()

    def spec(self, kind: str, tenant: str = TENANT) -> dict[str, Any]:
        """Return the body of a tenant's job of a kind."""
        box = {"mode": "box", "prompts": [{"box": [20, 20, 80, 80]}]}
        grid = {"mode": "everything", "params": {"points_per_batch": 1, "points_per_crop": 4}}

        def long_grid(points: int) -> dict[str, Any]:
            params = {"points_per_batch": 1, "points_per_crop": points}
            return {"mode": "everything", "params": params, "priority": "interactive"}

        bodies: Mapping[str, dict[str, Any]] = {
            "box": box,
            "inline box": {**box, "image": {"base64": base64.b64encode(self._png).decode()}},
            "points": {"mode": "point", "prompts": [{"points": [[40, 40]]}, {"points": [[110, 40]], "labels": [1]}]},
            "some points of a grid": grid,
            LASTING: long_grid(8),
            ENDURING: long_grid(16),
            BULK: {**box, "priority": "bulk"},
            TOO_LONG: {"mode": "everything", "params": {"points_per_batch": 1}, "run_timeout_s": 1},
            POISONED: {**box, "image": {"url": self._lab.images.url}},
            HUNG: {**box, "run_timeout_s": 1, "metadata": {"kind": HUNG}},
            DEVICE_LOST: {**box, "metadata": {"kind": DEVICE_LOST}},
        }
        kind, _, model = kind.partition(" on ")
        hook = {"url": self._lab.receiver.url, "events": ["started", *sorted(ENDED)]}
        return {"image": {"upload_id": self._upload_ids[tenant]}, "webhook": hook, "model": model, **bodies[kind]}

    def learn_references(self) -> None:
        """Run one job of each kind while nothing is broken, and record its result.

        The checker reports a kind that has none.
        """
        models = (STAND_IN, MODEL.name) if self._real else (STAND_IN,)
        kinds = [f"{kind} on {model}" for kind in ("box", *SHARES) if kind != TOO_LONG for model in models]
        jobs = {kind: self.send(kind) for kind in kinds}
        for kind, job in jobs.items():
            with suppress(AssertionError):
                wait_until(lambda job=job: self._lab.ledger.status(job) in ENDED, REFERENCE_S)  # type: ignore[misc]
                if self._lab.ledger.status(job) == "succeeded":
                    self._lab.history.note(Reference(kind=kind, masks=stored(self._lab.store, job).masks))

    def send(self, kind: str, *, key: str | None = None, tenant: str = TENANT) -> str:
        """Send a tenant's job until it is accepted, under one key; return its id."""
        key = key or uuid.uuid4().hex
        job = str(self._accepted("/v1/jobs", self._body(kind, key, tenant), key, tenant)["id"])
        self._note_accepted(Accepted(key=key, job=job, kind=kind, tenant=tenant))
        return job

    def send_batch(self, kind: str, images: int, *, key: str | None = None, tenant: str = TENANT) -> str:
        """Send a batch of that many copies of the image until it is accepted, under one key; return its id."""
        key = key or uuid.uuid4().hex
        body = self._body(kind, key, tenant)
        body["images"] = [body.pop("image")] * images
        body["webhook"]["events"].append("completed")
        view = self._accepted("/v1/batches", body, key, tenant)
        batch, jobs = str(view["id"]), tuple(view["job_ids"])
        self._lab.history.note(BatchAccepted(key=key, batch=batch, images=images, jobs=jobs, tenant=tenant))
        with self._news:
            self._batches.add(batch)
            self._tenants[batch] = tenant
        for number, job in enumerate(jobs):
            self._note_accepted(Accepted(key=f"{key} {number}", job=job, kind=kind, tenant=tenant, batch=batch))
        return batch

    def _body(self, kind: str, key: str, tenant: str) -> dict[str, Any]:
        body = self.spec(kind, tenant)
        body["webhook"]["url"] += f"/{key}"  # a separate endpoint: a 410 refuses this job's webhooks only
        return body

    def _accepted(self, path: str, body: dict[str, Any], key: str, tenant: str) -> dict[str, Any]:
        """Send until accepted; return the response."""
        while True:
            try:
                answer = self._lab.ask("POST", path, tenant=tenant, json=body, headers={"Idempotency-Key": key})
            except requests.RequestException:
                self._lab.history.note(Refused(key=key, status=0, code=""))
            else:
                if answer.status_code == 202:
                    return cast("dict[str, Any]", answer.json())
                self._lab.history.note(Refused(key=key, status=answer.status_code, code=_code(answer)))
            if self._over.wait(AGAIN_S):
                raise RuntimeError("the run is over and a job was not accepted")

    def _note_accepted(self, sight: Accepted) -> None:
        self._lab.history.note(sight)
        with self._news:
            self._open.setdefault(sight.job, sight.kind)
            self._tenants[sight.job] = sight.tenant

    def hold(self, kind: str = LASTING, model: str = "") -> Held | None:
        """Send a job of a kind that lasts; return the node running it."""
        real = kind == LASTING and self._random.random() < self._real
        job = self.send(f"{kind} on {model or (MODEL.name if real else STAND_IN)}")
        try:
            wait_until(lambda: self._lab.ledger.status(job) == "processing", HOLD_S, every_s=0.01)
        except (AssertionError, QueueUnavailable):
            return None
        worker = self._lab.redis.hget(f"mf:job:{job}", "worker")
        node = next((node for node in self._lab.nodes if node.name == worker), None)
        child = self._lab.child_of(node) if node else None
        return Held(node, child, job, partial(self._is_held_by, job, node.name)) if node and child else None

    def _is_held_by(self, job: str, node: str) -> bool:
        return self._lab.redis.hmget(f"mf:job:{job}", "status", "worker") == ["processing", node]

    def send_all(self, jobs: int, seconds: float, over: threading.Event) -> None:
        """Send that many jobs, spread over the time, and more at that pace until it is over.

        Return when the last one is accepted.
        """
        began = time.monotonic()
        once = {int(part * jobs): kind for kind, part in ONCE.items()}
        with ThreadPoolExecutor(SENDERS) as senders:
            sent: list[Future[Any]] = []
            for number in count():
                if number >= jobs and over.is_set():
                    break
                time.sleep(max(0.0, began + seconds * number / jobs - time.monotonic()))
                if number == jobs // 8:
                    for _ in range(0, self._flood, FLOOD_IMAGES):
                        flood = partial(self.send_batch, f"{BULK} on {STAND_IN}", FLOOD_IMAGES, tenant=SECOND_TENANT)
                        sent.append(senders.submit(flood))
                tenant = SECOND_TENANT if self._random.random() < OF_SECOND else TENANT
                draw, kind = EVERY_RUN.get(number, self._random.random()), once.get(number) or self._kind()
                real = self._random.random() < self._real and number not in once
                kind += f" on {MODEL.name if real else STAND_IN}"
                if draw < TWINS:
                    key = uuid.uuid4().hex
                    sent.append(senders.submit(self.send, kind, key=key, tenant=tenant))
                    sent.append(senders.submit(self.send, kind, key=key, tenant=tenant))
                elif draw < TWINS + CANCELS:
                    sent.append(senders.submit(self._send_and_cancel, kind, 0.0))
                elif draw < TWINS + CANCELS + LATE_CANCELS and number not in once:
                    after_s = self._random.uniform(0.2, 1.0)
                    sent.append(senders.submit(self._send_and_cancel, f"{ENDURING} on {STAND_IN}", after_s))
                elif draw < TWINS + CANCELS + LATE_CANCELS + BATCHES and number not in once:
                    images, key = self._random.randint(*IMAGES), uuid.uuid4().hex
                    for _ in range(self._random.choice((1, 2))):  # a twin may come, too
                        sent.append(senders.submit(self.send_batch, kind, images, key=key, tenant=tenant))
                else:
                    sent.append(senders.submit(self.send, kind, tenant=tenant))
            for future in sent:
                future.result()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Poll jobs continuously: the open ones in turn, now and then one that has ended; follow a few."""
        over = threading.Event()
        looking = [self._watch, *(self._follow for _ in range(FOLLOWERS))]
        watchers = [threading.Thread(target=look, args=(over,), name="watcher") for look in looking]
        for watcher in watchers:
            watcher.start()
        try:
            yield
        finally:
            over.set()
            for watcher in watchers:
                watcher.join()
            self._over.set()

    def open_jobs(self) -> int:
        with self._news:
            return len(self._open)

    def look_at_all(self) -> None:
        """Fetch each job and each batch once more, after the run."""
        with self._news:
            jobs, batches = [*self._open, *self._ended], sorted(self._batches)
        for batch in batches:
            self._look_at_batch(batch)
        for job in jobs:
            self._look(job)
            self._lab.history.note(stored(self._lab.store, job, self._tenants[job]))

    def _kind(self) -> str:
        return self._random.choices([*SHARES, "box"], [*SHARES.values(), 1 - sum(SHARES.values())])[0]

    def _send_and_cancel(self, kind: str, after_s: float) -> None:
        job = self.send(kind)
        time.sleep(after_s)
        try:
            answer = self._lab.ask("POST", f"/v1/jobs/{job}/cancel")
        except requests.RequestException:
            self._lab.history.note(CancelAsked(job=job, accepted=False))  # it may have arrived
        else:
            if answer.status_code != 409:
                self._lab.history.note(CancelAsked(job=job, accepted=answer.status_code == 202))

    def _watch(self, over: threading.Event) -> None:
        pick = random.Random(0)
        while not over.wait(LOOK_S):
            with self._news:
                open_jobs = list(self._open)[:200]
                looked_at = pick.sample(open_jobs, min(8, len(open_jobs))) + open_jobs[:8]
                if self._ended:
                    looked_at.append(pick.choice(self._ended))
            for job in dict.fromkeys(looked_at):
                self._look(job)

    def _follow(self, over: threading.Event) -> None:
        while not over.wait(0.1):
            with self._news:
                # The latest, from its start; by one thread, so that the records are in order.
                own = (job for job in reversed(self._open) if self._tenants[job] == TENANT)
                job = next((job for job in own if job not in self._followed), None)
                if job:
                    self._followed.add(job)
            if job:
                follow(self._lab, job, over)

    def _look(self, job: str) -> None:
        try:
            answer = self._lab.ask("GET", f"/v1/jobs/{job}", tenant=self._tenants[job], timeout_s=8)
        except requests.RequestException:
            return
        if answer.status_code == 404:
            self._lab.history.note(Shown(job=job, status="absent"))
            with self._news:
                if self._open.pop(job, None) is not None:
                    self._ended.append(job)
        elif answer.status_code == 200:
            view = answer.json()
            error = (view.get("error") or {}).get("code", "")
            self._lab.history.note(Shown(job=job, status=view["status"], error=error))
            with self._news:
                ended = view["status"] in ENDED and self._open.pop(job, None) is not None
                if ended:
                    self._ended.append(job)
            if ended and view["status"] == "succeeded":
                with suppress(JobError):  # the store is down; checked once more at the end
                    self._lab.history.note(stored(self._lab.store, job, self._tenants[job]))

    def _look_at_batch(self, batch: str) -> None:
        answer = self._lab.ask("GET", f"/v1/batches/{batch}", tenant=self._tenants[batch])
        if answer.status_code == 404:
            self._lab.history.note(BatchShown(batch=batch, status="absent"))
            return
        answer.raise_for_status()
        view = answer.json()
        sight = BatchShown(batch=batch, status=view["status"], jobs=tuple(view["job_ids"]), counts=view["counts"])
        self._lab.history.note(sight)


def stored(store: Store, job: str, tenant: str = TENANT) -> Stored:
    """Record what the store holds for a job.  Raises StoreUnavailable."""
    own = f"{result_prefix(tenant, job)}/"
    try:
        body = store.read(f"{own}manifest.json")
    except NotFound:
        return Stored(job=job)
    manifest = Manifest.model_validate_json(body)
    files = {file.name: store.read(file.key) for file in manifest.files}
    whole = all(hashlib.sha256(files[file.name]).hexdigest() == file.sha256 for file in manifest.files)
    masks = json.loads(files["coco.json"])["annotations"] if whole else ()
    return Stored(
        job=job,
        masks=hashlib.sha256(json.dumps(masks).encode()).hexdigest(),
        whole=whole,
        manifest=hashlib.sha256(body).hexdigest(),
        attempt=manifest.attempt,
        folders=tuple(sorted({file.key.removesuffix(f"/{file.name}").removeprefix(own) for file in manifest.files})),
    )


def _code(answer: requests.Response) -> str:
    try:
        return str(answer.json().get("code", ""))
    except ValueError:
        return ""
