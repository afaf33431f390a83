"""A real node without a model: it takes only jobs that need none, and loads no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.ledger.outcomes import NewJobs
from maskfleet.jobs.ledger.workers import WorkerRegistry
from maskfleet.jobs.messages import Bells, Publisher
from maskfleet.jobs.schema.inline import InlineMask, InlineMasks, Rle
from maskfleet.jobs.schema.manifest import Manifest, MaskSummary
from maskfleet.jobs.schema.record import Metrics
from maskfleet.jobs.schema.spec import ExportRequest, ImageSource, dump_spec
from maskfleet.jobs.settings import SharedSettings
from maskfleet.jobs.status import Status
from maskfleet.jobs.storage import Store, manifest_key, upload_key
from maskfleet.worker.node.device import choose_devices
from maskfleet.worker.node.names import node_names
from tests.conftest import BUCKET
from tests.waiting import wait_until

EARLIER = f"job_{'a' * 32}"
UPLOAD = f"upl_{'b' * 32}"
MEASURES = {"area": 48, "bbox": (0, 0, 1, 48), "predicted_iou": 0.9, "stability_score": 0.95}


def an_earlier_result(store: Store, photo: bytes) -> None:
    """Leave what a job writes whose masks are in its own JSON."""
    store.put(upload_key("ant", UPLOAD), photo, "image/png")
    mask = InlineMask(segmentation=Rle(size=(303, 384), counts="0`1`ba3"), **MEASURES)  # type: ignore[arg-type]
    manifest = Manifest(
        job_id=EARLIER,
        attempt=1,
        mode="everything",
        model="sam-demo",
        spec={"mode": "everything", "image": {"upload_id": UPLOAD}},
        created_at="2026-01-01T00:00:00Z",
        image_width=384,
        image_height=303,
        masks=(MaskSummary(**MEASURES),),  # type: ignore[arg-type]
        files=(),
        inline=InlineMasks(form="rle", image_width=384, image_height=303, masks=(mask,)),
        metrics=Metrics(),
    )
    store.put(manifest_key("ant", EARLIER), manifest.model_dump_json().encode(), "application/json")


@pytest.mark.parametrize("slots", [1, 2])
def test_a_machine_may_have_nodes_without_a_device(slots: int) -> None:
    [device] = choose_devices("none", {})

    assert (device.kind, device.label) == ("none", "outputs")
    assert len(node_names(device, slots)) == slots


def test_a_node_without_a_model_exports_and_loads_no_torch(
    ledger: Ledger,
    store: Store,
    worker_registry: WorkerRegistry,
    shared_fields: dict[str, str],
    repository: Path,
    tmp_path: Path,
) -> None:
    an_earlier_result(store, (repository / "examples" / "coins.png").read_bytes())
    settings = {f"MASKFLEET_{name.upper()}": value for name, value in shared_fields.items()}
    own = {"MASKFLEET_DEVICE": "none", "MASKFLEET_NODE": "sam-outputs@host", "MASKFLEET_MODEL": "org/not-there"}
    with (tmp_path / "node.log").open("wb") as log:
        node = subprocess.Popen(
            [sys.executable, "-m", "maskfleet.worker"], env=os.environ | settings | own, stdout=log, stderr=log
        )
    try:
        [seen] = wait_until(worker_registry.workers, 90)
        image = ImageSource(upload_id=UPLOAD)
        job = ExportRequest(outputs=("svg", "overlay", "coco"), inline="polygons").job(EARLIER, image, "sam-demo")
        jobs = NewJobs("ant", "sam.outputs.normal", (dump_spec(job),), 60, bucket=BUCKET)
        job_id = ledger.create(jobs, max_in_flight=9, idempotency_ttl_s=60).id
        Bells(ledger._redis, Publisher(SharedSettings(**shared_fields))).ring("sam.outputs.normal")
        wait_until(lambda: (status := ledger.status(job_id)) is not None and status.ended, 60)
        loaded = {mapped.path for mapped in psutil.Process(seen.pid).memory_maps()}
    finally:
        node.terminate()
        node.wait(30)

    record = ledger.read(job_id)
    assert record is not None
    assert (record.status, record.worker, record.error) == (Status.SUCCEEDED, "sam-outputs@host", None)
    assert (seen.model, seen.device) == ("outputs", "none")
    assert not [path for path in loaded if "torch" in path]
