"""Count the S3 requests of a job by program, and measure the courier's processor time for it.

    python -m benchmarks.job_cost

The API, a courier, a node with the bundled model, Redis and S3 are real processes; each program reaches S3 through a
proxy of its own that counts requests by their method and by what they are about.  Each kind of job runs ten times, one
at a time, with pictures that no job had before; all ten must cost the same.  The courier's time is that of 300 jobs
through four nodes without a model, once without webhooks and once with one each to a receiver on loopback, less what it
uses when idle.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.local_fleet import STAND_IN, LocalFleet
from benchmarks.machine import ROOT, keep
from maskfleet import Job
from maskfleet.stack.hook_server import HookServer
from tests.waiting import wait_until

MODEL = ROOT / "models" / "sam-demo"
TIMES, JOBS, IDLE_S = 10, 300, 20.0
#: Writes of what was learnt of an image may come after its job's end.
SETTLED_S = 0.5
FILES = ("coco", "overlay", "label_map", "masks_zip", "geojson")

#: Nothing but the jobs themselves may ask S3 for anything; and the receiver of webhooks is on loopback.
SETTINGS = {"MASKFLEET_SWEEP_S": "0", "MASKFLEET_EGRESS_ALLOW_PRIVATE": "1"}

Requests = dict[str, Counter[str]]


def main() -> None:
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as exits:
        fleet = LocalFleet(
            exits,
            Path(folder),
            nodes=1,
            model=str(MODEL),
            node=("-m", "maskfleet.worker"),
            counting=True,
            settings=SETTINGS,
        )
        receiver = exits.enter_context(HookServer(lambda _body, _headers: 204))
        figures["s3_requests"] = _Counted(fleet, receiver.url).rows()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as exits:
        fleet = LocalFleet(exits, Path(folder), nodes=4, model="./stand-in", node=STAND_IN, settings=SETTINGS)
        figures["courier"] = _courier(fleet)
    keep("job_cost", "python -m benchmarks.job_cost", figures)


class _Counted:
    """Jobs whose requests are counted."""

    def __init__(self, fleet: LocalFleet, hook_url: str) -> None:
        self._fleet, self._client, self._hook = fleet, fleet.client, {"url": hook_url}
        self._pictures = 0
        self._last: Job | None = None

    def rows(self) -> dict[str, object]:
        """Return the requests of each kind of job, by program."""
        rows: dict[str, list[Requests]] = {}

        def count(name: str, act: Callable[[], object]) -> None:
            before = self._counted()
            act()
            after = self._settled()
            rows.setdefault(name, []).append({kind: after[kind] - before[kind] for kind in after})

        self._run(image=self._client.upload(self._picture()))  # the first one starts what is made once
        self._settled()
        uploads: list[str] = []
        for _ in range(TIMES):
            count("an upload", lambda: uploads.append(self._client.upload(self._picture())))
            count("first job of an upload", lambda: self._run(image=uploads[-1]))
            count("second job, same node", lambda: self._run(image=uploads[-1]))
            count("and its result fetched", self._fetch)
            count("second job, five files", lambda: self._run(image=uploads[-1], outputs=FILES))
            count("and its result fetched, five files", self._fetch)
            fresh = self._client.upload(self._picture())
            self._settled()
            count("first job, five files", lambda fresh=fresh: self._run(image=fresh, outputs=FILES))
            fresh = self._client.upload(self._picture())
            self._settled()
            count("first job, with a webhook", lambda fresh=fresh: self._run(image=fresh, webhook=self._hook))
            count("first job, with the image in its request", lambda: self._run(photo=self._picture()))
            self._pictures += 1
            key = f"{self._pictures}.png"
            self._fleet.photos.put(key, self._picture(), "image/png")
            count("first job of an object in S3", lambda key=key: self._run(photo=f"s3://photos/{key}"))
            count("second job of an object in S3", lambda key=key: self._run(photo=f"s3://photos/{key}"))
            bulk = f"bulk-{key}"
            self._fleet.photos.put(bulk, self._picture(), "image/png")
            count(
                "first job of an object in S3, priority bulk",
                lambda bulk=bulk: self._run(photo=f"s3://photos/{bulk}", priority="bulk"),
            )
        self._fleet.start_nodes()
        self._run(image=self._client.upload(self._picture()))
        self._settled()
        for upload in uploads:
            count("second job, another node", lambda upload=upload: self._run(image=upload))
        return {name: _agreed(name, times) for name, times in rows.items()}

    def _run(self, *, image: str = "", photo: Any = None, **fields: Any) -> None:  # Any: the client's own types
        about = {"image": {"upload_id": image}} if image else {"photo": photo}
        job = self._client.submit(mode="box", prompts=[{"box": (8, 8, 40, 40)}], **about, **fields)
        # By the ledger, for a look through the API may cost requests, too.
        wait_until(lambda: self._fleet.redis.hget(f"mf:job:{job.id}", "status") == "succeeded", 60)
        self._last = job

    def _fetch(self) -> None:
        assert self._last is not None
        with tempfile.TemporaryDirectory() as folder:
            self._client.fetch(self._last.id, folder)

    def _picture(self) -> bytes:
        self._pictures += 1
        pixels = np.random.default_rng(self._pictures).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        pixels[16:32, 16:32] = 250
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    def _counted(self) -> Requests:
        return {kind: Counter(way.counted) for kind, way in self._fleet.ways.items() if way is not None}

    def _settled(self) -> Requests:
        """Return the counts once they do not change any more."""
        counted, since = self._counted(), time.monotonic()
        while time.monotonic() - since < SETTLED_S:
            time.sleep(0.05)
            if (now := self._counted()) != counted:
                counted, since = now, time.monotonic()
        return counted


def _agreed(name: str, times: list[Requests]) -> dict[str, object]:
    """Return the requests by program, which must be the same each time."""
    [found] = {str(sorted((kind, sorted(of.items())) for kind, of in one.items())): one for one in times}.values()
    print(name, found)
    return {kind: {"requests": of.total(), **dict(sorted(of.items()))} for kind, of in found.items() if of}


def _courier(fleet: LocalFleet) -> dict[str, object]:
    """Return the courier's processor time for a job, without and with a webhook."""
    arrived: list[bytes] = []

    def take(body: bytes, _headers: Mapping[str, str]) -> int:
        arrived.append(body)
        return 204

    upload = fleet.client.upload(ROOT / "examples" / "coins.png")
    with HookServer(take) as receiver:

        def jobs(count: int, **fields: Any) -> None:  # Any: the client's own types
            before, told = fleet.ended(), len(arrived)
            for _ in range(count):
                fleet.client.submit(
                    image={"upload_id": upload}, mode="box", prompts=[{"box": (20, 20, 80, 80)}], **fields
                )
            wait_until(lambda: fleet.ended() == before + count, 300, every_s=0.2)
            if fields:
                wait_until(lambda: len(arrived) == told + count, 300, every_s=0.2)

        def cpu_s(act: Callable[[], object]) -> tuple[float, float]:
            before, began = fleet.cpu_s()["courier"], time.monotonic()
            act()
            return fleet.cpu_s()["courier"] - before, time.monotonic() - began

        hook = {"webhook": {"url": receiver.url}}
        jobs(10, **hook)
        idle_s, of_s = cpu_s(lambda: time.sleep(IDLE_S))
        rows = {}
        for name, fields in (("without a webhook", {}), ("with a webhook", hook)):
            spent_s, took_s = cpu_s(lambda fields=fields: jobs(JOBS, **fields))
            rows[name] = {
                "seconds": round(took_s, 1),
                "courier_cpu_ms_per_job": round((spent_s - took_s * idle_s / of_s) * 1000 / JOBS, 2),
            }
    return {"jobs": JOBS, "idle_cpu_ms_per_s": round(idle_s * 1000 / of_s, 1), **rows}


if __name__ == "__main__":
    main()
