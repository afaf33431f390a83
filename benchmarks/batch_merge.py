"""Measure the merge of a batch's results: what it costs a courier, and what its other duties notice of it.

    python -m benchmarks.batch_merge                  # 100,000 images; takes half an hour
    python -m benchmarks.batch_merge --images 5000

Redis, S3 and the courier are real processes with their default settings.  In the place of worker nodes two processes
end the batch's jobs through the ledger, and write for each a manifest, a coco.json and an outlines.geojson with one to
five masks, as fast as they can.  The courier expands the batch, collects these results page by page and makes three
files of them; it is killed as soon as it has begun to do so, and another one starts.  All the while a webhook is due
every half second, and every five seconds a batch of three images of another tenant.  At last the files are read line by
line: each image and each annotation must be there, once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

import boto3
import numpy as np
import psutil
import pycocotools.mask

from benchmarks.machine import ROOT, keep, percentile
from maskfleet.jobs.ledger.batches import Batches
from maskfleet.jobs.ledger.connection import connect
from maskfleet.jobs.ledger.deliveries import Deliveries
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewBatch, NewJobs
from maskfleet.jobs.schema.batch_spec import BatchPlan, BatchSource
from maskfleet.jobs.schema.manifest import Manifest, ManifestFile
from maskfleet.jobs.schema.record import JobRecord, Metrics
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.storage import Store, attempt_prefix, manifest_key, result_prefix
from maskfleet.stack.hook_server import HookServer
from maskfleet.stack.servers import start_redis, start_s3
from maskfleet.worker.node.supervisor import kill_child, start_child
from tests.waiting import wait_until

TENANT, OTHER, BUCKET, PHOTOS = "bench", "other", "maskfleet", "photos"
QUEUE, OTHER_QUEUE = "sam.bench.bulk", "sam.bench.normal"
IMAGES, NODES, MOST_MASKS, SIZE_HW = 100_000, 2, 5, (480, 640)
PING_S, BATCH_S = 0.5, 5.0
SPEC = (
    '{"mode":"everything","image":{"upload_id":"upl_00000000000000000000000000000000"},"model":"bench",'
    '"outputs":["coco","geojson"]}'
)
LONGEST_S = 6 * 3600


def masks_of(number: int) -> int:
    """Return how many masks the image has; numbered from 1."""
    return number % MOST_MASKS + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=IMAGES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as exits:
        figures = _Service(exits, Path(folder)).run(options.images)
    command = "python -m benchmarks.batch_merge"
    if options.images == IMAGES:
        keep("batch_merge", command, figures)
    else:
        print(json.dumps(figures, indent=2))


class _Service:
    """Redis, S3, a courier at a time, and stand-ins for nodes."""

    def __init__(self, exits: ExitStack, folder: Path) -> None:
        self._exits, self._folder = exits, folder
        server = start_redis(folder / "redis", log=folder / "redis.log")
        exits.callback(server.stop)
        keys = {"access_key": "bench", "secret_key": secrets.token_hex(16)}
        s3 = start_s3(folder / "s3", **keys, buckets=(BUCKET, PHOTOS), log=folder / "s3.log")
        exits.callback(s3.stop)
        self._fields: dict[str, Any] = {  # Any: a settings field's own type
            "redis_url": server.url,
            "s3_endpoint": s3.url,
            "s3_access_key": keys["access_key"],
            "s3_secret_key": keys["secret_key"],
            "bucket": BUCKET,
        }
        settings = SharedSettings(**self._fields)
        self.redis = connect(settings)
        exits.callback(self.redis.close)
        self.redis.config_set("appendonly", "no")
        self.store, self._photos = Store(settings), Store(SharedSettings(**{**self._fields, "bucket": PHOTOS}))
        self.ledger, self.batches = Ledger(self.redis, settings.retention_s), Batches(self.redis)
        self.deliveries = Deliveries(self.redis)
        self._s3 = boto3.client(
            "s3",
            endpoint_url=s3.url,
            aws_access_key_id=keys["access_key"],
            aws_secret_access_key=keys["secret_key"],
            region_name="us-east-1",
        )
        self._couriers = 0

    def run(self, images: int) -> dict[str, object]:
        batch_id = self._send(TENANT, QUEUE, images)
        self._start_nodes()
        courier = self._start_courier()
        at_rest_mb = _peak_mb(courier)
        with _Watched(self).watching() as watched:
            began = time.monotonic()
            self._await(lambda: bool(self.logged("batch_merging", batch_id)))
            collected_s = time.monotonic() - began
            collecting = {"cpu_s": _cpu_s(courier), "peak_mb": _peak_mb(courier)}
            watched.phase = "killed"
            kill_child(self._courier)
            left = self._unfinished_uploads(batch_id)
            killed = time.monotonic()
            courier = self._start_courier()
            merging_rest_mb, merging_cpu_s = _peak_mb(courier), _cpu_s(courier)
            self._await(lambda: bool(self.logged("batch_merging", batch_id)))
            watched.phase = "merging"
            again_s, started = time.monotonic() - killed, time.monotonic()
            self._await(lambda: (found := self.batches.read(batch_id)) is not None and found.ended_ms is not None)
            merged_s = time.monotonic() - started
            watched.phase = "after"
            merging = {"cpu_s": _cpu_s(courier) - merging_cpu_s, "peak_mb": _peak_mb(courier)}
        record = self.batches.read(batch_id)
        assert record is not None
        assert record.counts.succeeded == images, record.counts
        return {
            "images": images,
            "annotations": self._check(record.files, images),
            "collected": {
                "seconds": round(collected_s, 1),
                "images_per_s": round(images / collected_s, 1),
                "courier_cpu_s": round(collecting["cpu_s"], 1),
                "courier_cpu_ms_per_image": round(collecting["cpu_s"] * 1000 / images, 2),
                "courier_peak_rss_mb": round(collecting["peak_mb"]),
                "courier_rss_at_rest_mb": round(at_rest_mb),
            },
            "killed": {"seconds_until_another_began": round(again_s, 1), "unfinished_uploads_left": left},
            "merged": {
                "seconds": round(merged_s, 1),
                "courier_cpu_s": round(merging["cpu_s"], 1),
                "courier_peak_rss_mb": round(merging["peak_mb"]),
                "courier_rss_at_rest_mb": round(merging_rest_mb),
                "bytes": {file.name: file.size for file in record.files},
            },
            "meanwhile": watched.figures(),
            "unfinished_uploads_in_the_end": self._unfinished_uploads(batch_id),
        }

    def _send(self, tenant: str, queue: str, images: int) -> str:
        """Record a batch from a manifest, as the API does; return its id."""
        key = f"{tenant}-{secrets.token_hex(4)}.jsonl"
        lines = (json.dumps({"image": {"s3_uri": f"s3://{PHOTOS}/tiles/{n:06}.png"}}) for n in range(1, images + 1))
        self._photos.put(key, "\n".join(lines).encode(), "application/jsonl")
        head = self._photos.head(key)
        assert head is not None
        plan = BatchPlan(
            source=BatchSource(manifest=f"s3://{PHOTOS}/{key}"),
            spec=SPEC,
            queue=queue,
            bucket=BUCKET,
            start_deadline_s=7 * 24 * 3600,
            max_in_flight=10_000,
            max_bytes=2**30,
            coco=True,
            geojson=True,
            etag=head.etag,
            size=head.size,
        )
        batch = NewBatch(source="{}", plan=plan.model_dump_json(exclude_none=True), most_open=10_000)
        new = NewJobs(tenant, queue, (), plan.start_deadline_s, batch=batch)
        return self.ledger.create(new, max_in_flight=10_000, idempotency_ttl_s=60).id

    def send_small(self) -> str:
        return self._send(OTHER, OTHER_QUEUE, 3)

    def _start_courier(self) -> psutil.Process:
        self._couriers += 1
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MASKFLEET_")}
        environment |= {f"MASKFLEET_{name.upper()}": str(value) for name, value in self._fields.items()}
        environment |= {
            "MASKFLEET_ALLOWED_BUCKETS": PHOTOS,
            "MASKFLEET_EGRESS_ALLOW_PRIVATE": "1",
            "MASKFLEET_WEBHOOK_MASTER_SECRETS": f"whsec_{'A' * 32}",
        }
        command = (sys.executable, "-m", "maskfleet.worker.courier.courier")
        self._courier = start_child(command, env=environment, log=self._log, cwd=ROOT)
        self._exits.callback(kill_child, self._courier)
        wait_until(lambda: bool(self.logged("courier_started", "")), 120)
        return psutil.Process(self._courier.pid)

    @property
    def _log(self) -> Path:
        return self._folder / f"courier-{self._couriers}.log"

    def logged(self, event: str, batch_id: str) -> list[str]:
        """Return the lines of the courier that runs now about an event of a batch."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [line for line in lines if f'"{event}"' in line and batch_id in line]

    def _start_nodes(self) -> None:
        over = multiprocessing.Event()
        nodes = [
            multiprocessing.Process(target=_node, args=(number, self._fields, over), daemon=True)
            for number in range(NODES)
        ]
        for node in nodes:
            node.start()
            self._exits.callback(node.join, 60)
        self._exits.callback(over.set)

    def _await(self, is_so: Callable[[], bool]) -> None:
        wait_until(is_so, LONGEST_S, every_s=0.2)

    def _unfinished_uploads(self, batch_id: str) -> int:
        return len(
            self._s3.list_multipart_uploads(Bucket=BUCKET, Prefix=f"batches/{TENANT}/{batch_id}/").get("Uploads", [])
        )

    # The check.

    def _check(self, files: tuple[Any, ...], images: int) -> int:  # Any: StoredBatchFile
        """Raise AssertionError unless the files hold each image and mask once; return how many masks there are."""
        keys = {file.name: file.key for file in files}
        assert set(keys) == {"coco.json", "outlines.geojson", "outcomes.jsonl"}
        expected = sum(masks_of(number) for number in range(1, images + 1))
        seen, ids, of_image = bytearray(images + 1), bytearray(expected + 1), bytearray(images + 1)
        for line in self._lines(keys["coco.json"]):
            if line.startswith('{"id": ') or line.startswith('{"area"'):
                one = json.loads(line.rstrip(","))
                if "image_id" in one:
                    ids[one["id"]] += 1
                    of_image[one["image_id"]] += 1
                    assert len(one["bbox"]) == 4
                    assert one["segmentation"]["counts"]
                else:
                    seen[one["id"]] += 1
                    assert one["file_name"] == f"{one['id']:06}.png"
        assert seen.count(1) == images, "an image is missing, or there twice"
        assert ids.count(1) == expected, "an annotation is missing, or there twice"
        assert all(of_image[number] == masks_of(number) for number in range(1, images + 1))
        features = bytearray(images + 1)
        for line in self._lines(keys["outlines.geojson"]):
            if line.startswith('{"type":"Feature"'):
                one = json.loads(line.rstrip(","))
                features[one["properties"]["image_id"]] += 1
                assert one["id"].startswith(f"{one['properties']['image_id']}-")
        assert all(features[number] == masks_of(number) for number in range(1, images + 1))
        outcomes = bytearray(images + 1)
        for line in self._lines(keys["outcomes.jsonl"]):
            one = json.loads(line)
            outcomes[one["number"]] += one["status"] == "succeeded"
        assert outcomes.count(1) == images
        return expected

    def _lines(self, key: str) -> Iterator[str]:
        rest = b""
        for chunk in self.store.chunks(key):
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line.decode() for line in whole)
        if rest:
            yield rest.decode()


@dataclass
class _Watched:
    """What the courier's other duties notice, by phase."""

    service: _Service
    phase: str = "collecting"
    webhooks_s: dict[str, list[float]] = field(default_factory=dict)
    expanded_s: dict[str, list[float]] = field(default_factory=dict)
    completed_s: dict[str, list[float]] = field(default_factory=dict)
    ticks_s: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def watching(self) -> Iterator[_Watched]:
        over = threading.Event()
        sent: dict[str, float] = {}

        def arrived(body: bytes, _headers: Mapping[str, str]) -> int:
            began = sent.pop(json.loads(body)["n"], None)
            if began is not None:
                self.webhooks_s.setdefault(self.phase, []).append(time.monotonic() - began)
            return 204

        with HookServer(arrived) as receiver:

            def ping() -> None:
                number = 0
                while not over.wait(PING_S):
                    number += 1
                    sent[str(number)] = time.monotonic()
                    self.service.deliveries.ping(OTHER, receiver.url, json.dumps({"n": str(number)}))

            def small_batches() -> None:
                under_way: dict[str, float] = {}
                expanded: set[str] = set()
                last = 0.0
                while not over.wait(0.1):
                    now = time.monotonic()
                    if now - last >= BATCH_S:
                        last = now
                        under_way[self.service.send_small()] = now
                    for batch_id, since in list(under_way.items()):
                        found = self.service.batches.read(batch_id)
                        if found is not None and found.listed and batch_id not in expanded:
                            expanded.add(batch_id)
                            self.expanded_s.setdefault(self.phase, []).append(now - since)
                        if found is not None and found.ended_ms is not None:
                            del under_way[batch_id]
                            self.completed_s.setdefault(self.phase, []).append(now - since)

            def ticks() -> None:
                seen, at = "", time.monotonic()
                while not over.wait(0.02):
                    looked = str(self.service.redis.get("mf:clock")).partition(" ")[0]
                    if looked != seen:
                        self.ticks_s.setdefault(self.phase, []).append(time.monotonic() - at)
                        seen, at = looked, time.monotonic()

            threads = [threading.Thread(target=each) for each in (ping, small_batches, ticks)]
            for thread in threads:
                thread.start()
            try:
                yield self
            finally:
                over.set()
                for thread in threads:
                    thread.join()

    def figures(self) -> dict[str, object]:
        kinds = {
            "tick_to_tick_s": self.ticks_s,
            "webhook_s": self.webhooks_s,
            "other_batch_expanded_s": self.expanded_s,
            "other_batch_completed_s": self.completed_s,
        }
        return {
            phase: {name: _summary(of[phase]) for name, of in kinds.items() if of.get(phase)}
            for phase in ("collecting", "merging")
        }


def _summary(times_s: list[float]) -> dict[str, float]:
    return {"count": len(times_s), "median": round(percentile(times_s, 50), 2), "max": round(max(times_s), 2)}


def _node(number: int, fields: dict[str, Any], over: Any) -> None:  # Any: settings' types; multiprocessing's event
    """End jobs until told to stop."""
    settings = SharedSettings(**fields)
    with connect(settings) as client:
        ledger, store = Ledger(client, settings.retention_s), Store(settings)
        while not over.is_set():
            found = ledger.claim_next((OTHER_QUEUE, QUEUE), f"node-{number}", lease_s=600, max_attempts=3).record
            if found is None:
                over.wait(0.02)
            else:
                _end(found, ledger, store)


def _end(record: JobRecord, ledger: Ledger, store: Store) -> None:
    folder = attempt_prefix(record.tenant, record.id, record.attempt, record.fence, record.token)
    number = int(record.source.rpartition("/")[2].partition(".")[0])
    files = []
    for name, text in (("coco.json", _coco(masks_of(number))), ("outlines.geojson", _outlines(masks_of(number)))):
        store.put(f"{folder}/{name}", text.encode(), "application/json")
        about = {"size": len(text), "sha256": "0" * 64, "content_type": "application/json"}
        files.append(ManifestFile(name=name, key=f"{folder}/{name}", **cast("Any", about)))
    manifest = Manifest(
        job_id=record.id,
        attempt=record.attempt,
        mode="everything",
        model="bench",
        created_at=cast("Any", "2026-01-01T00:00:00Z"),
        image_width=SIZE_HW[1],
        image_height=SIZE_HW[0],
        masks=(),
        files=tuple(files),
        metrics=Metrics(),
    )
    key = manifest_key(record.tenant, record.id)
    store.put(key, manifest.model_dump_json().encode(), "application/json")
    ledger.succeed(record, manifest.summary(result_prefix(record.tenant, record.id), key))


@cache
def _counts() -> str:
    """Return a disc of 90 pixels across, run-length encoded as in COCO."""
    rows, columns = np.ogrid[: SIZE_HW[0], : SIZE_HW[1]]
    disc = (rows - 65) ** 2 + (columns - 65) ** 2 <= 45**2
    return str(pycocotools.mask.encode(np.asfortranarray(disc, dtype=np.uint8))["counts"], "ascii")


@cache
def _coco(masks: int) -> str:
    """Return what worker/output/formats.py writes of so many masks."""
    annotations = ",\n".join(
        json.dumps(
            {
                "id": number,
                "image_id": 1,
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": {"size": SIZE_HW, "counts": _counts()},
                "area": 6_361,
                "bbox": [10.0 * number, 20.0, 90.0, 90.0],
                "score": 0.97,
                "predicted_iou": 0.97,
                "stability_score": 0.98,
                "point_coords": [[10.0 * number + 45, 65.0]],
                "crop_box": [0.0, 0.0, 640.0, 480.0],
                "parent_id": None,
            }
        )
        for number in range(1, masks + 1)
    )
    return f'{{"images": [{{"id": 1, "width": 640, "height": 480}}],\n"annotations": [\n{annotations}\n]}}\n'


@cache
def _outlines(masks: int) -> str:
    """Return what worker/output/outlines.py writes of so many masks."""
    ring = [[x, 20 + (x * 7) % 90] for x in range(10, 100)]
    features = ",\n".join(
        f'{{"type": "Feature", "id": {number}, "properties": {{"area": 6361, "predicted_iou": 0.97}}, '
        f'"geometry": {json.dumps({"type": "Polygon", "coordinates": [[*ring, ring[0]]]}, separators=(",", ":"))}}}'
        for number in range(1, masks + 1)
    )
    return f'{{"type": "FeatureCollection",\n"image": {{}},\n"features": [\n{features}\n]}}\n'


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _peak_mb(process: psutil.Process) -> float:
    """Return the most memory that a process has held."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
