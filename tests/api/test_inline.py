"""A job's masks in its own JSON: who is shown them, and what stands there when there are none."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from maskfleet import Client
from maskfleet.api.app import create_app
from maskfleet.jobs.ledger.jobs import Ledger
from maskfleet.jobs.schema.inline import InlineMask, InlineMasks, Rle, WhyNotInline
from maskfleet.jobs.schema.manifest import Manifest
from maskfleet.jobs.schema.record import JobRecord, Metrics
from maskfleet.jobs.storage import Store, manifest_key, result_prefix
from tests.api.caller import Caller, a_closed_port, as_base64, check_problem, claim, job
from tests.api.clicking import click, the_job
from tests.api.conftest import KEYS, SettingsMaker
from tests.api.door import Door, open_door
from tests.api.pictures import a_picture

MASKS = InlineMasks(
    form="rle",
    image_width=64,
    image_height=48,
    masks=(
        InlineMask(
            segmentation=Rle(size=(48, 64), counts="0`0Pb1"),
            area=48,
            bbox=(0, 0, 1, 48),
            predicted_iou=0.9,
            stability_score=0.95,
            prompt=0,
        ),
    ),
)


@pytest.fixture
def door(shared_fields: dict[str, str], ledger: Ledger, tmp_path: Path) -> Iterator[Door]:
    """The API in one process."""
    with open_door(shared_fields, tmp_path, processes="1") as running:
        yield running


def succeed(record: JobRecord, ledger: Ledger, store: Store, inline: InlineMasks | WhyNotInline | None = None) -> None:
    """End a job as a worker does that writes nothing but the manifest."""
    manifest = Manifest(
        job_id=record.id,
        attempt=record.attempt,
        mode="everything",
        model="sam-demo",
        created_at="2026-01-01T00:00:00Z",
        image_width=64,
        image_height=48,
        masks=(),
        files=(),
        inline=inline if isinstance(inline, InlineMasks) else None,
        inline_omitted=inline if isinstance(inline, WhyNotInline) else None,
        metrics=Metrics(),
    )
    key = manifest_key(record.tenant, record.id)
    store.put(key, manifest.model_dump_json().encode(), "application/json")
    ledger.succeed(record, manifest.summary(result_prefix(record.tenant, record.id), key))


def test_the_masks_stand_in_the_answer_and_in_the_job(door: Door, ledger: Ledger, store: Store) -> None:
    with click(door, inline="rle", outputs=[]) as answer:
        succeed(claim(the_job(ledger), ledger), ledger, store, MASKS)
        response = answer.result(20)
    job_id = the_job(ledger)

    assert InlineMasks.model_validate(response.json()["inline"]) == MASKS
    assert door.ask("GET", f"/v1/jobs/{job_id}").json() == response.json()
    assert "inline_omitted" not in response.json()
    with door.follow(job_id) as events:
        assert [event.get("inline") for event in events] == [None]
    listed = door.ask("GET", "/v1/jobs").json()["jobs"]
    assert [one.get("inline") for one in listed] == [None]
    manifest = door.ask("GET", f"/v1/jobs/{job_id}/result").json()
    assert (manifest["inline"], manifest["files"]) == (response.json()["inline"], [])


def test_masks_that_were_too_large_are_named_with_the_place_where_they_are(
    apiary: Caller, ledger: Ledger, store: Store
) -> None:
    job_id = apiary.a_job(inline="polygons")
    why = WhyNotInline(code="inline_too_large", detail="The masks take more than 1,048,576 bytes.")
    succeed(claim(job_id, ledger), ledger, store, why)

    view = apiary.get(f"/v1/jobs/{job_id}").json

    assert "inline" not in view
    assert view["inline_omitted"] == {**why.model_dump(), "url": f"{view['urls']['self']}/files/coco.json"}


def test_a_job_without_a_result_has_no_masks(apiary: Caller, ledger: Ledger) -> None:
    failed, waiting = apiary.a_job(inline="rle"), apiary.a_job(inline="rle")
    ledger.fail(claim(failed, ledger), "image_corrupt", "The JPEG file is damaged.")

    views = [apiary.get(f"/v1/jobs/{job_id}").json for job_id in (failed, waiting)]

    assert [view["status"] for view in views] == ["failed", "queued"]
    assert all("inline" not in view and "inline_omitted" not in view for view in views)


def test_a_job_that_did_not_ask_has_no_masks(apiary: Caller, ledger: Ledger, store: Store) -> None:
    job_id = apiary.a_job()
    succeed(claim(job_id, ledger), ledger, store, MASKS)

    assert "inline" not in apiary.get(f"/v1/jobs/{job_id}").json


def test_a_job_is_shown_though_its_masks_cannot_be_read(
    apiary: Caller, ledger: Ledger, store: Store, make_settings: SettingsMaker
) -> None:
    job_ids = [apiary.a_job(inline="rle") for _ in range(3)]
    for job_id in job_ids:
        succeed(claim(job_id, ledger), ledger, store, MASKS)
    store.put(manifest_key("apiary", job_ids[0]), b"{", "application/json")
    store.delete([manifest_key("apiary", job_ids[1])])
    without_store = Caller(create_app(make_settings(s3_endpoint=f"http://127.0.0.1:{a_closed_port()}")), KEYS["apiary"])

    views = [
        apiary.get(f"/v1/jobs/{job_ids[0]}").json,
        apiary.get(f"/v1/jobs/{job_ids[1]}").json,
        without_store.get(f"/v1/jobs/{job_ids[2]}").json,
    ]

    assert [view["status"] for view in views] == ["succeeded"] * 3
    codes = [view["inline_omitted"]["code"] for view in views]
    assert codes == ["record_unreadable", "result_not_found", "store_unavailable"]


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [({"outputs": []}, "/outputs"), ({"outputs": [], "inline": None}, "/outputs"), ({"inline": "png"}, "/inline")],
)
def test_a_job_whose_masks_would_be_nowhere_is_refused(apiary: Caller, fields: dict[str, Any], pointer: str) -> None:
    problem = check_problem(apiary.send(job(**fields)), 422, "invalid_spec")

    assert problem.errors is not None
    assert pointer in {fault.pointer for fault in problem.errors}


def test_a_batch_has_no_masks_inline(apiary: Caller) -> None:
    images = [{"base64": as_base64(a_picture())}]

    refused = apiary.post("/v1/batches", {"mode": "everything", "images": images, "inline": "rle"})

    assert check_problem(refused, 422, "invalid_spec").errors is not None


def test_the_client_clicks(door: Door, ledger: Ledger, store: Store) -> None:
    with Client(door.url, KEYS["apiary"]) as client, ThreadPoolExecutor(1) as pool:
        clicked = pool.submit(
            client.submit,
            photo=a_picture(),
            mode="point",
            prompts=[{"points": [[3, 4]]}],
            inline="rle",
            outputs=[],
            held_s=30,
        )
        succeed(claim(the_job(ledger), ledger), ledger, store, MASKS)

        assert clicked.result(20).inline == MASKS
